"""`figures.py quickstart`: the table of scripts/quickstart.sh, and its picture: images of every
stage over bars of accuracies."""

import statistics
from pathlib import Path

from core import records
from core.errors import UserError
from core.imageset import ImageSet
from core.origins import clean_of
from scripts.pictures import style
from scripts.pictures.strips import (
    Strip,
    common_gain,
    gain_text,
    show_rows,
    size_of,
    strip_of,
    tile_rows,
)
from scripts.tables import wording

NAMES = {"clean": "clean", "lsp": "LSP", "gray": "LSP, grey scale", "jpeg": "LSP, JPEG",
         "dvae": "LSP, D-VAE"}
COLOURS = {"clean": style.PLAIN, "LSP": style.BAD, "LSP, D-VAE": style.GOOD}
CHANCE = 10             # % of ten classes
IMAGES = 8


def quickstart_records(folder: Path) -> dict[str, list[dict]]:
    """Name -> its records, one a seed. Raises UserError where there are none."""
    found: dict[str, list[dict]] = {}
    for path in records.folders(folder):
        found.setdefault(path.name, []).append(records.load(path))
    if not any(name in found for name in NAMES):
        raise UserError(f"{folder}: no records; run scripts/quickstart.sh first")
    return {shown: found[name] for name, shown in NAMES.items() if name in found}


def percent(found: dict[str, list[dict]], key: str) -> dict[str, list[float]]:
    return {name: [100 * record[key] for record in group] for name, group in found.items()}


def print_quickstart(found: dict[str, list[dict]]) -> None:
    own = percent(found, "train_accuracy")
    print("| trained on | clean test accuracy (%) | on its own training set (%) |")
    print("|---|---|---|")
    for name, accuracies in percent(found, "accuracy_last").items():
        print(f"| {name} | {wording.spread(accuracies)} | {statistics.mean(own[name]):.1f} |")
    print(f"\ndigits, ResNet-18 of width 8, last epoch, n = {seeds_text(found)}. LSP's budget here "
          "is five times its paper's: such easy, high-contrast images are not poisoned by less.")


def seeds_text(found: dict[str, list]) -> str:
    runs = max(map(len, found.values()))
    return f"{runs} seed{'s' if runs > 1 else ''}"


def draw_quickstart(folder: Path, found: dict[str, list[dict]]):
    """Images of the first seed, or of the one that the folder is of, over all accuracies."""
    seed = min(folder.glob("seed*"), default=folder)
    poisoned, purified = ImageSet.load(seed / "lsp"), ImageSet.load(seed / "dvae")
    clean = clean_of(poisoned, "data").images[:IMAGES]
    strips = [Strip("clean", clean / 255, None), strip_of("LSP", poisoned.images[:IMAGES], clean),
              strip_of("LSP, D-VAE", purified.images[:IMAGES], clean)]
    gain = common_gain(strips)
    rows = tile_rows(strips, gain)
    width, height = size_of(rows)
    bars = 0.28 * len(found) + 0.5
    figure = style.sheet(height + bars + 0.8, width)
    tiles, axis = figure.subplots(2, 1, height_ratios=(height + 0.2, bars))
    show_rows(tiles, rows)
    style.title(tiles, gain_text(gain))
    show_bars(axis, percent(found, "accuracy_last"))
    style.head(figure, f"LSP on digits, purified by D-VAE, {seeds_text(found)}")
    return figure


def show_bars(axis, accuracies: dict[str, list[float]]) -> None:
    """One horizontal bar a name, as long as the mean, with every seed as a dot."""
    names = list(accuracies)[::-1]
    for y, name in enumerate(names):
        values = accuracies[name]
        axis.barh(y, statistics.mean(values), height=0.62, color=COLOURS.get(name, "#b9bfc6"))
        if len(values) > 1:
            axis.scatter(values, [y] * len(values), s=14, color="white", edgecolor=style.INK,
                         zorder=3, clip_on=False)
        axis.text(104, y, wording.spread(values), va="center", fontsize=style.TEXT,
                  color=style.INK)
    axis.axvline(CHANCE, color=style.INK, linewidth=1, linestyle=":")
    axis.annotate("chance", (CHANCE, 1), xycoords=("data", "axes fraction"), xytext=(3, 1),
                  textcoords="offset points", fontsize=style.TEXT, color=style.MUTED)
    axis.set_xlim(0, 100)
    axis.set_xticks([0, 25, 50, 75, 100])
    style.axis_style(axis)
    axis.set_yticks(range(len(names)), names, color=style.INK)
    axis.tick_params(axis="y", length=0, labelcolor=style.INK)
    axis.spines["left"].set_visible(False)
    several = any(len(values) > 1 for values in accuracies.values())
    axis.set_xlabel("clean test accuracy (%)" + (
        "; bar: mean, dot: a seed; ± standard deviation (seeds)" if several else ""))
