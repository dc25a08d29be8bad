"""Pictures of sets and records.

    python scripts/figures.py grid SET [SET ...] [--out grid.png] [--images 8] [--first 0]
    python scripts/figures.py quickstart FOLDER

`grid` draws a row of clean images, then for each set its images and their residual to clean.
`quickstart` prints the table of scripts/quickstart.sh and draws `quickstart.png` in its folder.
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core import records
from core.command import command
from core.datasets import DataSettings, load
from core.errors import UserError
from core.imageset import ImageSet

GAINS = (10, 5, 2, 1)           # residual magnifications to choose from
INK, MUTED, GOOD, BAD, PLAIN = "#222222", "#777777", "#2a7f62", "#b3403a", "#5b7ea4"


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
    arguments = parser.parse_args(argv)
    if arguments.figure == "grid":
        draw_grid(arguments)
    else:
        draw_quickstart(Path(arguments.folder))


# --- grid ------------------------------------------------------------------------------------


def draw_grid(arguments: argparse.Namespace) -> None:
    sets = {name_of(path): ImageSet.load(path) for path in arguments.sets}
    clean = clean_of(next(iter(sets.values())), arguments.root)
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


def name_of(path: str) -> str:
    return Path(path).name


def clean_of(poisoned: ImageSet, root: str) -> ImageSet:
    """The untouched set that a set was made from, row for row."""
    spec = {"split": "train", **poisoned.meta["root"]}
    return load(DataSettings(**spec, root=root)).first(len(poisoned))


def image_strips(clean: ImageSet, sets: dict[str, ImageSet], rows: slice
                 ) -> list[tuple[str, np.ndarray]]:
    """(label, (n, H, W, 3) in [0, 1]) for every row of the picture."""
    original = clean.images[rows] / 255.0
    strips = [("clean", original)]
    for name, other in sets.items():
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
        print(f"| {titles[name]} | {spread(accuracies[titles[name]])} | {own:.1f} |")
    print(f"\ndigits, ResNet-18 of width 8, last epoch, n = {runs} "
          f"seed{'s' if runs > 1 else ''}. LSP's budget here is four times the papers': such "
          "easy, high-contrast images are not poisoned by less.")

    plt = pyplot()
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, 4.4), gridspec_kw={"width_ratios": [1.75, 1], "wspace": 0.32})
    seed = sorted(folder.glob("seed*"))[0]
    sets = {"poisoned": ImageSet.load(seed / "lsp"), "purified": ImageSet.load(seed / "dvae")}
    show_strips(left, image_strips(clean_of(sets["poisoned"], "data"), sets, slice(0, 9)))
    left.set_title("LSP on digits, purified by D-VAE", fontsize=10, color=INK, loc="left")
    show_bars(right, accuracies)
    save(figure, folder / "quickstart.png")
    print(folder / "quickstart.png", file=sys.stderr)


def spread(values: list[float]) -> str:
    """'95.1 ± 0.4 (3)', or '95.1' for a single run."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)})"


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


# --- matplotlib ------------------------------------------------------------------------------


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight", facecolor="white")


if __name__ == "__main__":
    sys.exit(main())
