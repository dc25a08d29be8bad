"""Print a table from the records that are there.

    python scripts/table.py configs/tables/NAME.yaml [--small] [--wide | --distances] [--format csv]

One line a cell: clean test accuracy of the last epoch (mean ± sd over n seeds), the published
number and what else was published of it, the gap to the first, seconds (of training the purifier,
of purifying, of training the classifier), and what the defence saw beside the set that the
classifier is trained on. `oracle` marks numbers chosen by test accuracy (†), and ‡ the rows of a
poison that does not poison. Published numbers of linear probes are of their best epoch: so is the
gap to them.
--wide prints rows x columns. A smaller form says above the table what it is. --distances prints
PSNR and LPIPS to the clean images instead, and the share of the poison that is kept, of the sets
that are here.
"""

import argparse
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from core import records
from core.command import Parser, command
from core.distributed import note, say
from core.names import printable
from scripts.tables import estimates, formats, noted, plan, published, spec, wording
from scripts.tables.entries import LEAST_COST, Entry, collect
from scripts.tables.measure import lines_of, points
from scripts.tables.table import Choice, Table
from scripts.tables.wording import ACCURACY

HEAD = ("data", "poison", "defence", ACCURACY, "reported", "also published", "gap", "oracle",
        "training the purifier (s)", "purifying (s)", "training (s)", "the defence saw",
        "does it poison?")
