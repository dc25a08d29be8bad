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
import csv
import dataclasses
import functools
import io
import re
import shlex
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from core import records
from core.checkpoint import history
from core.command import Parser, command
from core.distributed import note, say
from core.methods import fact, find_method, is_method
from core.names import printable
from scripts.tables import estimates, noted, plan, spec, wording
from scripts.tables.measure import lines_of, mean, points
from scripts.tables.table import Choice, Line, Table
from scripts.tables.wording import ACCURACY, markdown_cell

# docs/reported.md says what its columns are
REPORTED = Path(__file__).resolve().parents[2] / "results/reported.csv"
HEAD = ("data", "poison", "defence", ACCURACY, "reported", "also published", "gap", "oracle",
        "training the purifier (s)", "purifying (s)", "training (s)", "the defence saw",
        "does it poison?")
# Points of accuracy that a poison costs an undefended classifier at least. Published ones cost 23
# and more; random signs, which are none, 0 to 1 (docs/results.md).
LEAST_COST = 5.0
ALWAYS = ("poison", "defence", ACCURACY)    # the others where some cell has them


@dataclass(frozen=True)
class Entry:
    """A cell over its seeds. Accuracies in percent."""

    block: str                      # the data set, where a table has several
    row: str
    column: str
    accuracies: list[float]
    # seconds of training the purifiers, of purifying the set and of training the classifier
    seconds: tuple[float | None, float | None, float | None]
    saw: str                        # what the defence learned from beside the set
    reported: dict | None
    also: list[dict]                # what else was published of it
    places: tuple[Path, ...] = ()   # of its records
    chosen: str = ""                # the column that an oracle chose
    mark: str = ""                  # of a row whose poison does not poison
    best: tuple[float, ...] = ()    # of linear probes, in their best epochs, as published ones are

    @property
    def mean(self) -> float | None:
        return statistics.mean(self.accuracies) if self.accuracies else None

    @property
    def gap(self) -> float | None:
        """Points above the published number; None if one of both is not there."""
        if self.reported is None or not self.accuracies:
            return None
        return statistics.mean(self.best or self.accuracies) - self.reported["accuracy"]

    @property
    def oracle(self) -> str:
        """What was chosen by test accuracy, in words."""
        if self.chosen:
            return f"† best of these: {self.chosen}"
        return f"gap of best epoch: {wording.spread(self.best)}" if self.best and self.reported \
            else ""


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
    parser.add_argument("--format", choices=("markdown", "csv", "latex"), default="markdown")
    parser.add_argument("--jobs", help=argparse.SUPPRESS)       # so that run_table's words fit
    for word in ("--sets", "--worker"):
        parser.add_argument(word, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args(argv)
    tables = spec.read(arguments.table, Choice.of(arguments), tuple(arguments.settings))
    cells = plan.cells_of(tables)
    writer = {"markdown": markdown, "csv": as_csv, "latex": latex}[arguments.format]
    if arguments.distances:
        kept = records.committed()
        found = {table.block: points(table, [
            cell for cell in cells if cell.table is table
            and not plan.wanted([cell], kept, sets=True)], perceptual=True) for table in tables}
        print(writer(*lines_of(found)), end="")
        return
    entries = [entry for table in tables for entry in collect(table, cells)]
    above = [header(table, cells, entries) for table in tables]
    if not any(e.accuracies for e in entries):
        words = [*Choice.of(arguments).words, *arguments.settings]
        entries = [e for e in entries if not arguments.wide and (e.reported or e.also)]
        above.append(unmeasured(tables, cells, [arguments.table, *words])
                     + ("; what stands below is published" if entries else ""))
    head, lines = (wide if arguments.wide else long)(entries)
    for text in filter(None, above):
        if arguments.format == "csv":           # whose reader expects the head first
            say(text)
        else:
            print(f"% {printable(text)}" if arguments.format == "latex" else f"{text}\n")
    if lines or arguments.format != "markdown":
        print(writer(head, lines), end="")
    if arguments.wide and arguments.format == "markdown" and any(e.mark for e in entries):
        print(f"\n‡ does not poison: undefended, it costs less than {LEAST_COST:g} points of the "
              "clean accuracy")


def unmeasured(tables: Iterable[Table], cells: list[plan.Cell], words: list[str]) -> str:
    """Of a table without a record: that it is one, and the line that makes it."""
    timings = estimates.Estimates()
    times = [timings.of(artefact) for artefact in plan.wanted(cells, {})]
    titles = "; ".join(dict.fromkeys(table.title for table in tables))
    others = noted.lines_of(words[0], but=shlex.join(words))
    return (f"{titles}: none of its {len(cells)} cells has a record yet. python "
            f"scripts/run_table.py {shlex.join(words)} makes them ({estimates.total(times)})"
            + (f"; what was run here of it: {'; '.join(others)}" if others else ""))


def header(table: Table, cells: list[plan.Cell], entries: list[Entry]) -> str:
    """What a smaller form of a table is of, and what was typed for its methods; '' for none."""
    last = [cell.record for cell in cells if cell.table is table]
    if not last or not (table.size or table.typed):
        return ""
    networks = dict.fromkeys(wording.network_text(record.job.config) for record in last)
    rows = sorted({record.rows for record in last})
    count = f"{rows[0]:,}" + (f" to {rows[-1]:,}" if len(rows) > 1 else "")
    counts = sorted({len(e.accuracies) for e in entries if e.block == table.block and e.accuracies})
    number = " to ".join(map(str, dict.fromkeys((*counts[:1], *counts[-1:])))) or "0"
    kind = {"quick": "A demonstration, not the paper's experiment: ",
            "small": "On a small scale: "}.get(table.size, "")
    typed = f"; with {' '.join(table.typed)}" if table.typed else ""
    return (f"{kind}{Path(table.settings.get('data', table.dataset)).stem}, {count} training "
            f"images; {', '.join(networks)}; n = {number}{typed}")


def published() -> list[dict]:
    """The published numbers: a dict each, without what its row leaves empty."""
    with open(REPORTED, newline="", encoding="utf-8") as file:
        facts = [{key: text for key, text in row.items() if text} for row in csv.DictReader(file)]
    return [{**fact, "accuracy": float(fact["accuracy"])} for fact in facts]


def collect(table: Table, cells: list[plan.Cell],
            place_of: Callable[[plan.Artefact], Path | None] | None = None) -> list[Entry]:
    """The table's cells in its order, derived columns last in each row. `place_of` finds the folder
    of a record: if none is given, among those that are committed or made here."""
    ours = place_of is None
    if ours:
        place_of = functools.partial(plan.place_of, committed=records.committed())
    found: dict[tuple[str, str], dict[Path, dict]] = {}
    measured, beside = {}, {}
    for cell in (cell for cell in cells if cell.table is table):
        key, job = (cell.row.name, cell.column.name), cell.record.job
        here = found.setdefault(key, {})
        measured[key] = (job.config.get("architecture", "resnet18"),
                         evaluation(job.method, job.config))
        beside[key] = records.label(job.method, job.config)
        place = place_of(cell.record)
        if place is not None:
            here[place] = records.load(place)
        elif ours and cell.record.out.exists():
            note(f"{cell.record.out} is no whole record of {cell}: left out")
    known = published()
    entries = []
    for row in table.rows:
        of_row = [entry(table, row, column, found[key], known, *measured[key])
                  for column in table.columns if (key := (row.name, column.name)) in found]
        entries += of_row
        for derived in table.derived:
            among = [e for e in of_row if e.column in derived.max_of]
            if not among:
                continue
            facts = facts_of(table, row.reported, (derived.name,), known)
            if any(len(e.accuracies) < len(table.seeds) for e in among):
                entries.append(Entry(table.block, row.name, derived.name, [], (None, None, None),
                                     "", *facts))
                continue
            best = max(among, key=lambda e: e.mean)
            entries.append(Entry(
                table.block, row.name, derived.name, best.accuracies, best.seconds,
                best.saw, *facts, best.places, chosen=best.column, best=best.best))
    marks = marks_of(table, entries)

    def labelled(row: str, column: str) -> str:
        return records.labelled(column, beside.get((row, column), ""))

    return [dataclasses.replace(e, column=labelled(e.row, e.column),
                                chosen=labelled(e.row, e.chosen), mark=marks.get(e.row, ""))
            for e in entries]


def marks_of(table: Table, entries: list[Entry]) -> dict[str, str]:
    """Row -> a mark, where its poison costs less than LEAST_COST, undefended."""
    means = {(e.row, e.column): e.mean for e in entries if e.mean is not None}
    clean, undefended = (next((line.name for line in lines if not line.steps and not line.learner),
                              None) for lines in (table.rows, table.columns))
    most = means.get((clean, undefended))
    if most is None:
        return {}
    costs = {row.name: most - means[row.name, undefended] for row in table.rows
             if row.name != clean and (row.name, undefended) in means}
    return {row: f"‡ no: {cost:.1f} points, undefended" for row, cost in costs.items()
            if cost < LEAST_COST}


def entry(table: Table, row: Line, column: Line, found: dict[Path, dict],
          published: list[dict], network: str, evaluated: str) -> Entry:
    kept = found.values()
    return Entry(
        table.block, row.name, column.name, [100 * record["accuracy_last"] for record in kept],
        tuple(map(mean, zip(*map(seconds_of, kept), strict=True))) or (None, None, None),
        "; ".join(dict.fromkeys(wording.saw(record) for record in kept)),
        *facts_of(table, row.reported, column.reported, published, network, evaluated),
        tuple(found), best=probes_best(kept))


def probes_best(found: Iterable[dict]) -> tuple[float, ...]:
    """Accuracies of linear probes in their best epochs; none of classifiers."""
    return tuple(100 * record["accuracy_best"] for record in found if record.get("probe"))


def seconds_of(record: dict) -> tuple[float | None, float | None, float]:
    """Seconds of training the purifiers (and what they were fine-tuned from), of purifying and of
    training the classifier; None where there was none, or a record of before does not know."""
    steps = [step for step in record["train"]["lineage"] if is_method("purifiers", step["method"])]
    trained = [one.get("seconds") for step in steps for one in history(step.get("trained_on"))]
    return total(trained), total([step.get("seconds") for step in steps]), record["seconds"]


def total(values: list[float | None]) -> float | None:
    """The sum, if all are known and there are any."""
    return sum(values) if values and None not in values else None


def facts_of(table: Table, attacks: tuple[str, ...], defences: tuple[str, ...],
             published: list[dict], network: str = "resnet18", evaluated: str = ""
             ) -> tuple[dict | None, list[dict]]:
    """What was published of a cell, for such a network and way of measuring: the number beside it
    (from the table's source if that has one, then from the attack's own paper, then from another)
    and all others. Those of further names than the first come last, and say theirs (`named`)."""
    facts = [{**fact, **other_names(fact, attacks, defences)} for fact in published
             if fact["dataset"] == table.dataset and fact["attack"] in attacks
             and filed_under(fact) in defences and fact.get("eval", "") == evaluated
             and plainly(fact["arch"]) == plainly(network)]
    facts.sort(key=lambda fact: ("named" in fact, fact["source"] != table.source,
                                 fact["kind"] != "paper", fact["source"].lower() != attacks[0]))
    if facts and "named" not in facts[0] and (facts[0]["source"] == table.source
                                              or facts[0]["kind"] == "paper"):
        return facts[0], facts[1:]
    return None, facts


def other_names(fact: dict, attacks: tuple[str, ...], defences: tuple[str, ...]
                ) -> dict[str, str]:
    """`named`: what a published number is filed under beside the cell's own names, if anything."""
    names = [name for name, own in ((fact["attack"], attacks), (filed_under(fact), defences))
             if name != own[0]]
    return {"named": ", ".join(names)} if names else {}


def evaluation(learner: str, values: dict) -> str:
    """What a published number of such a learner, with this config, has as its `eval`; '' for
    supervised training. Published probes saw clean images: one of released ones is beside none."""
    found = fact(find_method("learners", learner), "EVAL") if is_method("learners", learner) else ""
    released = values.get("probe", {}).get("data") == "released"
    return f"{found}, probe on released images" if released else found


def plainly(network: str) -> str:
    """'mobilenet_v2' and 'mobilenetv2' as one."""
    return network.replace("_", "").replace("-", "")


def filed_under(fact: dict) -> str:
    """The defence, with its diffusion model's training where that is part of the experiment."""
    return ", ".join(fact[key] for key in ("defence", "prior") if key in fact)


# --- lines -----------------------------------------------------------------------------------


def long(entries: list[Entry]) -> tuple[tuple[str, ...], list[list[str]]]:
    """One line a cell."""
    lines = []
    for e in entries:
        gap = "" if e.gap is None else f"{e.gap:+.1f}"
        lines.append([
            e.block, e.row, e.column, wording.spread(e.accuracies), number(e.reported),
            "; ".join(number(fact) for fact in e.also), gap, e.oracle,
            *("" if s is None else f"{s:.0f}" for s in e.seconds), e.saw, e.mark])
    used = [i for i, name in enumerate(HEAD) if name in ALWAYS or any(line[i] for line in lines)]
    return tuple(HEAD[i] for i in used), [[line[i] for i in used] for line in lines]


def wide(entries: list[Entry]) -> tuple[tuple[str, ...], list[list[str]]]:
    """One line a row of the table."""
    columns = {e.column: f"{e.column} † (oracle)" if e.chosen else e.column for e in entries}
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for e in entries:
        row = f"{e.row} ‡" if e.mark else e.row
        lines.setdefault((e.block, row), {})[e.column] = wording.spread(e.accuracies)
    several = any(e.block for e in entries)
    head = (*(("data",) if several else ()), "poison", *columns.values())
    return head, [[*((block,) if several else ()), row, *(cells.get(name, "") for name in columns)]
                  for (block, row), cells in lines.items()]


def number(fact: dict | None) -> str:
    """'93.1 LE T3', with its own spread and what is special about it."""
    if fact is None:
        return ""
    sd = f" ± {fact['sd']}" if "sd" in fact else ""
    marks = [*(["oracle"] if fact.get("oracle") else []), *([fact["variant"]] if "variant" in fact
             else []), *(["leaderboard"] if fact["kind"] == "leaderboard" else []),
             *([f"as {fact['named']}"] if "named" in fact else [])]
    mark = f" ({', '.join(marks)})" if marks else ""
    return f"{fact['accuracy']}{sd}{mark} {fact['source']} {fact['table']}"


# --- formats ---------------------------------------------------------------------------------


def markdown(head: tuple[str, ...], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(map(markdown_cell, row)) + " |\n" for row in rows)


def as_csv(head: tuple[str, ...], lines: list[list[str]]) -> str:
    """An accuracy stands in three columns there."""
    if ACCURACY in head:
        at = head.index(ACCURACY)
        head = (*head[:at], ACCURACY, "sd", "runs", *head[at + 1 :])
        lines = [[*line[:at], *apart(line[at]), *line[at + 1 :]] for line in lines]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [map(printable, row) for row in (head, *lines)])
    return text.getvalue()


def apart(spread: str) -> tuple[str, str, str]:
    """Mean, standard deviation and how many, of `wording.spread`."""
    if found := re.fullmatch(r"(\S+) ± (\S+) \((\d+)\)", spread):
        return found.groups()
    return ("", "", "0") if spread == "-" else (spread, "", "1")


def latex(head: tuple[str, ...], lines: list[list[str]]) -> str:
    """A booktabs tabular."""
    special = {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$", "†": r"$\dagger$",
               "‡": r"$\ddagger$", ">": "$>$", "$": r"\$", "{": r"\{", "}": r"\}", "<": "$<$",
               "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"}

    def row(cells) -> str:
        safe = ("".join(special.get(character, character) for character in printable(cell))
                for cell in cells)
        return " & ".join(safe) + r" \\" + "\n"

    return ("\\begin{tabular}{" + "l" * len(head) + "}\n\\toprule\n" + row(head) + "\\midrule\n"
            + "".join(map(row, lines)) + "\\bottomrule\n\\end{tabular}\n")
