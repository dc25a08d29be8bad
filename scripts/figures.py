"""Pictures of sets and records.

    python scripts/figures.py grid SET [SET ...] [--out grid.png] [--images 8] [--first 0]
    python scripts/figures.py quickstart FOLDER
    python scripts/figures.py fig2a [--quick] [key=value ...] [--table TABLE.yaml] [--out PNG]
                              (and fig2b, fig3, fig4, fig5)

`grid` draws a row of clean images, then for each set its images and their residual to clean.
`quickstart` prints the table of scripts/quickstart.sh and draws `quickstart.png` in its folder.
The others are D-VAE's figures, each over the cells of configs/tables/<figure>.yaml: they print
the numbers to stdout. What is missing is named, and made by scripts/run_table.py with --quick (on
digits, small). key=value are run_table's (data=, root=, threads=). D-VAE's toy: scripts/toy.py.

    fig2a   PSNR and accuracy against the KL divergence that VAEs reached
    fig2b   accuracy against PSNR: VAEs and JPEG
    fig3    accuracy after every epoch of training, poisoned and purified
    fig4    images and residuals stage by stage
    fig5    accuracy against PSNR: VAEs and auto-encoders
"""

import argparse
import math
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core import records, tables
from core.command import command
from core.errors import UserError
from core.imageset import ImageSet
from core.plots import (
    BAD,
    GOOD,
    INK,
    MUTED,
    PLAIN,
    SERIES,
    axis_style,
    end_labels,
    pyplot,
    save,
)
from core.points import Point, clean_of, curves, points, records_of, sets_of

GAINS = (10, 5, 2, 1)           # residual magnifications to choose from
TITLES = {"em": "EM", "lsp": "LSP", "none": "not purified", "vae": "VAE", "ae": "AE",
          "jpeg": "JPEG", "dvae": "D-VAE"}
STRENGTHS = {"kld": "KLD target", "d": "channels"}     # of `over`, where it is no word
COLOURS = {"none": BAD, "vae": GOOD, "dvae": GOOD, "jpeg": "#b07a2e", "ae": "#7d5a94"}


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python scripts/figures.py",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = parser.add_subparsers(dest="figure", required=True)
    grid = figures.add_parser("grid", help="rows of images with residuals")
    grid.add_argument("sets", nargs="+", metavar="SET", help="ImageSet folders")
    grid.add_argument("--out", default="grid.png", help="the PNG to write")
    grid.add_argument("--images", type=int, default=8, help="images a row")
    grid.add_argument("--first", type=int, default=0, help="row number of the first image")
    grid.add_argument("--root", default="data", help="where torchvision's data sets are")
    quick = figures.add_parser("quickstart", help="table and picture of the quickstart")
    quick.add_argument("folder", help="what scripts/quickstart.sh wrote")
    for name, (draw, _) in PAPER.items():
        paper = figures.add_parser(name, help=draw.__doc__.splitlines()[0])
        paper.add_argument("--quick", action="store_true",
                           help="digits, small; what is missing is made")
        paper.add_argument("--table", default=f"configs/tables/{name}.yaml", metavar="TABLE.yaml")
        paper.add_argument("--out", help="the PNG to write (results/figures/NAME-DATA.png)")
        if draw is draw_trade_off:
            paper.add_argument("--to", choices=("poisoned", "clean"), default="poisoned",
                               help="what PSNR is measured to")
        if draw is draw_stages:
            paper.add_argument("--images", type=int, default=4, help="images a strip")
            paper.add_argument("--first", type=int, default=0, help="row number of the first image")
    arguments, settings = parser.parse_known_args(argv)     # key=value may stand anywhere
    if settings and (arguments.figure not in PAPER or any(word[0] == "-" for word in settings)):
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    if arguments.figure == "grid":
        draw_grid(arguments)
    elif arguments.figure == "quickstart":
        draw_quickstart(Path(arguments.folder))
    else:
        draw_paper(arguments, settings)


# --- grid ------------------------------------------------------------------------------------


def draw_grid(arguments: argparse.Namespace) -> None:
    sets = load_alike(arguments.sets)
    clean = clean_of(sets[0][1], arguments.root)
    rows = slice(arguments.first, arguments.first + arguments.images)
    if arguments.images < 1 or not 0 <= arguments.first < len(clean):
        raise UserError(f"--first {arguments.first} --images {arguments.images}: the set has rows "
                        f"0 to {len(clean) - 1}")
    strips = image_strips(clean, sets, rows)
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(0.95 * arguments.images + 1.6, 0.95 * len(strips) + 0.2))
    show_strips(axis, strips)
    save(figure, Path(arguments.out))
    print(arguments.out)


