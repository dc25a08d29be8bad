"""What folders of results hold: tables of records beside published numbers, printed tables,
pictures.

A folder may have an `index.yaml`, as results/ has:

    tables      folder below it: {tables: [names in configs/tables], settings: [what is typed]}
    printed     FILE.md: {title, data, line}, of a table whose records were not kept
    retired     record: why no table reaches it
    copies      a file of images: the data set that it is a copy of

Records that no index speaks of stand in a table for each data set and protocol. A picture's caption
and line come from the first table of the README.md beside it (picture, what it is, line), its
numbers from NAME.md or NAME.txt.
"""

import contextlib
import io
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from core import config, records
from core.config import Node
from core.errors import UserError
from core.manual import typed
from core.methods import is_method
from core.remembered import NAMED
from scripts.report import prints
from scripts.tables import plan, published, spec, wording
from scripts.tables.entries import Entry, collect
from scripts.tables.measure import read_log
from scripts.tables.table import Choice
from scripts.tables.table import Table as Wanted

SECTIONS = ("tables", "printed", "retired", "copies", "data")     # `data`: core.outlines reads it


@dataclass(frozen=True)
class Kept:
    """A record, and what is known of how it was made."""

    place: Path
    record: dict
    log: list[dict]                 # of its training
    data: str                       # the data set, under its own name
    line: str                       # the shell line that makes it (in a table with all it needs)


@dataclass(frozen=True)
class Row:
    """A cell of a table: its numbers, and what it is found by."""

    entry: Entry
    attack: str
    defence: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Cells that have a record."""

    title: str
    data: str
    rows: list[Row]
    line: str = ""                  # that makes and prints all of it
    cells: int = 0                  # in all, also those without a record


@dataclass
class Folder:
    """A chapter of the page."""

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    printed: list[prints.Printed] = field(default_factory=list)
    pictures: list[prints.Picture] = field(default_factory=list)


@dataclass
class Results:
    folders: list[Folder] = field(default_factory=list)
    kept: dict[Path, Kept] = field(default_factory=dict)        # by folder
    left_out: list[str] = field(default_factory=list)           # damaged records, and why


@dataclass(frozen=True)
class IndexedTables:
    tables: tuple[str, ...]
    settings: tuple[str, ...] = ()


def gather(roots: Iterable[Path]) -> Results:
    """Everything below these folders. Raises UserError if one is none, if an index is wrong, or if
    there is nothing."""
    results = Results()
    for root in roots:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; name folders that hold records or pictures")
        add(root, results)
    if not results.folders:
        places = " and ".join(map(str, roots))
        raise UserError(f"{places}: no finished record, printed table or picture is below it; "
                        "evaluate.py and scripts/run_table.py write records")
    return results


@dataclass
class Root:
    """One of these folders while it is read."""

    place: Path
    index: dict[str, Node]
    records: dict[Path, dict]       # by folder
    folders: dict[str, Folder] = field(default_factory=dict)    # chapters, in their order
    reached: set[Path] = field(default_factory=set)             # records that a table has

    def folder_of(self, path: Path | str) -> Folder:
        """The chapter of a file below: the first folder on the way to it."""
        place = self.place / (Path(path).parts[:-1] or ["."])[0]
        return self.folders.setdefault(place.as_posix(),
                                       Folder(place.as_posix(), prints.heading(place)))


def add(place: Path, results: Results) -> None:
    root = Root(place, read_index(place), load_records(place, results))
    shown = add_tables(root, results)
    add_other_records(root, results)
    add_printed(root, shown, results)
    results.left_out += prints.unreadable(place)
    for path in prints.pictures(place):
        root.folder_of(path.relative_to(place)).pictures.append(prints.picture(path))
    results.folders += root.folders.values()


def add_tables(root: Root, results: Results) -> dict[str, str]:
    """The tables that the index names. Returns the titles of those whose printed form may lie
    there too, by its file."""
    places = {record["fingerprint"]: place for place, record in root.records.items()}
    shown = {}
    for where, entry in section_of(root.index, "tables", IndexedTables).items():
        for name in entry.tables:
            try:
                choice, settings = Choice.split(entry.settings)
                tables = spec.read(f"{spec.TABLES / name}.yaml", choice, settings)
                with contextlib.redirect_stderr(io.StringIO()):     # remarks to who makes the table
                    cells = plan.cells_of(tables)
            except UserError as error:
                raise UserError(f"{root.place / 'index.yaml'}: tables: {where}: {name} "
                                f"{' '.join(entry.settings)}: {error}") from None
            for cell in cells:
                place = places.get(cell.record.job.fingerprint)
                if place is not None and place not in root.reached:
                    root.reached.add(place)
                    keep(results, place, root.records[place], root.index, cell, entry)
            for table in tables:
                if (made := table_of(table, cells, places, entry, results)).rows:
                    root.folder_of(f"{where}/table.md").tables.append(made)
            shown |= dict.fromkeys((f"{where}/table.md", f"{where}.md"), tables[0].title)
    return shown


def add_other_records(root: Root, results: Results) -> None:
    """Those that no table has, chapter by chapter; retired ones stand apart."""
    reasons = {root.place / place: config.text(node)
               for place, node in spec.section(root.index, "retired").items()}
    rest: dict[str, dict[Path, dict]] = {}      # chapter -> its records
    for place, record in root.records.items():
        if place not in root.reached:
            keep(results, place, record, root.index)
            chapter = root.folder_of(place.relative_to(root.place)).name
            rest.setdefault(chapter, {})[place] = record
    for chapter, found in rest.items():
        for title, retired in (("Records", False), ("Retired records", True)):
            chosen = {place: record for place, record in found.items()
                      if (place in reasons) == retired}
            root.folders[chapter].tables += by_protocol(title, chosen, results, reasons)


def add_printed(root: Root, shown: dict[str, str], results: Results) -> None:
    """Tables of which the print was kept. `shown`: titles of those that stand here already."""
    titles = section_of(root.index, "printed", prints.About)
    for path in prints.documents(root.place):
        name = path.relative_to(root.place).as_posix()
        about = titles.get(name, prints.About(path.stem))
        try:
            found = list(prints.printed_in(path, about, shown.get(name)))
        except UserError as error:
            results.left_out.append(str(error))
        else:
            root.folder_of(name).printed += found


# --- the index -------------------------------------------------------------------------------


def read_index(root: Path) -> dict[str, Node]:
    """The sections of a folder's index.yaml; none without one."""
    path = root / "index.yaml"
    index = config.read_file(path).value if path.exists() else {}
    for key, node in index.items():
        if key not in SECTIONS:
            raise UserError(f"{node.origin}: unknown section '{key}'"
                            + config.suggest(key, SECTIONS))
    return index