ALWAYS = ("poison", "defence", ACCURACY)    # the others where some cell has them


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/table.py", __doc__)
    parser.add_argument("table", metavar="TABLE.yaml")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    Choice.add_to(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--wide", action="store_true", help="rows x columns, accuracies only")
    form.add_argument("--distances", action="store_true",
                      help="PSNR, LPIPS and what is kept of the poison, of the cells whose sets "
                      "are here")
    parser.add_argument("--format", choices=formats.WRITERS, default="markdown")
    parser.add_argument("--jobs", help=argparse.SUPPRESS)       # so that run_table's words fit
    for word in ("--sets", "--worker"):
        parser.add_argument(word, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(argv)
    choice, settings = Choice.of(arguments), tuple(arguments.settings)
    tables = spec.read(arguments.table, choice, settings)
    cells, words = plan.cells_of(tables), [arguments.table, *choice.words, *settings]
    if arguments.distances:
        above, head, lines = distances(tables, cells, words)
    else:
        above, head, lines = accuracies(tables, cells, words, wide if arguments.wide else long)
    for text in filter(None, above):
        if arguments.format == "csv":           # whose reader expects the head first
            say(text)
        else:
            print(f"% {printable(text)}" if arguments.format == "latex" else f"{text}\n")
    if lines or (head and arguments.format != "markdown"):
        print(formats.WRITERS[arguments.format](head, lines), end="")
    if arguments.wide and arguments.format == "markdown" and any(
            "‡" in cell for line in lines for cell in line[:2]):
        print(f"\n‡ does not poison: undefended, it costs less than {LEAST_COST:g} points of the "
              "clean accuracy")


Lines = tuple[list[str], tuple[str, ...], list[list[str]]]      # above the table, its head, lines


def accuracies(tables: tuple[Table, ...], cells: list[plan.Cell], words: list[str],
               form: Callable) -> Lines:
    """The table, as `long` or `wide` has it; what nobody measured yet, without its empty cells."""
    entries = [entry for table in tables for entry in collect(table, cells)]
    above = [header(table, cells, [len(e.accuracies) for e in entries if e.block == table.block])
             for table in tables]
    if not any(e.accuracies for e in entries):
        entries = [e for e in entries if form is long and (e.reported or e.also)]
        above.append(f"{unmeasured(tables, cells)} has a record yet. {made(cells, words)}"
                     + ("; what stands below is published" if entries else ""))
    return above, *form(entries)


def distances(tables: tuple[Table, ...], cells: list[plan.Cell], words: list[str]) -> Lines:
    """What `measure` finds of the sets that are here."""
    committed, found, above = records.committed(), {}, []
    there = [cell for cell in cells if not plan.wanted([cell], committed, sets=True)]
    for table in tables:
        found[table.block] = points(table, [cell for cell in there if cell.table is table],
                                    perceptual=True)
        above.append(header(table, cells, [len(point.accuracies) for point in found[table.block]]))
    if not any(found.values()):
        above = [f"{unmeasured(tables, cells)} has its record and sets here. "
                 + made(cells, [*words, "--sets"])]
        return above, (), []
    if len(there) < len(cells):
        note(f"{len(cells) - len(there)} of {len(cells)} cells have not all their sets here. "
             + made(cells, [*words, "--sets"]))
    return above, *lines_of(found)


def unmeasured(tables: Iterable[Table], cells: list[plan.Cell]) -> str:
    titles = "; ".join(dict.fromkeys(table.title for table in tables))
    return f"{titles}: none of its {len(cells)} cells"


def made(cells: list[plan.Cell], words: list[str]) -> str:
    """The line that makes a table, and how long that takes."""
    timings = estimates.Estimates()
    missing = plan.wanted(cells, records.committed(), sets="--sets" in words)
    times = [timings.of(artefact) for artefact in missing]
    others = noted.lines_of(words[0], but=shlex.join(words))
    return (f"python scripts/run_table.py {shlex.join(words)} makes them ({estimates.total(times)})"
            + (f"; what was run here of it: {'; '.join(others)}" if others else ""))


def header(table: Table, cells: list[plan.Cell], seeds: list[int]) -> str:
    """What a smaller form of a table is of, and what was typed for its methods; '' for none.
    `seeds`: how many each cell has."""
    last = [cell.record for cell in cells if cell.table is table]
    if not last or not (table.size or table.typed):
        return ""
    networks = dict.fromkeys(wording.network_text(record.job.config) for record in last)
    rows = sorted({record.rows for record in last})
    count = f"{rows[0]:,}" + (f" to {rows[-1]:,}" if len(rows) > 1 else "")
    counts = sorted(set(seeds) - {0})
    number = " to ".join(map(str, dict.fromkeys((*counts[:1], *counts[-1:])))) or "0"
    kind = {"quick": "A demonstration, not the paper's experiment: ",
            "small": "On a small scale: "}.get(table.size, "")
    typed = f"; with {' '.join(table.typed)}" if table.typed else ""
    return (f"{kind}{Path(table.settings.get('data', table.dataset)).stem}, {count} training "
            f"images; {', '.join(networks)}; n = {number}{typed}")


# --- lines -----------------------------------------------------------------------------------


def long(entries: list[Entry]) -> tuple[tuple[str, ...], list[list[str]]]:
    """One line a cell."""
    lines = []
    for e in entries:
        gap = "" if e.gap is None else f"{e.gap:+.1f}"
        lines.append([
            e.block, e.row, e.column, wording.spread(e.accuracies), published.in_words(e.reported),
            "; ".join(map(published.in_words, e.also)), gap, e.oracle,
            *("" if s is None else f"{s:.0f}" for s in e.seconds), e.saw, e.mark])
    used = [i for i, name in enumerate(HEAD) if name in ALWAYS or any(line[i] for line in lines)]
    return tuple(HEAD[i] for i in used), [[line[i] for i in used] for line in lines]


def wide(entries: list[Entry]) -> tuple[tuple[str, ...], list[list[str]]]:
    """One line a row of the table."""
    oracles = {e.column for e in entries if e.chosen}       # one without numbers chose nothing
    columns = {e.column: f"{e.column} † (oracle)" if e.column in oracles else e.column
               for e in entries}
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for e in entries:
        row = f"{e.row} ‡" if e.mark else e.row
        lines.setdefault((e.block, row), {})[e.column] = wording.spread(e.accuracies)
    several = any(e.block for e in entries)
    head = (*(("data",) if several else ()), "poison", *columns.values())
    return head, [[*((block,) if several else ()), row, *(cells.get(name, "") for name in columns)]
                  for (block, row), cells in lines.items()]
