"""log.jsonl, in which a run says how it went."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import files, reading


class Log:
    """log.jsonl: a line for each epoch of a loop and for each note, by the loop's name and `at`.

    A death may tear its last line. A line that this process did not write counts only while a
    state, which knows the digest of its loop's lines, vouches for it.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self._known: set[str] = set()   # loops whose lines this process knows to be right

    def append(self, loop: str, at: int, values: dict) -> None:
        line = json.dumps({"loop": loop, "at": at, **values}).encode() + b"\n"
        self._known.add(loop)
        if self.writes:
            files.append(self.path, line)

    def rewind(self, loop: str, at: int) -> None:
        """Drop the lines of a loop from `at` on: they will be written again."""
        self._known.add(loop)
        self._keep(lambda entry: entry["loop"] != loop or entry["at"] < at)

    def drop_torn(self) -> None:
        """Drop what a death or a power cut left of a line."""
        self._keep(lambda entry: True)

    def drop_unknown(self) -> None:
        """Drop the lines that no loop of this process vouched for."""
        self._keep(lambda entry: entry["loop"] in self._known)

    def _keep(self, wanted: Callable[[dict], bool]) -> None:
        """Keep the lines that are whole and wanted."""
        if not self.path.exists() or not self.writes:
            return
        data = self.path.read_bytes()
        kept = b"".join(line for line in data.splitlines(keepends=True)
                        if (entry := _entry(line)) is not None and wanted(entry))
        if kept != data:
            files.write_bytes(self.path, kept)

    def digest(self, loop: str) -> str:
        """SHA-256 of a loop's lines so far, whatever stands between them."""
        digest = hashlib.sha256()
        for line in self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else ():
            if (entry := _entry(line)) is not None and entry["loop"] == loop:
                digest.update(line)
        return digest.hexdigest()

    def lines(self) -> list[dict[str, Any]]:
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def sync(self) -> None:
        if self.path.exists():
            files.fsync(self.path)


def _entry(line: bytes) -> dict | None:
    """A line of the log; None if it is torn or damaged."""
    with contextlib.suppress(ValueError):
        entry = reading.parse_json(line)
        if line.endswith(b"\n") and isinstance(entry, dict) and isinstance(entry.get("loop"), str) \
                and type(entry.get("at")) is int:
            return entry
    return None
