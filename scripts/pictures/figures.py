"""Pictures of sets and records.

    python scripts/figures.py grid [NAME=]SET [...] [--out grid.png] [--images 8] [--first 0]
    python scripts/figures.py quickstart FOLDER
    python scripts/figures.py fig2a [--quick] [key=value ...] [--table TABLE.yaml] [--out PNG]
    (fig2a, fig2b, fig3, fig4, fig5, le_fig2, le_fig3, le_fig3_images, guidance, t_star)

`grid` draws a row of clean images, then for each set its images and their residual to clean.
`quickstart` prints the table of scripts/quickstart.sh and draws `quickstart.png` in its folder.
The others are the papers' figures, each over the cells of configs/tables/<figure>.yaml: they print
the numbers to stdout. What is missing is named, and made by scripts/run_table.py with --quick (on
digits, small). key=value are run_table's (data=, root=, threads=). D-VAE's toy: scripts/toy.py.

    fig2a       D-VAE: PSNR and accuracy against the KL divergence that VAEs reached
    fig2b       D-VAE: accuracy against PSNR, VAEs and JPEG
    fig3        D-VAE: accuracy after every epoch of training, poisoned and purified
    fig4        D-VAE: images and residuals stage by stage
    fig5        D-VAE: accuracy against PSNR, VAEs and auto-encoders
    le_fig2     LE: images purified with a prior of like and of other data
    le_fig3     LE: pass by pass, with and without the joint condition: PSNR, LPIPS, accuracy
    le_fig3_images      and the images, of the same table
    guidance    PSNR, LPIPS and accuracy against JCDP's strength
    t_star      and against its t*
"""

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

from core import processes, records
from core.command import command
from core.config import expand
from core.datasets import clean_of
from core.errors import UserError
from core.imageset import ImageSet
from core.names import markdown_cell
from scripts.pictures.charts import draw_epochs, draw_rate, draw_sweep, draw_trade_off, title_of
from scripts.pictures.strips import common_scale, image_strips, own_scales, show_strips, strips_of
from scripts.pictures.style import BAD, GOOD, INK, MUTED, PLAIN, picture_path, pyplot, save
from scripts.tables import plan, spec

MOST_IMAGES = 100       # side by side: three such strips are as wide as matplotlib draws


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python scripts/figures.py",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = parser.add_subparsers(dest="figure", required=True)
    grid = figures.add_parser("grid", help="rows of images with residuals")
    grid.add_argument("sets", nargs="+", metavar="[NAME=]SET", help="ImageSet folders, perhaps "
                      "named; else a row is called after the set's methods")
    grid.add_argument("--out", type=expand, default="grid.png", help="the PNG to write")
    grid.add_argument("--images", type=int, default=8, help="images a row")
    grid.add_argument("--first", type=int, default=0, help="row number of the first image")
    grid.add_argument("--root", type=expand, default="data",
                      help="where torchvision's data sets are")
    quick = figures.add_parser("quickstart", help="table and picture of the quickstart")
    quick.add_argument("folder", type=expand, help="what scripts/quickstart.sh wrote")
    for name, (draw, _) in PAPER.items():
        paper = figures.add_parser(name, help=draw.__doc__.splitlines()[0])
        paper.add_argument("--quick", action="store_true",
                           help="digits, small; what is missing is made")
        table = name.removesuffix("_images")
        paper.add_argument("--table", default=f"configs/tables/{table}.yaml", metavar="TABLE.yaml")
        paper.add_argument("--out", type=expand,
                           help="the PNG to write (results/figures/NAME-DATA.png)")
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
    out, sets = picture_path(arguments.out), load_alike(arguments.sets)
    clean = clean_of(sets[0][1], arguments.root)
    rows = rows_of(arguments)
    if arguments.first >= len(clean):
        raise UserError(f"--first {arguments.first}: the set has rows 0 to {len(clean) - 1}")
    strips = image_strips(clean, sets, rows)
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(0.95 * arguments.images + 1.6, 0.95 * len(strips) + 0.2))
    show_strips(axis, strips)
    save(figure, out)
    print(arguments.out)


def rows_of(arguments: argparse.Namespace) -> slice:
    """--first and --images, as many as a picture can hold."""
    if arguments.first < 0 or not 1 <= arguments.images <= MOST_IMAGES:
        raise UserError(f"--first {arguments.first} --images {arguments.images}: rows count from "
                        f"0, and a picture has 1 to {MOST_IMAGES} images side by side")
    return slice(arguments.first, arguments.first + arguments.images)


