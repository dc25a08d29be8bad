"""The work on a disk: what is there, and what needs what.

A set or checkpoint is needed by what was made of it or is being made of it: by every artefact whose
meta.json, record.json or run.json has its fingerprint (an unfinished one has the digests of its
files), or whose config.yaml names its folder; here and below results/. It is also needed by a table
that was begun and lacks records (scripts/tables/noted.py). Records and unfinished work are kept for
their own sake. What was made elsewhere of a set that lies here is not seen.
"""

import contextlib
import functools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from core import config, files, lock, reading, records
from core.artefact import is_partial, partial_of, read_any_meta
from core.errors import UserError
from scripts.tables import noted

# In runs/, and no artefacts
OF_TABLES = ("logs", "claims", "workers", "plans", "figures", "timings.jsonl")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)      # of perhaps thousands of config.yaml
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Work:
    """A finished artefact, an unfinished one, or one that cannot be read."""

    path: Path
    size: int                       # bytes on the disk
    kind: str = ""                  # of artefact; "": unfinished or damaged
    fingerprint: str | None = None  # None: barely begun, or damaged
    meta: dict = field(default_factory=dict)    # of a finished one; a record's is its record.json
    digests: frozenset[str] = frozenset()       # SHA-256 of its images or weights
    others_digests: frozenset[str] = frozenset()    # every digest that it knows of others
    paths: frozenset[str] = frozenset()             # and every path, absolute
    damage: str = ""                # why it cannot be read

    @property
    def finished(self) -> bool:
        return bool(self.kind)

    @property
    def barely_begun(self) -> bool:
        """Left before it was said what it would be: nobody resumes it."""
        return not self.finished and not self.damage and self.fingerprint is None


@dataclass(frozen=True)
class Disk:
    """All that was found below a folder."""

    folder: Path
    works: list[Work]
    unfinished_tables: list[noted.Noted]    # begun, with records to make
    strange_files: list[Path]       # that no command here made
    tables_bytes: int               # of logs and the like

    @functools.cached_property
    def needed(self) -> set[Work]:
        """By records, unfinished work and tables, directly or through others."""
        return self._needed_by([*self._kept_anyway, *committed_records(self.folder)])

    @functools.cached_property
    def needed_by_unfinished(self) -> set[Work]:
        """The same by unfinished work and tables alone."""
        return self._needed_by(work for work in self._kept_anyway if not work.finished)

    @functools.cached_property
    def users(self) -> dict[Work, list[Work]]:
        """What was made, or is being made, of each directly or through others."""
        found = {work: [] for work in self.works}
        for work in self.works:
            for need in self.needs_of(work):
                found[need].append(work)
        return found

    @property
    def _kept_anyway(self) -> list[Work]:
        """Records and unfinished work: kept for their own sake."""
        return [work for work in self.works if work.kind == "record"
                or not (work.finished or work.barely_begun or self.left_over(work))]

    def left_over(self, work: Work) -> bool:
        """Whether it is OUT.partial of an OUT that is there."""
        return not work.finished and work.fingerprint is not None and any(
            partial_of(other.path) == work.path and other.fingerprint == work.fingerprint
            for other in self.works)

    @functools.cached_property
    def _works_by_name(self) -> dict[str, list[Work]]:
        """Works by everything that another may know of them."""
        found: dict[str, list[Work]] = {}
        for work in self.works:
            if work.finished:
                for key in (work.fingerprint, *work.digests, os.path.abspath(work.path),
                            os.path.realpath(work.path)):
                    found.setdefault(key, []).append(work)
        return found

    def needs_of(self, work: Work) -> set[Work]:
        """What a work needs."""
        return {other for key in (*work.others_digests, *work.paths)
                for other in self._works_by_name.get(key, ()) if other is not work}

    def _needed_by(self, users: Iterable[Work]) -> set[Work]:
        """What these or an unfinished table need, directly or through others."""
        found, left = set(), list(users)
        wanted = {fingerprint for table in self.unfinished_tables
                  for fingerprint in table.artefacts}
        for work in self.works:
            if work.finished and work.fingerprint in wanted:
                found.add(work)
                left.append(work)
        while left:
            new = self.needs_of(left.pop()) - found
            found |= new
            left += new
        return found


# --- looking ---------------------------------------------------------------------------------


