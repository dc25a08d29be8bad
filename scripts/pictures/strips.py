"""Images in rows, with their residuals to the clean ones at one gain, tiled and labelled: D-VAE's
figure 4, LE's figures 2 and 3 (images), and the tiles of grids and bars."""

from dataclasses import dataclass

import numpy as np

from core.artefact import read_array
from core.errors import UserError
from core.imageset import ImageSet
from core.origins import clean_of
from core.splits import short
from scripts.pictures import style
from scripts.tables import plan
from scripts.tables.formats import markdown
from scripts.tables.measure import records_of, sets_of
from scripts.tables.table import Table

GAINS = (20, 10, 8, 5, 4, 3, 2, 1.5, 1)     # magnifications of residuals to choose from
LABEL, TILE = 1.2, 0.4      # inches: of a label left of the tiles; of a tile at least
WRAP = 17                   # characters of a label's line
BESIDE = 4                  # so many images have their residuals beside them, more beneath
MOST_PIXELS = 50_000_000    # of all tiles


@dataclass(frozen=True)
class Strip:
    """Some images of one set, and what sets them apart from the clean ones: float (n, H, W, 3)."""

    label: str
    images: np.ndarray | None       # in [0, 1]; None: there are none
    residual: np.ndarray | None     # None: these are the clean ones


def strip_of(label: str, images: np.ndarray, clean: np.ndarray) -> Strip:
    """Of images and clean ones in uint8 (n, H, W, 3)."""
    return Strip(label, images / 255, (images.astype(np.int16) - clean) / 255)


def common_gain(strips: list[Strip]) -> float:
    """The largest magnification around mid-grey that clips at most 2 % of all residuals' values."""
    values = [np.abs(strip.residual).ravel() for strip in strips if strip.residual is not None]
    reach = np.quantile(np.concatenate(values), 0.98) if values else 0
    return next((gain for gain in GAINS if gain * reach <= 0.5), GAINS[-1])


def gain_text(gain: float) -> str:
    return f"residuals (− clean) × {gain:g} around mid-grey"


# --- tiles -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Tiles side by side, float (n, H, W, 3) in [0, 1], and the label left of them."""

    label: str
    tiles: np.ndarray


def tile_rows(strips: list[Strip], gain: float, beside: bool = False) -> list[Row]:
    """The images of every strip, and their residuals beneath or `beside` them."""
    rows = []
    for each in strips:
        blank = np.ones_like(next(a for a in (each.images, each.residual) if a is not None))
        images = blank if each.images is None else each.images
        residual = blank if each.residual is None else np.clip(0.5 + gain * each.residual, 0, 1)
        if beside:
            rows.append(Row(each.label, np.concatenate([images, residual])))
            continue
        if each.images is not None:
            rows.append(Row(each.label, images))
        if each.residual is not None:
            rows.append(Row("− clean" if each.images is not None else each.label, residual))
    return rows


def size_of(rows: list[Row]) -> tuple[float, float]:
    """Inches that the rows want: width and height. Raises UserError where they are too many."""
    count, height, width, _ = rows[0].tiles.shape
    if len(rows) * rows[0].tiles.size / 3 > MOST_PIXELS:
        raise UserError(f"{len(rows)} rows of {count} images of {height}x{width} pixels are too "
                        "large a picture: show fewer, with --images")
    across = max(style.WIDTH, LABEL + TILE * count)
    return across, len(rows) * (across - LABEL) / count * height / width