def load_alike(paths: list[str]) -> list[tuple[str, ImageSet]]:
    """(label, set) for each path: the methods behind it, or the path where two share them. Raises
    UserError unless all come from the same clean images."""
    sets = [ImageSet.load(path) for path in paths]
    names = [" > ".join(step["method"] for step in other.meta["lineage"]) or Path(path).name
             for path, other in zip(paths, sets, strict=True)]
    for path, other in zip(paths, sets, strict=True):
        for what, ours, first in (("images", other.images.shape, sets[0].images.shape),
                                  ("root", other.meta["root"], sets[0].meta["root"])):
            if ours != first:
                raise UserError(f"{path} has {what} {ours}, but {paths[0]} has {first}: a grid "
                                "shows the same clean images in every row")
    return [(name if names.count(name) == 1 else path, found)
            for name, path, found in zip(names, paths, sets, strict=True)]


def image_strips(clean: ImageSet, sets: list[tuple[str, ImageSet]], rows: slice
                 ) -> list[tuple[str, np.ndarray]]:
    """(label, (n, H, W, 3) in [0, 1]) for every row of the picture."""
    original = clean.images[rows] / 255.0
    strips = [("clean", original)]
    for name, other in sets:
        images = other.images[rows] / 255.0
        residual = images - original
        gain = symmetric_gain(residual)
        strips.append((name, images))
        strips.append((f"{name} − clean\n× {gain}", np.clip(0.5 + gain * residual, 0, 1)))
    return strips


def symmetric_gain(residual: np.ndarray) -> int:
    """The largest magnification around mid-grey that clips at most 2 % of the values."""
    reach = np.quantile(np.abs(residual), 0.98)
    return next((gain for gain in GAINS if gain * reach <= 0.5), GAINS[-1])


def show_strips(axis, strips: list[tuple[str, np.ndarray]]) -> None:
    """Tile the strips into one image with white gaps, a label left of each."""
    count, height, width, _ = strips[0][1].shape
    gap = max(1, height // 12)
    canvas = np.ones((len(strips) * (height + gap) - gap, count * (width + gap) - gap, 3))
    for i, (_, images) in enumerate(strips):
        for j, image in enumerate(images):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image
    axis.imshow(canvas, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([i * (height + gap) + height / 2 for i in range(len(strips))],
                    [label for label, _ in strips], fontsize=9, color=INK)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


# --- quickstart ------------------------------------------------------------------------------


def draw_quickstart(folder: Path) -> None:
    found: dict[str, list[dict]] = {}
    for path, record in records.find(folder):
        found.setdefault(path.name, []).append(record)
    order = [name for name in ("clean", "lsp", "gray", "jpeg", "dvae") if name in found]
    if not order:
        raise UserError(f"{folder}: no records; run scripts/quickstart.sh first")
    titles = {"clean": "clean", "lsp": "LSP", "gray": "LSP, gray", "jpeg": "LSP, jpeg",
              "dvae": "LSP, D-VAE"}
    accuracies = {titles[name]: [100 * r["accuracy_last"] for r in found[name]] for name in order}

    runs = max(map(len, accuracies.values()))
    print("| trained on | clean test accuracy (%) | on its own training set (%) |")
    print("|---|---|---|")
    for name in order:
        own = statistics.mean(100 * r["train_accuracy"] for r in found[name])
        print(f"| {titles[name]} | {records.spread(accuracies[titles[name]])} | {own:.1f} |")
    print(f"\ndigits, ResNet-18 of width 8, last epoch, n = {runs} "
          f"seed{'s' if runs > 1 else ''}. LSP's budget here is four times the papers': such "
          "easy, high-contrast images are not poisoned by less.")

    plt = pyplot()
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, 4.4), gridspec_kw={"width_ratios": [1.75, 1], "wspace": 0.32})
    seed = sorted(folder.glob("seed*"))[0]
    sets = [("poisoned", ImageSet.load(seed / "lsp")), ("purified", ImageSet.load(seed / "dvae"))]
    show_strips(left, image_strips(clean_of(sets[0][1], "data"), sets, slice(0, 9)))
    left.set_title("LSP on digits, purified by D-VAE", fontsize=10, color=INK, loc="left")
    show_bars(right, accuracies)
    save(figure, folder / "quickstart.png")
    print(folder / "quickstart.png", file=sys.stderr)


