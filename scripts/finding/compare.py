"""Say what two records differ in: settings, data, versions and numbers.

    python scripts/compare.py RECORD RECORD

RECORD is a folder that evaluate.py made. A line for each entry that both have and that
differs, and for each setting that one of them alone has ("-" is the other's).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core import config as config_of
from core import records
from core.command import Parser, command
from core.config import as_path
from core.imageset import title
from core.manual import typed
from core.methods import find_method, is_method
from core.names import printable
from scripts.tables import wording

# What stands under which heading, by the first part of its name; all else is settings.
HEADINGS = {
    "numbers": ("accuracy_last", "accuracy_best", "best_epoch", "kept_epoch", "train_accuracy",
                "epochs", "images", "seconds", "images_per_second"),
    "settings": (),
    "data": ("train", "test", "learner_saw"),
    "versions": ("versions", "device", "commit", "dirty", "date"),
}
PERCENT = ("accuracy_last", "accuracy_best", "train_accuracy")
# Said in words, or following from others
LEFT_OUT = ("fingerprint", "curve", "best_is_oracle", "overrides", "purifier_trained_on")
NONE, COLUMN, HEX = "-", 36, 8
ROOMS = ("poisons", "purifiers", "learners")


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/compare.py", __doc__)
    parser.add_argument("records", nargs=2, type=as_path, metavar="RECORD")
    arguments = parser.parse_args(argv)
    print("\n".join(printable(line) for line in compared(*arguments.records)))


def compared(*folders: Path) -> Iterator[str]:
    """The lines of a comparison. Raises UserError for what is no record."""
    one, other = map(records.load, folders)
    for folder, record in zip(folders, (one, other), strict=True):
        yield f"{folder}: {records.lineage_text(record)}, {wording.protocol_text(record)}"
    same = one["fingerprint"] == other["fingerprint"]
    made = "the same record" if one == other else "the same work, made twice"
    yield made if same else "not the same work"
    rows = list(differences(entries(one), entries(other)))
    for heading in HEADINGS:
        found = [row for row in rows if heading_of(row[0]) == heading]
        yield f"{heading}:" + ("" if found else " no difference")
        for name, *values in found:
            first, second = (as_text(name, value) for value in values)
            yield f"  {name:<{COLUMN}} {first} | {second}{gap(name, *values)}"


def differences(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What both have and differ in, and settings that one of them has."""
    for name in dict.fromkeys([*one, *other]):
        values = one.get(name, NONE), other.get(name, NONE)
        told = NONE not in values or name.startswith(("config.", "settings.")) \
            or ".settings." in name                     # of a step, such as fraction
        if values[0] != values[1] and told:
            yield name, *values


def heading_of(name: str) -> str:
    first = name.partition(".")[0]
    return next((heading for heading, names in HEADINGS.items() if first in names), "settings")


def entries(record: dict) -> dict[str, Any]:
    """A record's entries by dotted name, each step of its set's lineage under its method's:
    'train.em.epsilon'. What it does not say of a method's keys is at its default."""
    told = {key: value for key, value in record.items() if key not in LEFT_OUT}
    train = {key: value for key, value in record["train"].items() if key != "lineage"}
    steps = record["train"]["lineage"]
    found = dict(leaves({**told, "train": train, "config": with_defaults(
        "learners", record["learner"], record["config"])}))
    found["train.lineage"] = " > ".join(map(title, steps)) or "clean"
    for number, step in enumerate(steps):
        before = [other["method"] for other in steps[:number]].count(step["method"])
        name = step["method"] + (f" ({before + 1})" if before else "")
        room = next((room for room in ROOMS if is_method(room, step["method"])), "")
        kept = {key: value for key, value in step.items()
                if key not in ("method", "preset", "config", "fingerprint", "inputs")}
        config = with_defaults(room, step["method"], step["config"])
        if "checkpoint" in step["inputs"]:      # of older records all that tells its training
            kept["checkpoint"] = step["inputs"]["checkpoint"]
        found |= leaves({**kept, **config}, f"train.{name}")
    return found


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Of dicts, and of lists of dicts, by dotted name."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = {str(number): item for number, item in enumerate(value)}
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{name}.{key}".lstrip("."))
    else:
        yield name, value


def with_defaults(room: str, method: str, told: dict) -> dict:
    """A method's config with the defaults of keys that were added later (`core.config.added`)."""
    if not room or not is_method(room, method):     # of a record made before it was renamed
        return told
    fields = find_method(room, method).Config.__dataclass_fields__.values()
    return {**{field.name: config_of.plain(field.default) for field in fields
               if field.metadata.get("added")}, **told}


def as_text(name: str, value: Any) -> str:
    if name in PERCENT:
        return f"{100 * value:.2f} %"
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,64}", value):
        return value[:HEX]
    return value if value is NONE else typed(value)


def gap(name: str, first: Any, second: Any) -> str:
    """' (+1.25)' between two accuracies in percent."""
    return f" ({100 * (second - first):+.2f})" if name in PERCENT else ""
