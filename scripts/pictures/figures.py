"""Pictures of sets and records.

    python scripts/figures.py grid [NAME=]SET [...] [--out grid.png] [--images 8] [--first 0]
    python scripts/figures.py quickstart FOLDER
    python scripts/figures.py fig2a [--quick | --small] [key=value ...] [--table YAML] [--out PNG]
    (fig2a, fig2b, fig3, dvae_augmentation, fig4, fig5, le_fig2, le_fig3, le_fig3_images, guidance,
    t_star)

`grid` draws a row of clean images, then for each set its images and their residuals to clean, with
the accuracies that records below results/ and runs/ hold.
`quickstart` prints the table of scripts/quickstart.sh and draws `quickstart.png` in its folder.
The others are the papers' figures, each over the cells of configs/tables/<figure>.yaml: they print
the numbers to stdout. What is missing is named, and made by scripts/run_table.py with --quick (on
digits, small). key=value are run_table's (data=, root=, threads=). `--numbers FILE` draws a chart
from the numbers that it printed, without its records and sets. D-VAE's toy: scripts/toy.py.

    fig2a       D-VAE: PSNR and accuracy against the KL divergence that VAEs reached
    fig2b       D-VAE: accuracy against PSNR, VAEs and JPEG
    fig3        D-VAE: accuracy after every epoch of training, poisoned and purified
    dvae_augmentation   the same with UEraser's
    fig4        D-VAE: images and residuals stage by stage
    fig5        D-VAE: accuracy against PSNR, VAEs and auto-encoders
    le_fig2     LE: images purified with a prior of like and of other data
    le_fig3     LE: pass by pass, with and without the joint condition: PSNR, LPIPS, accuracy
    le_fig3_images      and the images, of the same table
    guidance    PSNR, LPIPS and accuracy against JCDP's strength
    t_star      and against its t*
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from core import ROOT, records
from core.command import Parser, command
from core.config import as_path, expand
from core.errors import UserError
from core.origins import clean_of
from scripts.pictures import bars, charts, grid, numbers, strips
from scripts.pictures.style import picture_path, save
from scripts.tables import measure, plan, processes, spec
from scripts.tables.table import Choice, Table

MOST_IMAGES = 100       # side by side


class Paper(NamedTuple):
    """A paper's figure: what it is drawn by, what is measured for it, and how that is printed."""

    draw: Callable
    measure: Callable           # (table, cells, arguments) -> numbers
    show: Callable              # prints them
    read: Callable | None       # and reads them back; None: they are images
    sets: bool = True           # needs sets and checkpoints, beside the records


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/figures.py", __doc__)
    figures = parser.add_subparsers(dest="figure", required=True)
    of_sets = figures.add_parser("grid", help="rows of images with residuals")
    of_sets.add_argument("sets", nargs="+", metavar="[NAME=]SET", help="ImageSet folders, perhaps "
                         "named; else a row is called after the set's methods")
    of_sets.add_argument("--out", type=expand, default="grid.png", help="the PNG to write")
    of_sets.add_argument("--images", type=int, default=8, help="images a row")
    of_sets.add_argument("--first", type=int, default=0, help="row number of the first image")
    of_sets.add_argument("--root", type=expand, default="data",
                         help="where torchvision's data sets are")
    quick = figures.add_parser("quickstart", help="table and picture of the quickstart")
    quick.add_argument("folder", type=expand, help="what scripts/quickstart.sh wrote")
    for name, figure in PAPER.items():
        paper = figures.add_parser(name, help=figure.draw.__doc__.splitlines()[0])
        Choice.add_to(paper)
        paper.add_argument("--table", default=f"configs/tables/{table_of(name)}.yaml",
                           metavar="TABLE.yaml")
        paper.add_argument("--out", type=expand, help="the PNG to write (runs/figures/"
                           "NAME-DATA.png; NAME-TABLE-DATA.png of another table)")
        if figure.read:
            paper.add_argument("--numbers", type=as_path, metavar="FILE",
                               help="what this figure printed: drawn in the place of the cells")
        if figure.draw is charts.draw_trade_off:
            paper.add_argument("--to", choices=("poisoned", "clean"), default="poisoned",
                               help="what PSNR is measured to")
        if figure.draw is strips.draw_stages:
            paper.add_argument("--images", type=int, default=4, help="images a strip")
            paper.add_argument("--first", type=int, default=0, help="row number of the first image")
    arguments, settings = parser.parse_known_args(argv)     # key=value may stand anywhere
    if settings and (arguments.figure not in PAPER
                     or any(word.startswith("-") for word in settings)):
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    if arguments.figure == "grid":
        make_grid(arguments)
    elif arguments.figure == "quickstart":
        make_quickstart(Path(arguments.folder))
    else:
        make_paper(arguments, settings)


def make_grid(arguments: argparse.Namespace) -> None:
    out, sets = picture_path(arguments.out), grid.load_alike(arguments.sets)
    clean = clean_of(sets[0][1], arguments.root)
    save(grid.draw_grid(clean, sets, chosen_rows(arguments)), out)
    print(arguments.out)