def show_bars(axis, accuracies: dict[str, list[float]]) -> None:
    """One horizontal bar a row, with every seed as a dot."""
    names = list(accuracies)[::-1]
    colours = {"clean": PLAIN, "LSP": BAD, "LSP, D-VAE": GOOD}
    for y, name in enumerate(names):
        values = accuracies[name]
        mean = statistics.mean(values)
        axis.barh(y, mean, height=0.62, color=colours.get(name, "#b9bfc6"))
        if len(values) > 1:
            axis.scatter(values, [y] * len(values), s=9, color=INK, zorder=3)
        axis.text(117, y, f"{mean:.1f}", va="center", ha="right", fontsize=9, color=INK)
    axis.set_yticks(range(len(names)), names, fontsize=9, color=INK)
    axis.axvline(10, color=MUTED, linewidth=0.8, linestyle=":")
    axis.text(11.2, len(names) - 0.58, "chance", fontsize=7, color=MUTED, va="center")
    if len(values) > 1:
        axis.text(117, len(names) - 0.58, "mean", fontsize=7, color=MUTED, va="center", ha="right")
    axis.set_xlim(0, 117)
    axis.set_xticks([0, 25, 50, 75, 100])
    axis.tick_params(length=0, labelsize=8, labelcolor=MUTED)
    axis.tick_params(axis="y", labelsize=9, labelcolor=INK)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.spines["bottom"].set_color("#cccccc")
    axis.set_title("clean test accuracy (%)", fontsize=10, color=INK, loc="left")


# --- figures of the paper --------------------------------------------------------------------