def scan(folder: Path) -> Disk:
    """What is below a folder; links are not followed. Raises UserError if there is no such folder,
    or a table's plan is damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; work goes to runs/ unless out= says")
    try:
        tables = noted.read(folder / noted.PLANS.name)
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder / noted.PLANS.name}: a file there is damaged; remove it, and run "
                        "its table again before anything is removed") from None
    works, strange_files, tables_bytes = [], [], 0
    for place, names, file_names in os.walk(folder):
        place = Path(place)
        if place == folder:
            for name in OF_TABLES:
                tables_bytes += size_of(folder / name)
            names[:] = sorted(set(names) - set(OF_TABLES))
            file_names = set(file_names) - set(OF_TABLES)
        elif (work := work_at(place, folder.parent)) is not None:
            works.append(work)
            names.clear()
            continue
        strange_files += [place / name for name in sorted(file_names)]
        strange_files += [place / name for name in names if (place / name).is_symlink()]
        names.sort()
    done = {work.fingerprint for work in works if work.finished} | {*records.committed()}
    return Disk(folder, works, [table for table in tables if not table.until <= done],
                strange_files, tables_bytes)


def work_at(path: Path, start: Path) -> Work | None:
    """What a folder is; None if it is no work of ours. `start`: where paths may begin."""
    if is_partial(Path(path.name)):
        return unfinished_at(path, start)
    if not (path / "meta.json").is_file():
        return None
    try:
        meta = read_any_meta(path)
        said = records.load(path) if meta["kind"] == "record" else meta
    except (UserError, OSError, ValueError) as error:
        return Work(path, size_of(path), damage=str(error) or "it is damaged",
                    others_digests=digests_in_damaged(path / "meta.json"),
                    paths=paths_in(path, start, {}))
    others = {key: value for key, value in said.items() if key != "digests"}
    own = frozenset(digest for name, digest in meta["digests"].items()
                    if name not in ("labels.npy", "record.json"))
    return Work(path, size_of(path), meta["kind"], meta["fingerprint"],
                {**said, "digests": meta["digests"]}, own,
                digests_in(others) - {meta["fingerprint"]}, paths_in(path, start, meta))


def unfinished_at(path: Path, start: Path) -> Work | None:
    """The work in an OUT.partial; None if it is not ours."""
    try:
        lock.check_ours(path)
    except (UserError, OSError):
        return None
    begun, damage = {}, ""
    for name in ("meta.json", "run.json"):
        try:
            begun = begun or dict(files.read_json(path / name))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError):
            damage = f"{name} is damaged"
    return Work(path, size_of(path), fingerprint=begun.get("fingerprint"), damage=damage,
                others_digests=digests_in(begun), paths=paths_in(path, start, begun))


def digests_in_damaged(path: Path) -> frozenset[str]:
    """What can still be read: what a damaged work needs is better kept."""
    with contextlib.suppress(OSError):
        return frozenset(DIGEST.findall(path.read_text("utf-8", "replace")))
    return frozenset()


def committed_records(folder: Path) -> Iterator[Work]:
    """The records that are kept in git, here and beside a folder: they may stand on sets in it."""
    for start in {Path.cwd(), folder.resolve().parent}:
        for path in (start / records.COMMITTED).rglob("meta.json"):
            if (work := work_at(path.parent, start)) is not None:
                yield work


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def digests_in(value: Any) -> frozenset[str]:
    return frozenset(text for text in texts_in(value) if DIGEST.fullmatch(text))


def paths_in(path: Path, start: Path, meta: dict) -> frozenset[str]:
    """Every text of a work's config.yaml and meta.json that may be a path, as one: it may begin
    where we are, where runs/ lies, or where meta.json says that its command was."""
    said = set(texts_in({key: value for key, value in meta.items() if key != "digests"}))
    with contextlib.suppress(OSError, UserError, yaml.YAMLError):
        text = reading.text(path / "config.yaml", config.MOST_TEXT)
        said |= {event.value for event in yaml.parse(text, LOADER)
                 if isinstance(event, yaml.ScalarEvent)}
    starts = {os.getcwd(), os.path.abspath(start),
              os.path.abspath(path / str(meta.get("working_folder") or "."))}
    return frozenset(os.path.normpath(os.path.join(begin, text.removeprefix("folder:")))
                     for text in said if "/" in text and "\0" not in text for begin in starts)


def size_of(path: Path) -> int:
    """Bytes that a file, or a folder with all in it, takes on the disk."""
    total = 0
    with contextlib.suppress(OSError):
        total = path.lstat().st_blocks * 512
    for place, names, file_names in os.walk(path):
        for name in (*names, *file_names):
            with contextlib.suppress(OSError):          # removed meanwhile
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total