def section_of(index: dict[str, Node], key: str, kind: type) -> dict:
    return {name: config.build(kind, node, name)
            for name, node in spec.section(index, key).items()}


def data_of(record: dict, index: dict[str, Node]) -> str:
    """The data set behind a record: by its own name, also of a copy that the index knows."""
    root = record["train"]["root"]["data"]
    copies = spec.section(index, "copies")
    return config.text(copies[root]) if root in copies else Path(root).stem


# --- records ---------------------------------------------------------------------------------


def load_records(root: Path, results: Results) -> dict[Path, dict]:
    """Every finished record below a folder that none before it has, each once. One that is damaged
    is left out, and said to be."""
    found, known = {}, {one.record["fingerprint"] for one in results.kept.values()}
    for folder in records.folders(root):
        try:
            record = records.load(folder)
        except UserError as error:
            results.left_out.append(str(error))
            continue
        if record["fingerprint"] not in known:
            found[folder] = record
            known.add(record["fingerprint"])
    return found


def keep(results: Results, place: Path, record: dict, index: dict[str, Node],
         cell: plan.Cell | None = None, entry: IndexedTables | None = None) -> None:
    """Remember a record with its log and the line that makes it again."""
    log = []
    if (place / "log.jsonl").exists():
        try:
            log = read_log(place)
        except UserError as error:
            results.left_out.append(str(error))
    line = line_of(["evaluate.py", f"{place}/config.yaml"])
    if cell is not None:
        line = table_line(cell.table.path, [        # the last of an option counts
            *entry.settings, f"--rows={cell.row.name}", f"--columns={cell.column.name}",
            f"--seeds={cell.seed}", "--anew"])
    results.kept[place] = Kept(place, record, log, data_of(record, index), line)


def line_of(words: list[str]) -> str:
    return shlex.join(["python", *words])


def table_line(path: str, words: Iterable[str]) -> str:
    return line_of(["scripts/run_table.py", path, *words])


def table_of(table: Wanted, cells: list[plan.Cell], places: dict[str, Path],
             entry: IndexedTables, results: Results) -> Table:
    """A table's cells that have a record."""
    entries = collect(table, cells, lambda cell: places.get(cell.record.job.fingerprint))
    derived = {line.name for line in table.derived}
    rows = [row_of(one, results.kept, oracle=one.column in derived) for one in entries
            if one.places]
    own = [cell for cell in cells if cell.table is table]
    data = next((results.kept[row.entry.places[0]].data for row in rows), table.dataset)
    return Table(table.title, data, rows, table_line(table.path, entry.settings),
                 len({(cell.row.name, cell.column.name) for cell in own}))


