"""What the tables that were run here are made of, so that nobody removes a set which an unfinished
one is going to read: a line's artefacts by fingerprint, in runs/plans/."""

import contextlib
import hashlib
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core import files
from scripts.tables.plan import Cell, behind

PLANS = Path("runs/plans")


@dataclass(frozen=True)
class Noted:
    """One line of run_table.py: what must be there for it to be done, and all that this stands on.
    """

    path: Path
    line: str
    until: frozenset[str]           # fingerprints: of its records, or of all with --sets
    artefacts: frozenset[str]


def note(words: Iterable[str], cells: list[Cell], *, sets: bool) -> None:
    """Write it down, if the disk has room."""
    last = [cell.record for cell in cells]
    made = behind(last)
    until = [artefact.job.fingerprint for artefact in (made if sets else last)]
    # what no step of the table makes is read too: a checkpoint, a source of `reuse`
    artefacts = sorted({artefact.job.fingerprint for artefact in made}
                       | {read for artefact in made for read in artefact.job.inputs.values()})
    value = {"line": shlex.join(words), "until": until, "artefacts": artefacts}
    # An edited table has a file of its own: a runner of what it was may still be at work.
    name = hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
    with contextlib.suppress(OSError):
        files.mkdir(PLANS)
        files.write_json(PLANS / f"{name}.json", value)


def read(folder: Path) -> list[Noted]:
    """Those of a folder. Raises ValueError, KeyError, TypeError or OSError for one that is damaged:
    nobody knows what it needs."""
    found = []
    for path in sorted(folder.glob("*.json")):
        value = files.read_json(path)
        found.append(Noted(path, str(value["line"]), frozenset(value["until"]),
                           frozenset(value["artefacts"])))
    return found


def lines_of(table: str, but: str) -> list[str]:
    """The lines of run_table.py for one table that were run here, `but` that one."""
    try:
        found = read(PLANS)
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return sorted({one.line for one in found
                   if [Path(word).stem for word in shlex.split(one.line)[:1]] == [Path(table).stem]}
                  - {but})