def show_rows(axis, rows: list[Row], halves: bool = False) -> None:
    """Tile the rows into one image with white gaps, a label left of each. `halves`: a wider gap in
    the middle."""
    count, height, width, _ = rows[0].tiles.shape
    gap = max(1, width // 12)
    middle = 3 * gap if halves else 0
    canvas = np.full((len(rows) * (height + gap) - gap,
                      count * (width + gap) - gap + middle, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row.tiles):
            top = i * (height + gap)
            left = j * (width + gap) + middle * (j >= count // 2)
            canvas[top : top + height, left : left + width] = np.rint(255 * tile)
    axis.imshow(canvas)
    axis.set_anchor("NW")
    axis.set_xticks([])
    axis.set_yticks([i * (height + gap) + height / 2 for i in range(len(rows))],
                    [row.label for row in rows], fontsize=style.TEXT, color=style.INK)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def draw_strips(groups: list[tuple[str, list[Strip]]], text: str):
    """A figure of groups of strips, each under its title, all residuals at one gain, which the
    figure's title `text` is followed by."""
    gain = common_gain([strip for _, strips in groups for strip in strips])
    beside = len(groups[0][1][0].images) <= BESIDE
    tiled = [tile_rows(strips, gain, beside) for _, strips in groups]
    sizes = [size_of(rows) for rows in tiled]
    heights = [height + 0.3 for _, height in sizes]
    figure = style.sheet(sum(heights) + 0.5, sizes[0][0])
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, rows, (name, _) in zip(axes, tiled, groups, strict=True):
        show_rows(axis, rows, halves=beside)
        style.title(axis, name)
    style.head(figure, f"{text}\n{gain_text(gain)}")
    return figure


# --- figures of the papers -------------------------------------------------------------------


def stages(table: Table, cells: list[plan.Cell], rows: slice) -> dict[str, list[Strip]]:
    """The strips of each of the table's poisons, of its first seed. Raises UserError where there
    are none, and where the sets lack the rows."""
    found = {}
    for row in table.rows:
        group = [cell for cell in cells if cell.row is row and cell.seed == table.seeds[0]]
        if shown := strips_of(group, table.settings.get("root", "data"), rows):
            found[row.name] = shown
            if len(shown[0].images) == 0:
                raise UserError(f"--first {rows.start} --images {rows.stop - rows.start}: no such "
                                "rows")
    if not found:
        raise UserError(f"{table.path}: there is nothing to show: none of these cells has a set of "
                        "its own")
    return found


def strips_of(cells: list[plan.Cell], root: str, rows: slice) -> list[Strip]:
    """Of one poison: clean, then each column's set with its accuracy, and p_hat before the set of
    the column that saved it."""
    clean = first = None
    strips = []
    for ((cell, record),) in records_of(cells).values():
        chain = sets_of(cell.record)
        if not chain:                   # trained on the clean images themselves
            continue
        final = ImageSet.load(chain[-1].out)
        if clean is None:
            clean, first = clean_of(final, root).images[rows], cell
            origin = final.meta["root"]
            strips.append(Strip("clean", clean / 255, None))
        if final.meta["root"] != origin:
            raise UserError(f"{cell.column.name} has other images than {first.column.name} (split="
                            f"{short(final.meta['root'].get('split', 'train'))}): a figure shows "
                            "the same ones in every row; --columns chooses")
        saved = chain[-1].out / "p_hat1.npy"
        if saved.exists():
            p_hat = read_array(saved, final.meta)[rows].astype(np.float64)
            strips.append(Strip("p_hat of stage 1", None, p_hat))
        name = "poisoned" if chain[-1].job.kind == "poisons" else style.name_of(cell.column.name)
        name = style.plain_label(name, WRAP)
        strips.append(strip_of(f"{name}\n{100 * record['accuracy_last']:.1f} %", final.images[rows],
                            clean))
    return strips


def print_stages(found: dict[str, list[Strip]]) -> None:
    gain = common_gain([strip for strips in found.values() for strip in strips])
    lines = [[style.name_of(row), each.label.rpartition("\n")[0] or each.label,
              f"{255 * np.abs(each.residual).mean():.1f}", f"{gain:g}"]
             for row, strips in found.items() for each in strips[1:]]
    print(markdown(("poison", "strip", "mean abs. residual (/255)", "gain"), lines), end="")


def draw_stages(table: Table, found: dict[str, list[Strip]], data: str, arguments) -> object:
    """Images and residuals stage by stage."""
    seed = f"seed {table.seeds[0]}" + (f" of {len(table.seeds)}" if table.seeds[1:] else "")
    return draw_strips([(f"{style.name_of(row)} on {data}", strips)
                        for row, strips in found.items()],
                       f"{table.title}, {seed}; %: clean test accuracy after training on such "
                       "images")