def load_alike(words: list[str]) -> list[tuple[str, ImageSet]]:
    """(label, set) for each [NAME=]PATH: its name, or the methods behind it, or the path where two
    share them. Raises UserError unless all come from the same clean images."""
    pairs = [("", word) if Path(expand(word)).exists() else word.rpartition("=")[::2]
             for word in words]         # a path may have a `=` of its own
    given, paths = [name for name, _ in pairs], [expand(path) for _, path in pairs]
    sets = [ImageSet.load(path) for path in paths]
    names = [name or " > ".join(other.made_by) or Path(path).name
             for name, path, other in zip(given, paths, sets, strict=True)]
    for path, other in zip(paths, sets, strict=True):
        for what, ours, first in (("images", other.images.shape, sets[0].images.shape),
                                  ("root", other.meta["root"], sets[0].meta["root"]),
                                  ("root_digest", other.meta.get("root_digest"),
                                   sets[0].meta.get("root_digest"))):
            if ours != first and None not in (ours, first):     # older sets have no digest
                raise UserError(f"{path} has {what} {ours}, but {paths[0]} has {first}: a grid "
                                "shows the same clean images in every row")
    return [(name if names.count(name) == 1 else path, found)
            for name, path, found in zip(names, paths, sets, strict=True)]


# --- quickstart ------------------------------------------------------------------------------


def draw_quickstart(folder: Path) -> None:
    found: dict[str, list[dict]] = {}
    for path, record in records.find(folder):
        found.setdefault(path.name, []).append(record)
    order = [name for name in ("clean", "lsp", "gray", "jpeg", "dvae") if name in found]
    if not order:
        raise UserError(f"{folder}: no records; run scripts/quickstart.sh first")
    titles = {"clean": "clean", "lsp": "LSP", "gray": "LSP, gray", "jpeg": "LSP, JPEG",
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
    table = spec.read_one(arguments.table, quick=arguments.quick, overrides=tuple(settings))
    cells = list(plan.Planner(table).cells())
    data = Path(table.settings.get("data", table.dataset)).stem
    path = picture_path(arguments.out or f"results/figures/{arguments.figure}-{data}.png")
    require(cells, arguments, settings, sets)
    save(draw(table, cells, data, arguments), path)
    print(path, file=sys.stderr)


def require(cells: list[plan.Cell], arguments: argparse.Namespace, settings: list[str],
            sets: bool) -> None:
    """Raise UserError unless every cell has its record (and `sets`: its sets and checkpoint).
    With --quick, run_table.py makes them first."""
    committed = records.committed()
    missing = plan.wanted(cells, committed, sets=sets)
    if missing and arguments.quick:
        run_table(words_of(arguments, settings, sets))
        missing = plan.wanted(cells, committed, sets=sets)
    if missing:
        broken = sum(bool(plan.wanted([cell], committed, sets=sets)) for cell in cells)
        raise UserError(
            f"{arguments.figure}: {broken} of {len(cells)} cells of {arguments.table} lack their "
            f"record{', sets or checkpoint' if sets else ''} ({len(missing)} artefacts); "
            f"python scripts/run_table.py {' '.join(words_of(arguments, settings, sets))} makes "
            "them")


def run_table(words: list[str]) -> None:
    """scripts/run_table.py. Ctrl-C and SIGTERM reach it through us, and its commands save."""
    with processes.interruptible():
        process = processes.start([str(Path(__file__).parents[1] / "run_table.py"), *words])
        try:
            process.wait()
        except BaseException:
            processes.stop([process])
            raise


def words_of(arguments: argparse.Namespace, settings: list[str], sets: bool) -> list[str]:
    """Of run_table.py."""
    return [arguments.table, *["--quick"] * arguments.quick, *["--sets"] * sets, *settings]


# --- fig4 ------------------------------------------------------------------------------------


def draw_stages(table: spec.Table, cells: list[plan.Cell], data: str, arguments) -> object:
    """Images and residuals stage by stage."""
    rows = rows_of(arguments)
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
            print(f"| {markdown_cell(name)} | {markdown_cell(strip.label.splitlines()[0])} | "
                  f"{size:.1f} | {gain:.1f} | {own_gain.min():.1f} to {own_gain.max():.1f} |")
    return figure


# name -> how it is drawn, and whether it reads sets and checkpoints beside the records
PAPER = {"fig2a": (draw_rate, True), "fig2b": (draw_trade_off, True), "fig3": (draw_epochs, False),
         "fig4": (draw_stages, True), "fig5": (draw_trade_off, True),
         "le_fig2": (draw_stages, True), "le_fig3": (draw_sweep, True),
         "le_fig3_images": (draw_stages, True), "guidance": (draw_sweep, True),
         "t_star": (draw_sweep, True)}
