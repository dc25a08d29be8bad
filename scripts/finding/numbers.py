"""Where a number is from: the records, printed tables and pages that hold it; published ones."""

import re
from collections.abc import Iterator
from pathlib import Path

from core import records
from core.names import printable
from scripts.tables import published, wording

FOLDERS = ("results", "runs")
PAGES = ("docs/results.md", "README.md")


def places(number: str) -> Iterator[str]:
    """A line for each place of an accuracy in percent, as it was printed: '65.6'."""
    digits = len(number.partition(".")[2])
    for folder, record in records.whole(*FOLDERS):
        kinds = {"accuracy_last": f"after {wording.after(record)}",
                 "accuracy_best": "best epoch, an oracle's choice",
                 "train_accuracy": "on its own training set"}
        found = [text for key, text in kinds.items()
                 if f"{100 * record[key]:.{digits}f}" == number]
        if found:
            yield printable(
                f"{folder}: {records.lineage_text(record)}, {wording.protocol_text(record)}, "
                f"seed {record.get('seed', '?')}: {'; '.join(found)}")
    word = re.compile(rf"(?<![\d.]){re.escape(number)}(?![\d]|\.\d)")
    for page in (*sorted(Path("results").rglob("*.md")), *map(Path, PAGES)):
        lines = page.read_text("utf-8").splitlines() if page.is_file() else []
        for row, line in enumerate(lines, 1):
            if line.startswith("|") and word.search(line):
                yield printable(f"{page}:{row}: {line.strip()}")
    for fact in published.read():
        if f"{fact['accuracy']:.{digits}f}" == number:
            yield (f"results/reported.csv: {fact['source']} {fact['table']} ({fact['kind']}): "
                   f"{fact['dataset']}, {fact['attack']}, {published.filed_under(fact)}, "
                   f"{fact['arch']}")
