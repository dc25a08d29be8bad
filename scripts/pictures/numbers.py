"""The numbers that a chart printed, read back: so a picture can be drawn again without the sets
that it was measured on."""

import re
import statistics
from pathlib import Path

import numpy as np

from core.config import read_number, suggest
from core.errors import UserError
from core.names import printable
from scripts.tables import wording
from scripts.tables.formats import markdown, read_markdown
from scripts.tables.measure import COLUMNS, Point, lines_of
from scripts.tables.table import Table

SPREAD = re.compile(r"(?P<mean>\S+)(?: ± (?P<deviation>\S+) \((?P<count>\d+)\))?")


# --- printing --------------------------------------------------------------------------------


def print_points(found: list[Point]) -> None:
    """Of `measure.points`, as `table.py --distances` does."""
    print(markdown(*lines_of({"": found})), end="")


def print_curves(found: dict[tuple[str, str], np.ndarray]) -> None:
    """Of `measure.curves`; blank where one was not tested after an epoch."""
    epochs = sorted({epoch for curve in found.values() for epoch in curve[0, :, 0]})
    lines = []
    for key, curve in found.items():
        cells = dict(zip(curve[0, :, 0], map(wording.spread, curve[..., 1].T.tolist()),
                         strict=True))
        lines.append([" x ".join(key), *(cells.get(epoch, "") for epoch in epochs)])
    print(markdown(("trained on", *(f"epoch {epoch:.0f}" for epoch in epochs)), lines), end="")


# --- reading ---------------------------------------------------------------------------------


def read_points(path: Path, table: Table) -> list[Point]:
    """What print_points printed of this table. Raises UserError that names the line at fault."""
    columns = {f"{column.family} {' '.join(column.variables.values())}".strip(): column
               for column in table.columns}
    rows = {row.name: row for row in table.rows}
    found = []
    for line, cells in read_table(path, ["poison", "purifier", wording.ACCURACY]):
        for name, known in ((cells["poison"], rows), (cells["purifier"], columns)):
            if name not in known:
                raise UserError(f"{line}: {table.path} has no '{printable(name)}'"
                                + suggest(name, list(known)))
        column = columns[cells["purifier"]]
        values = {key: number_of(cells[name], line) for name, key in COLUMNS.items()
                  if cells.get(name)}
        found.append(Point(cells["poison"], column.family, " ".join(column.variables.values()),
                           read_spread(cells[wording.ACCURACY], line),
                           learner=bool(column.learner or rows[cells["poison"]].learner),
                           **{"psnr_poisoned": None, "psnr_clean": None, "kld": None, **values}))
    return found


def read_curves(path: Path, table: Table) -> dict[tuple[str, str], np.ndarray]:
    """What print_curves printed of this table. Raises UserError that names the line at fault."""
    keys = {f"{row.name} x {column.name}": (row.name, column.name)
            for row in table.rows for column in table.columns}
    found = {}
    for line, cells in read_table(path, ["trained on"]):
        name = cells.pop("trained on")
        if name not in keys:
            raise UserError(f"{line}: {table.path} has no '{printable(name)}'"
                            + suggest(name, list(keys)))
        cells = {head: cell for head, cell in cells.items() if cell}
        epochs = [number_of(head.removeprefix("epoch "), line) for head in cells]
        spreads = [read_spread(cell, line) for cell in cells.values()]
        if len({len(spread) for spread in spreads}) != 1:
            raise UserError(f"{line}: " + ("its cells are of different numbers of seeds" if spreads
                                           else "it has no accuracy"))
        accuracies = np.array(spreads)
        found[keys[name]] = np.stack([np.broadcast_to(epochs, accuracies.T.shape), accuracies.T],
                                     axis=-1)
    return found


def read_table(path: Path, needed: list[str]) -> list[tuple[str, dict[str, str]]]:
    """The rows of the first Markdown table of a file: (file:line, {head: cell})."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or 'is no UTF-8 text'}; name "
                        "the numbers that this figure printed") from None
    tables = read_markdown(text)
    (_, head), *lines = tables[0] if tables else [(1, [])]
    if not lines or any(name not in head for name in needed):
        raise UserError(f"{path}: expected a table with the columns {', '.join(needed)}, as this "
                        "figure prints them")
    for number, cells in lines:
        if len(cells) != len(head):
            raise UserError(f"{path}:{number}: {len(cells)} cells under {len(head)} heads")
    return [(f"{path}:{number}", dict(zip(head, cells, strict=True))) for number, cells in lines]


def number_of(text: str, line: str) -> float:
    value = float(text) if text in ("inf", "nan") else read_number(text)    # as they are printed
    if value is None:
        raise UserError(f"{line}: '{printable(text)}' is no number")
    return float(value)


def read_spread(text: str, line: str) -> list[float]:
    """As many accuracies as there were, of their mean and standard deviation: the values themselves
    were not printed, and no chart shows them."""
    parts = SPREAD.fullmatch(text)
    if parts is None:
        raise UserError(f"{line}: '{printable(text)}' is no accuracy")
    mean = number_of(parts["mean"], line)
    if parts["count"] is None or int(parts["count"]) < 2:
        return [mean]
    places = np.linspace(-1, 1, int(parts["count"]))
    return list(mean + number_of(parts["deviation"], line) * places / statistics.stdev(places))