def draw_paper(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Read the table, see that its cells are there, draw."""
    draw, sets = PAPER[arguments.figure]
    table = tables.read(arguments.table, quick=arguments.quick, overrides=tuple(settings))
    cells = list(tables.Planner(table).cells())
    require(cells, arguments, settings, sets)
    data = Path(table.settings.get("data", table.dataset)).stem
    path = Path(arguments.out or f"results/figures/{arguments.figure}-{data}.png")
    save(draw(table, cells, data, arguments), path)
    print(path, file=sys.stderr)


def require(cells: list[tables.Cell], arguments: argparse.Namespace, settings: list[str],
            sets: bool) -> None:
    """Raise UserError unless every cell has its record (and `sets`: its sets and checkpoint).
    With --quick, run_table.py makes them first."""
    committed = records.committed()
    missing = tables.wanted(cells, committed, sets=sets)
    if missing and arguments.quick:
        run_table(words_of(arguments, settings, sets))
        missing = tables.wanted(cells, committed, sets=sets)
    if missing:
        broken = sum(bool(tables.wanted([cell], committed, sets=sets)) for cell in cells)
        raise UserError(
            f"{arguments.figure}: {broken} of {len(cells)} cells of {arguments.table} lack their "
            f"record{', sets or checkpoint' if sets else ''} ({len(missing)} artefacts); "
            f"python scripts/run_table.py {' '.join(words_of(arguments, settings, sets))} makes "
            "them")


def run_table(words: list[str]) -> None:
    """scripts/run_table.py; Ctrl-C reaches it through us, once, and its commands save."""
    process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("run_table.py")),
                                *words], start_new_session=True)
    try:
        process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise


def words_of(arguments: argparse.Namespace, settings: list[str], sets: bool) -> list[str]:
    """Of run_table.py."""
    return [arguments.table, *["--quick"] * arguments.quick, *["--sets"] * sets, *settings]


def print_points(found: list[Point]) -> None:
    print("| poison | purifier | KLD reached (nats) | PSNR to poisoned (dB) | PSNR to clean (dB) | "
          "accuracy (%) |\n" + "|---" * 6 + "|")
    for point in found:
        numbers = [f"{value:.2f}" if value is not None else ""
                   for value in (point.kld, point.psnr_poisoned, point.psnr_clean)]
        print(f"| {point.row} | {point.family} {point.value} | {' | '.join(numbers)} | "
              f"{records.spread(point.accuracies)} |")


def title_of(name: str) -> str:
    return TITLES.get(name, name)


def seeds_of(table: tables.Table) -> str:
    return f"{len(table.seeds)} seed{'s' if len(table.seeds) > 1 else ''}"


def swept(measured: list[Point], row: str, family: str, by: str) -> list[Point]:
    """The points of one line, in the order of `by`, as far as they have it."""
    line = [point for point in measured if (point.row, point.family) == (row, family)
            and point.value and math.isfinite(getattr(point, by) or math.inf)]
    return sorted(line, key=lambda point: getattr(point, by))


def references(axis, measured: list[Point], rows: dict[str, str]) -> None:
    """Dotted lines at the accuracies without a purifier: {row: colour}."""
    for point in measured:
        if point.psnr_poisoned is None and point.row in rows:
            axis.axhline(point.accuracy, color=rows[point.row], linewidth=0.9, linestyle=":")
            name = "clean" if point.psnr_clean is None else f"{title_of(point.row)}, not purified"
            axis.annotate(name, (1, point.accuracy), xycoords=("axes fraction", "data"),
                          xytext=(-2, 2), textcoords="offset points", fontsize=7.5,
                          color=rows[point.row], ha="right", va="bottom")


def accuracy_limits(axis, measured: list[Point]) -> None:
    """From a little under the lowest accuracy to a little over 100 %."""
    axis.set_ylim(max(0, min(min(point.accuracies) for point in measured) - 8), 103)


def accuracy_line(axis, line: list[Point], by: str, colour: str) -> None:
    """Accuracy against `by`, with the spread over seeds where there are several."""
    x, y = [getattr(point, by) for point in line], [point.accuracy for point in line]
    errors = [statistics.stdev(point.accuracies) if len(point.accuracies) > 1 else 0
              for point in line]
    axis.errorbar(x, y, errors if any(errors) else None, color=colour, linewidth=1.6, marker="o",
                  markersize=4, elinewidth=0.8)


def draw_rate(table: tables.Table, cells: list[tables.Cell], data: str, arguments) -> object:
    """PSNR and accuracy against the KL divergence that VAEs reached."""
    measured = points(table, cells)
    print_points(measured)
    lines = {row.name: swept(measured, row.name, "vae", "kld") for row in table.rows}
    lines = {row: line for row, line in lines.items() if line}
    colours = dict(zip(lines, SERIES, strict=False))
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11.4, 4), gridspec_kw={"wspace": 0.52})
    kept, learnt = [], []           # labels
    for row, line in lines.items():
        klds, colour = [point.kld for point in line], colours[row]
        for key, style, to in (("psnr_poisoned", "-", "poisoned"), ("psnr_clean", "--", "clean")):
            values = [getattr(point, key) for point in line]
            left.plot(klds, values, style, color=colour, linewidth=1.6, marker="o", markersize=4)
            kept.append((values[-1], f"{title_of(row)}, to {to}", colour))
        accuracy_line(right, line, "kld", colour)
        learnt.append((line[-1].accuracy, title_of(row), colour))
    references(right, measured, {"clean": MUTED, **colours})
    klds = [point.kld for line in lines.values() for point in line]
    left.set_ylabel("PSNR of the reconstruction (dB)")
    right.set_ylabel("clean test accuracy (%)")
    accuracy_limits(right, measured)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 4, 8) if min(klds) / 2 < tick < max(klds) * 2]
    for axis, labels in ((left, kept), (right, learnt)):
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlim(min(klds) / 1.15, max(klds) * 1.05)
        axis.set_xlabel("KLD reached (nats per latent position)")
        axis_style(axis)
        end_labels(axis, max(klds), labels)
    left.set_title(f"VAEs on poisoned {data}, {seeds_of(table)}: what is kept ...", fontsize=10,
                   color=INK, loc="left")
    right.set_title("... and what a classifier learns from it", fontsize=10, color=INK, loc="left")
    return figure


def draw_trade_off(table: tables.Table, cells: list[tables.Cell], data: str, arguments) -> object:
    """Accuracy against PSNR: a line for each purifier with a strength."""
    measured, by = points(table, cells), f"psnr_{arguments.to}"
    print_points(measured)
    rows = [row.name for row in table.rows
            if any(point.value for point in measured if point.row == row.name)]
    figure, axes = pyplot().subplots(1, len(rows), figsize=(5.6 * len(rows), 4.2), squeeze=False,
                                     sharey=True, gridspec_kw={"wspace": 0.1})
    for axis, row in zip(axes[0], rows, strict=True):
        for i, family in enumerate(dict.fromkeys(column.family for column in table.columns)):
            line = swept(measured, row, family, by)
            if not line:
                continue
            colour = COLOURS.get(family, PLAIN)
            accuracy_line(axis, line, by, colour)
            for point in line:
                axis.annotate(point.value, (getattr(point, by), point.accuracy), fontsize=7.5,
                              color=colour, xytext=(-3 if i % 2 else 3, 3), va="bottom",
                              ha="right" if i % 2 else "left", textcoords="offset points")
            over = next(column.variables for column in table.columns if column.family == family)
            strength = " and ".join(STRENGTHS.get(name, name) for name in over)
            axis.plot([], [], color=colour, marker="o", markersize=4, linewidth=1.6,
                      label=f"{title_of(family)}, at its {strength}")
        references(axis, measured, {"clean": MUTED, row: BAD})
        axis.legend(fontsize=8.5, loc="lower left", labelcolor="linecolor", framealpha=1,
                    edgecolor="white")
        axis.margins(x=0.08)
        axis.set_xlabel(f"PSNR to the {arguments.to} image (dB)")
        accuracy_limits(axis, measured)
        axis_style(axis)
        axis.set_title(f"{title_of(row)} on {data}, {seeds_of(table)}", fontsize=10, color=INK,
                       loc="left")
    axes[0][0].set_ylabel("clean test accuracy (%)")
    return figure


def draw_epochs(table: tables.Table, cells: list[tables.Cell], data: str, arguments) -> object:
    """Accuracy after every epoch of training, poisoned and purified."""
    found = curves(cells)
    rows = [row.name for row in table.rows if sum(key[0] == row.name for key in found) > 1]
    alone = {key: curve for key, curve in found.items() if key[0] not in rows}
    figure, axes = pyplot().subplots(1, len(rows), figsize=(5.4 * len(rows), 3.9), squeeze=False,
                                     sharey=True, gridspec_kw={"wspace": 0.32})
    print("| trained on | " + " | ".join(
        f"epoch {epoch:.0f}" for epoch in next(iter(found.values()))[0, :, 0]) + " |")
    print("|---" * (next(iter(found.values())).shape[1] + 1) + "|")
    for key, curve in found.items():
        print(f"| {' x '.join(key)} | " + " | ".join(f"{v:.1f}" for v in curve[..., 1].mean(0))
              + " |")
    for axis, row in zip(axes[0], rows, strict=True):
        labels = []
        for key, curve in (alone | {k: v for k, v in found.items() if k[0] == row}).items():
            own = key[0] == row
            colour = COLOURS.get(key[1], PLAIN) if own else MUTED
            means = curve[..., 1].mean(0)
            for seed in curve:
                axis.plot(*seed.T, color=colour, linewidth=0.7, alpha=0.5)
            axis.plot(curve[0, :, 0], means, color=colour, linewidth=1.8)
            labels.append((means[-1], title_of(key[1] if own else key[0]), colour))
        axis.set_ylim(0, 103)
        axis.set_xlim(1, curve[0, -1, 0])
        axis.set_xlabel("epoch of training")
        axis_style(axis)
        axis.set_title(f"{title_of(row)} on {data}, {seeds_of(table)}", fontsize=10, color=INK,
                       loc="left")
        end_labels(axis, curve[0, -1, 0], labels)
    axes[0][0].set_ylabel("clean test accuracy (%)")
    return figure


# --- fig4 ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strip:
    """A row of fig4: some images at one point of the way, float (n, H, W, 3)."""

    label: str
    images: np.ndarray | None       # in [0, 1]; None: it is no image
    residual: np.ndarray | None     # to clean; None: it is the clean image


def strips_of(cells: list[tables.Cell], root: str, rows: slice) -> list[Strip]:
    """Of one poison: clean, then each column's set with its accuracy, and p_hat before the set of
    the column that saved it."""
    clean = None
    strips = []
    for ((cell, record),) in records_of(cells).values():
        chain = sets_of(cell.record)
        final = ImageSet.load(chain[-1].out)
        if clean is None:
            clean = clean_of(final, root).images[rows] / 255.0
            strips.append(Strip("clean", clean, None))
        saved = chain[-1].out / "p_hat1.npy"
        if saved.exists():
            p_hat = np.load(saved, mmap_mode="r")[rows].astype(np.float64)
            strips.append(Strip("p_hat of stage 1", None, p_hat))
        name = "x0" if len(chain) == 1 else cell.column.name
        images = final.images[rows] / 255.0
        strips.append(Strip(f"{name}\n{100 * record['accuracy_last']:.1f} %", images,
                            images - clean))
    return strips


def common_scale(strips: list[Strip]) -> tuple[float, list[np.ndarray]]:
    """One gain around mid-grey for all residuals, which clips 2 % of their values, and these in
    [0, 1]."""
    residuals = [strip.residual for strip in strips if strip.residual is not None]
    gain = 0.5 / max(np.quantile(np.abs(residuals), 0.98), 1e-9)
    return gain, [np.clip(0.5 + gain * residual, 0, 1) for residual in residuals]


def own_scales(strips: list[Strip]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The gain of every residual (n,), and these from their own minimum (0) to maximum (1)."""
    residuals = [strip.residual for strip in strips if strip.residual is not None]
    low = [residual.min(axis=(1, 2, 3), keepdims=True) for residual in residuals]
    reach = [np.maximum(residual.max(axis=(1, 2, 3), keepdims=True) - start, 1e-9)
             for residual, start in zip(residuals, low, strict=True)]
    scaled = [(residual - start) / r
              for residual, start, r in zip(residuals, low, reach, strict=True)]
    return [1 / r.ravel() for r in reach], scaled


def draw_stages(table: tables.Table, cells: list[tables.Cell], data: str, arguments) -> object:
    """Images and residuals stage by stage."""
    rows = slice(arguments.first, arguments.first + arguments.images)
    groups = [[cell for cell in cells if cell.row is row and cell.seed == table.seeds[0]]
              for row in table.rows]
    drawn = {title_of(group[0].row.name): strips_of(group, table.settings.get("root", "data"), rows)
             for group in groups}
    count = len(next(iter(drawn.values()))[0].images)
    if count == 0:
        raise UserError(f"--first {arguments.first} --images {arguments.images}: no such rows")
    lengths = [len(strips) for strips in drawn.values()]
    figure, axes = pyplot().subplots(
        len(drawn), 3, figsize=(3 * (0.72 * count + 0.5), 0.72 * sum(lengths) + 0.5 * len(drawn)),
        squeeze=False, gridspec_kw={"wspace": 0.08, "hspace": 0.14, "height_ratios": lengths})
    print("| poison | strip | mean abs. residual (/255) | common gain | own gains |\n" + "|---" * 5
          + "|")
    for (name, strips), (left, middle, right) in zip(drawn.items(), axes, strict=True):
        blank = np.ones_like(strips[0].images)
        gain, common = common_scale(strips)
        gains, own = own_scales(strips)
        show_strips(left, [(strip.label, blank if strip.images is None else strip.images)
                           for strip in strips])
        show_strips(middle, [("", blank), *(("", image) for image in common)])
        reach = [dict.fromkeys((f"{g.min():.1f}", f"{g.max():.1f}")) for g in gains]
        show_strips(right, [("", blank), *((f"× {' to '.join(ends)}", image)
                                           for ends, image in zip(reach, own, strict=True))])
        right.yaxis.tick_right()
        left.set_title(f"{name} on {data}, seed {table.seeds[0]}; %: clean test accuracy after "
                       "training on such images", fontsize=10, color=INK, loc="left")
        for axis, text in (
                (middle, f"residual to clean, all × {gain:.1f}\naround mid-grey"),
                (right, "each from its own minimum (black)\nto its maximum (white), × its gain")):
            axis.text(0, len(blank[0]) / 2, text, fontsize=8, color=INK, va="center")
        for strip, own_gain in zip(strips[1:], gains, strict=True):
            size = 255 * np.abs(strip.residual).mean()
            print(f"| {name} | {strip.label.splitlines()[0]} | {size:.1f} | {gain:.1f} | "
                  f"{own_gain.min():.1f} to {own_gain.max():.1f} |")
    return figure


# name -> how it is drawn, and whether it reads sets and checkpoints beside the records
PAPER = {"fig2a": (draw_rate, True), "fig2b": (draw_trade_off, True), "fig3": (draw_epochs, False),
         "fig4": (draw_stages, True), "fig5": (draw_trade_off, True)}


if __name__ == "__main__":
    sys.exit(main())