def make_quickstart(folder: Path) -> None:
    out, found = picture_path(folder / "quickstart.png"), bars.quickstart_records(folder)
    bars.print_quickstart(found)
    save(bars.draw_quickstart(folder, found), out)
    print(out, file=sys.stderr)


def chosen_rows(arguments: argparse.Namespace) -> slice:
    """--first and --images, as many as a picture can hold."""
    if arguments.first < 0 or not 1 <= arguments.images <= MOST_IMAGES:
        raise UserError(f"--first {arguments.first} --images {arguments.images}: rows count from "
                        f"0, and a picture has 1 to {MOST_IMAGES} images side by side")
    return slice(arguments.first, arguments.first + arguments.images)


# --- figures of the papers -------------------------------------------------------------------


def table_of(figure: str) -> str:
    """The table that a figure is of, by its name."""
    return figure.removesuffix("_images")


def default_out(figure: str, table: str, data: str) -> str:
    """Where a figure goes, as all work: to runs/, so that no committed one is replaced unasked. One
    of another table is no other version of it."""
    name = Path(table).stem
    other = "" if name == table_of(figure) else f"-{name}"
    return f"runs/figures/{figure}{other}-{data}.png"


def make_paper(arguments: argparse.Namespace, settings: list[str]) -> None:
    """Read the table, see that its cells are there, measure, print, draw."""
    figure = PAPER[arguments.figure]
    table = spec.read_one(arguments.table, Choice.of(arguments), tuple(settings))
    data = Path(table.settings.get("data", table.dataset)).stem
    path = picture_path(arguments.out or default_out(arguments.figure, table.path, data))
    if figure.read and arguments.numbers:
        found = figure.read(arguments.numbers, table)
    else:
        cells = plan.cells_of([table])
        require(cells, arguments, settings, figure.sets)
        found = figure.measure(table, cells, arguments)
        figure.show(found)
    save(figure.draw(table, found, data, arguments), path)
    print(path, file=sys.stderr)


def require(cells: list[plan.Cell], arguments: argparse.Namespace, settings: list[str],
            sets: bool) -> None:
    """Raise UserError unless every cell has its record (and `sets`: its sets and checkpoint).
    With --quick or --small, run_table.py makes them first."""
    committed = records.committed()
    missing = plan.wanted(cells, committed, sets=sets)
    if missing and arguments.size:
        run_table(words_of(arguments, settings, sets))
        missing = plan.wanted(cells, committed, sets=sets)
    if missing:
        broken = sum(bool(plan.wanted([cell], committed, sets=sets)) for cell in cells)
        raise UserError(
            f"{arguments.figure}: {broken} of {len(cells)} cells of {arguments.table} lack their "
            f"record{', sets or checkpoint' if sets else ''} ({len(missing)} artefacts); "
            f"python scripts/run_table.py {shlex.join(words_of(arguments, settings, sets))} makes "
            "them")


def run_table(words: list[str]) -> None:
    """scripts/run_table.py. Ctrl-C and SIGTERM reach it through us, and its commands save."""
    with processes.interruptible():
        process = processes.start([str(ROOT / "scripts/run_table.py"), *words])
        try:
            process.wait()
        except BaseException:
            processes.stop([process])
            raise


def words_of(arguments: argparse.Namespace, settings: list[str], sets: bool) -> list[str]:
    """Of run_table.py."""
    return [arguments.table, *Choice.of(arguments).words, *["--sets"] * sets, *settings]


# --- what each is ----------------------------------------------------------------------------


def points(table: Table, cells: list[plan.Cell], arguments) -> list[measure.Point]:
    return measure.points(table, cells)


def perceptual_points(table: Table, cells: list[plan.Cell], arguments
                      ) -> list[measure.Point]:
    return measure.points(table, cells, perceptual=True)


def curves(table: Table, cells: list[plan.Cell], arguments):
    return measure.curves(cells)


def stages(table: Table, cells: list[plan.Cell], arguments) -> dict[str, list[strips.Strip]]:
    return strips.stages(table, cells, chosen_rows(arguments))


EPOCHS = Paper(charts.draw_epochs, curves, numbers.print_curves, numbers.read_curves, sets=False)
TRADE_OFF = Paper(charts.draw_trade_off, points, numbers.print_points, numbers.read_points)
SWEEP = Paper(charts.draw_sweep, perceptual_points, numbers.print_points, numbers.read_points)
IMAGES = Paper(strips.draw_stages, stages, strips.print_stages, None)
PAPER = {
    "fig2a": Paper(charts.draw_rate, points, numbers.print_points, numbers.read_points),
    "fig2b": TRADE_OFF,
    "fig3": EPOCHS, "fig4": IMAGES, "fig5": TRADE_OFF, "dvae_augmentation": EPOCHS,
    "le_fig2": IMAGES, "le_fig3": SWEEP, "le_fig3_images": IMAGES,
    "guidance": SWEEP, "t_star": SWEEP,
}
