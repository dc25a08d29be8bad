"""Where a number is from: the records, printed tables and pages that hold it; published ones."""

import itertools
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import records
from core.names import printable
from scripts.tables import published, wording

FOLDERS = ("results", "runs")
PAGES = ("docs/results.md", "README.md")
# What the seeds of a cell may differ in, of a lineage; a preset is a name for its config, and old
# records have no digest of what a network learned from
OF_ONE_RUN = ("seed", "fingerprint", "inputs", "seconds", "preset", "root_digest")
MOST_CHOICES = 100


def places(number: str) -> Iterator[str]:
    """A line for each place of an accuracy in percent, as it was printed: '65.6'."""
    digits = len(number.partition(".")[2])
    seeds: dict[str, dict[str, tuple[Path, dict]]] = {}     # what was run -> its records, each once
    for folder, record in records.whole(*FOLDERS):
        seeds.setdefault(cell_of(record), {}).setdefault(record["fingerprint"], (folder, record))
        kinds = {"accuracy_last": f"after {wording.after(record)}",
                 "accuracy_best": "best epoch, an oracle's choice",
                 "train_accuracy": "on its own training set"}
        found = [text for key, text in kinds.items()
                 if f"{100 * record[key]:.{digits}f}" == number]
        if found:
            yield printable(
                f"{folder}: {records.lineage_text(record)}, {wording.protocol_text(record)}, "
                f"seed {record.get('seed', '?')}: {'; '.join(found)}")
    for found in seeds.values():
        yield from means(list(found.values()), number, digits)
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


def means(found: list[tuple[Path, dict]], number: str, digits: int) -> Iterator[str]:
    """A line for each choice of one record a seed whose mean was printed so: a cell may have been
    made again, with what records do not tell."""
    by_seed: dict[int, list[tuple[Path, dict]]] = {}
    for folder, record in found:
        by_seed.setdefault(record["seed"], []).append((folder, record))
    if len(by_seed) < 2:
        return
    choices = itertools.product(*(by_seed[seed] for seed in sorted(by_seed)))
    for chosen in itertools.islice(choices, MOST_CHOICES):
        mean = statistics.mean(100 * record["accuracy_last"] for _, record in chosen)
        if f"{mean:.{digits}f}" == number:
            _, first = chosen[0]
            yield printable(
                f"the mean of {len(chosen)} records, {records.lineage_text(first)}, "
                f"{wording.protocol_text(first)}: " + ", ".join(
                    f"{folder} (seed {record['seed']}, {100 * record['accuracy_last']:.2f})"
                    for folder, record in chosen))


def cell_of(record: dict) -> str:
    """What the seeds of a table's cell have in common: data, methods and their settings."""
    train, test = record["train"], record["test"]
    return json.dumps(apart_from_seeds([
        train["root"], train["rows"], train["lineage"], test["root"], record["learner"],
        record["config"], record["settings"]]), sort_keys=True)


def apart_from_seeds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: apart_from_seeds(item) for key, item in value.items()
                if key not in OF_ONE_RUN}
    return [apart_from_seeds(item) for item in value] if isinstance(value, list) else value