def row_of(entry: Entry, kept: dict[Path, Kept], *, oracle: bool = False, note: str = ""
           ) -> Row:
    attack, defence = methods_of(kept[entry.places[0]].record)
    return Row(entry, named(attack) or "clean",
               prints.ORACLE if oracle else named(defence) or "none", note)


def methods_of(record: dict) -> tuple[list[str], list[str]]:
    """The methods that made the set, and those that defended it: purifiers, and a learner that is
    not plain training."""
    steps = [step["method"] for step in record["train"]["lineage"]]
    purifiers = [method for method in steps if is_method("purifiers", method)]
    learner = record["learner"]
    return ([method for method in steps if method not in purifiers],
            purifiers + ([learner] if learner != "standard" else []))


def named(methods: list[str]) -> str:
    return " + ".join(wording.NAMES.get(method, method) for method in methods)


class Alike(NamedTuple):
    """What the records of one cell share."""

    methods: tuple[str, ...]
    keys: str                       # with their values (`keys_of`)
    reason: str                     # for which they are retired
    record: str = ""                # of one that stands alone: another has its seed


def by_protocol(title: str, found: dict[Path, dict], results: Results, reasons: dict[Path, str]
                ) -> Iterator[Table]:
    """A table for each data set, size and protocol of records that no table reaches, each of them
    once. Beside them stand published numbers, but not beside what was retired for a reason; beside
    rows of the same methods, the keys in which they differ."""
    groups: dict[tuple, dict[Alike, dict[Path, dict]]] = {}
    for place, record in sorted(found.items(), key=lambda it: it[1]["seed"]):
        made = {key: value for key, value in (record.get("overrides") or {}).items()
                if key != "test_every"}         # which changes no accuracy of the last epoch
        cells = groups.setdefault((results.kept[place].data, record["train"]["rows"],
                                   wording.protocol_text({**record, "overrides": made})), {})
        cell = Alike(tuple(step["method"] for step in record["train"]["lineage"]),
                     str(keys_of(record)), reasons.get(place, ""))
        if any(record["seed"] == one["seed"] for one in cells.get(cell, {}).values()):
            cell = cell._replace(record=record["fingerprint"])
        cells.setdefault(cell, {})[place] = record
    known = published.read()
    for (data, _, protocol), cells in sorted(groups.items()):
        apart = keys_apart({cell: next(iter(places.values())) for cell, places in cells.items()})
        listed = [row_of(entry_of(places, data if data in NAMED and not cell.reason else "", known),
                         results.kept, note=cell.reason or apart[cell])
                  for cell, places in sorted(cells.items())]
        yield Table(f"{title}, {protocol}", data, listed)


def keys_apart(cells: dict[Alike, dict]) -> dict[Alike, str]:
    """'jpeg.quality=10' for each cell: in what it differs from others of the same methods, as far
    as fits."""
    found = {}
    for cell, record in cells.items():
        others = [keys_of(other) for it, other in cells.items() if it.methods == cell.methods]
        apart = [f"{key}={typed(value)}" for key, value in keys_of(record).items()
                 if any(other.get(key, value) != value for other in others)]
        found[cell] = ", ".join(apart[:3] + [f"record {cell.record[:8]}"] * bool(cell.record))
    return found


def keys_of(record: dict) -> dict[str, object]:
    """The keys of all that a record is of, but for seeds: of what made its set, of what trained the
    purifiers as far as the record tells it, of its learner, and which images there were."""
    train = record["train"]
    keys = {"split": train["root"].get("split", ""), "test": record["test"]["root"]["data"]}
    for step in train["lineage"]:
        trained = (step.get("trained_on") or {}).get("config", {})
        keys |= {f"{step['method']}.{key}": value for key, value in step["config"].items()}
        keys |= {f"{step['method']}.train.{key}": value for key, value in trained.items()}
    return keys | {f"{record['learner']}.{key}": value for key, value in record["config"].items()
                   if key != "test_every"}


def entry_of(places: dict[Path, dict], dataset: str, known: list[dict]) -> Entry:
    """Records of one cell, seed by seed, as an entry of a table."""
    record = next(iter(places.values()))
    attack, defence = ("+".join(part) for part in methods_of(record))
    row, column = attack or "clean", defence or "none"
    facts = published.beside(known, dataset, (row,), (column,),
                             **published.conditions(record["learner"], record["config"]))
    return Entry.of("", row, column, places, facts)
