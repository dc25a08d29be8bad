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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import config, files, lock, reading, records
from core.artefact import read_any_meta
from core.errors import UserError
from core.unfinished import is_partial, partial_of
from scripts.tables import noted

BESIDE = ("logs", "claims", "workers", "plans", "timings.jsonl")    # of tables, in runs/
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Work:
    """A finished artefact, an unfinished one, or one that cannot be read."""

    path: Path
    kind: str                       # of artefact; "": unfinished or damaged
    fingerprint: str | None         # None: nobody's, or damaged
    meta: dict                      # of a finished one; a record's is its record.json
    content: frozenset[str]         # SHA-256 of its images or weights
    mentions: frozenset[str]        # every digest that it knows of others
    places: frozenset[str]          # and every path, absolute
    size: int                       # bytes on the disk
    damage: str = ""

    @property
    def finished(self) -> bool:
        return bool(self.kind)

    @property
    def nobodys(self) -> bool:
        """Begun, and left before it was said what it would be."""
        return not self.finished and not self.damage and self.fingerprint is None


@dataclass(frozen=True)
class Disk:
    """All that was found below a folder."""

    folder: Path
    works: list[Work]
    tables: list[noted.Noted]       # begun, with records to make
    strangers: list[Path]           # nothing that these commands made
    beside: int                     # bytes of logs and the like

    @functools.cached_property
    def needed(self) -> set[Work]:
        """By records, unfinished work and tables, directly or through others."""
        return self._behind([*self._kept, *committed(self.folder)], self.tables)

    @functools.cached_property
    def needed_still(self) -> set[Work]:
        """The same by what is not finished."""
        return self._behind([work for work in self._kept if not work.finished], self.tables)

    @functools.cached_property
    def users(self) -> dict[Work, list[Work]]:
        """What was made, or is being made, of each directly or through others."""
        found = {work: [] for work in self.works}
        for work in self.works:
            for need in self.needs_of(work):
                found[need].append(work)
        return found

    @property
    def _kept(self) -> list[Work]:
        return [work for work in self.works if work.kind == "record"
                or not (work.finished or work.nobodys or self.left_over(work))]

    def left_over(self, work: Work) -> bool:
        """Whether it is OUT.partial of an OUT that is there."""
        return not work.finished and work.fingerprint is not None and any(
            partial_of(other.path) == work.path and other.fingerprint == work.fingerprint
            for other in self.works)

    @functools.cached_property
    def _index(self) -> dict[str, list[Work]]:
        """Works by everything that another may know of them."""
        found: dict[str, list[Work]] = {}
        for work in self.works:
            if work.finished:
                for key in (work.fingerprint, *work.content, os.path.abspath(work.path),
                            os.path.realpath(work.path)):
                    found.setdefault(key, []).append(work)
        return found

    def needs_of(self, work: Work) -> set[Work]:
        """What a work needs."""
        return {other for key in (*work.mentions, *work.places)
                for other in self._index.get(key, ()) if other is not work}

    def _behind(self, roots: Iterable[Work], tables: Iterable[noted.Noted]) -> set[Work]:
        found, left = set(), list(roots)
        wanted = {fingerprint for table in tables for fingerprint in table.artefacts}
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
    works, strangers, beside = [], [], 0
    for place, names, file_names in os.walk(folder):
        place = Path(place)
        if place == folder:
            for name in BESIDE:
                beside += size_of(folder / name)
            names[:] = sorted(set(names) - set(BESIDE))
            file_names = set(file_names) - set(BESIDE)
        elif (work := look(place, folder.parent)) is not None:
            works.append(work)
            names.clear()
            continue
        strangers += [place / name for name in sorted(file_names)]
        strangers += [place / name for name in names if (place / name).is_symlink()]
        names.sort()
    done = {work.fingerprint for work in works if work.finished} | {*records.committed()}
    return Disk(folder, works, [table for table in tables if not table.until <= done], strangers,
                beside)


def look(path: Path, start: Path) -> Work | None:
    """What a folder is; None if it is no work of ours. `start`: where paths may begin."""
    size = functools.partial(size_of, path)
    if is_partial(Path(path.name)):
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
        return Work(path, "", begun.get("fingerprint"), {}, frozenset(), digests_in(begun),
                    places_in(path, start, begun), size(), damage)
    if not (path / "meta.json").is_file():
        return None
    known = frozenset()
    try:
        meta = read_any_meta(path)
        said = files.read_json(path / "record.json") if meta["kind"] == "record" else meta
        if not isinstance(said, dict):
            raise UserError(f"{path / 'record.json'} is damaged")
    except (UserError, OSError, ValueError) as error:
        with contextlib.suppress(OSError):          # what it needs is better kept
            known = frozenset(DIGEST.findall((path / "meta.json").read_text("utf-8", "replace")))
        return Work(path, "", None, {}, frozenset(), known, places_in(path, start, {}), size(),
                    str(error) or "it is damaged")
    others = {key: value for key, value in said.items() if key != "digests"}
    content = frozenset(digest for name, digest in meta["digests"].items()
                        if name not in ("labels.npy", "record.json"))
    return Work(path, meta["kind"], meta["fingerprint"], {**said, "digests": meta["digests"]},
                content, digests_in(others) - {meta["fingerprint"]},
                places_in(path, start, meta), size())


def committed(folder: Path) -> Iterator[Work]:
    """The records that are kept in git, here and beside a folder: they may stand on sets in it."""
    for start in {Path.cwd(), folder.resolve().parent}:
        for path in (start / records.COMMITTED).rglob("meta.json"):
            if (work := look(path.parent, start)) is not None:
                yield work


def texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def digests_in(value: Any) -> frozenset[str]:
    return frozenset(text for text in texts(value) if DIGEST.fullmatch(text))


def places_in(path: Path, start: Path, meta: dict) -> frozenset[str]:
    """Every text of a work's config.yaml and meta.json that may be a path, as one: it may begin
    where we are, where runs/ lies, or where meta.json says that its command was."""
    said = set(texts({key: value for key, value in meta.items() if key != "digests"}))
    with contextlib.suppress(OSError, UserError):
        said |= set(values_in(path / "config.yaml"))
    starts = {os.getcwd(), os.path.abspath(start),
              os.path.abspath(path / str(meta.get("working_folder") or "."))}
    return frozenset(os.path.normpath(os.path.join(begin, text.removeprefix("folder:")))
                     for text in said if "/" in text and "\0" not in text for begin in starts)


def values_in(path: Path) -> Iterator[str]:
    """Every text of a YAML, and parts of some: read line by line where that is enough, for there
    may be thousands of them."""
    text = reading.text(path, config.MOST_TEXT)
    if "\\" in text:                            # a character that YAML escapes
        yield from node_texts(config.read_file(path))
        return
    for line in re.sub(r"\n +(?![\w.]+: |- )", " ", text).splitlines():        # unfolded
        yield line.partition(": ")[2].strip(" '\"")
        yield from re.split(r"[\s,\[\]{}'\"]+", line)


def node_texts(node: config.Node) -> Iterator[str]:
    if isinstance(node.value, str):
        yield node.value
    else:
        for item in node.value.values() if isinstance(node.value, dict) else node.value:
            yield from node_texts(item)


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
