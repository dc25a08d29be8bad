"""The cells of a table with what their records say and what was published of them."""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from core import records
from core.checkpoint import history
from core.distributed import note
from core.methods import is_method
from scripts.tables import plan, published, wording
from scripts.tables.measure import mean
from scripts.tables.table import Table

# Points of accuracy that a poison costs an undefended classifier at least. Published ones cost 23
# and more; random signs, which are none, 0 to 1 (docs/results.md).
LEAST_COST = 5.0


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

    @classmethod
    def of(cls, block: str, row: str, column: str, kept: dict[Path, dict],
           facts: tuple[dict | None, list[dict]]) -> "Entry":
        """Of the records of a cell by their folders, and of `published.beside`."""
        found = kept.values()
        return cls(block, row, column, [100 * record["accuracy_last"] for record in found],
                   tuple(map(mean, zip(*map(seconds_of, found), strict=True))) or (None,) * 3,
                   "; ".join(dict.fromkeys(map(wording.saw, found))), *facts, tuple(kept),
                   best=probes_best(found))

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


def collect(table: Table, cells: list[plan.Cell],
            place_of: Callable[[plan.Cell], Path | None] | None = None) -> list[Entry]:
    """The table's cells in its order, derived columns last in each row. `place_of` finds the folder
    of a cell's record: if none is given, among those that are committed or made here."""
    place_of = place_of or functools.partial(place_here, committed=records.committed())
    kept: dict[tuple[str, str], dict[Path, dict]] = {}
    conditions, labels = {}, {}
    for cell in (cell for cell in cells if cell.table is table):
        key, job = (cell.row.name, cell.column.name), cell.record.job
        conditions[key] = published.conditions(job.method, job.config)
        labels[key] = records.label(job.method, job.config)
        place = place_of(cell)
        kept.setdefault(key, {}).update({place: records.load(place)} if place else {})
    find = functools.partial(published.beside, published.read(), table.dataset,
                             source=table.source)
    entries = []
    for row in table.rows:
        of_row = [Entry.of(table.block, *key, kept[key],
                           find(row.reported, column.reported, **conditions[key]))
                  for column in table.columns if (key := (row.name, column.name)) in kept]
        entries += of_row
        for derived in table.derived:
            among = [e for e in of_row if e.column in derived.max_of]
            if among:
                entries.append(best_of(among, derived.name, len(table.seeds),
                                       find(row.reported, (derived.name,),
                                            **conditions[row.name, among[0].column])))
    marks = marks_of(table, entries)

    def labelled(row: str, column: str) -> str:
        return records.labelled(column, labels.get((row, column), ""))

    return [dataclasses.replace(e, column=labelled(e.row, e.column),
                                chosen=labelled(e.row, e.chosen), mark=marks.get(e.row, ""))
            for e in entries]


def place_here(cell: plan.Cell, committed: dict[str, Path]) -> Path | None:
    """The folder of a cell's record, if it is there and whole."""
    place = plan.place_of(cell.record, committed)
    if place is None and cell.record.out.exists():
        note(f"{cell.record.out} is no whole record of {cell}: left out")
    return place


def best_of(among: list[Entry], name: str, seeds: int, facts: tuple[dict | None, list[dict]]
            ) -> Entry:
    """A derived column of a row: the best of these, once each has all its seeds."""
    if any(len(e.accuracies) < seeds for e in among):
        return Entry.of(among[0].block, among[0].row, name, {}, facts)
    best = max(among, key=lambda e: e.mean)
    reported, also = facts
    return dataclasses.replace(best, column=name, chosen=best.column, reported=reported, also=also)


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
