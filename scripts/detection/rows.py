"""The files that `--detect` compares with: rows of a CSV, each put in the place of its like."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from core import files


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file; none, if it is not there."""
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def put(path: Path, rows: list[dict], columns: Sequence[str], identity: Sequence[str],
        order: Callable[[tuple[str, ...]], object]) -> None:
    """Write rows of these columns in the place of those with the same `identity`, sorted by it."""
    kept = {tuple(str(row[key]) for key in identity): row for row in (*read(path), *rows)}
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(kept[key] for key in sorted(kept, key=order))
    files.write_bytes(path, text.getvalue().encode())
