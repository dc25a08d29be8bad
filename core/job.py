"""What identifies a piece of work, and by what the artefacts and files that it reads count."""

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from core import ROOT, files
from core.artefact import partial_of, read_any_meta
from core.commands import COMMANDS
from core.errors import UserError
from core.names import component


@dataclass(frozen=True)
class Job:
    """What identifies a piece of work: everything that its output depends on, and nothing else."""

    kind: str                       # poisons, checkpoints, purified or records
    name: str                       # for the default folder: runs/<kind>/<name>-<fingerprint8>
    method: str
    version: int
    config: dict
    seed: int
    inputs: dict[str, str]          # role -> fingerprint of the artefact
    preset: str = ""                # the YAML's name, for people
    settings: dict = field(default_factory=dict)    # further keys that change the output
    # role -> file -> SHA-256; no part of the identity, but the same at every resume
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    parts: tuple[str, ...] = ()     # methods of one that is made of others; `config` has theirs

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the job without its names and the inputs' bytes."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                   if field.name not in ("name", "preset", "digests", "parts")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def code(self) -> dict[str, str]:
        """SHA-256 of its method's module, and of its parts', by the module's path; no part of the
        identity."""
        rooms = {command.kind: command.room for command in COMMANDS.values()}
        paths = [ROOT / rooms.get(self.kind, "") / f"{method}.py"
                 for method in dict.fromkeys((self.method, *self.parts))]
        return {str(path.relative_to(ROOT)): files.sha256(path) for path in paths
                if path.is_file()}

    @property
    def default_out(self) -> Path:
        return self.out_as(self.fingerprint[:8])

    def out_as(self, mark: str) -> Path:
        """Its folder, known from others by this mark."""
        return Path("runs", self.kind, f"{component(self.name)}-{mark}")


def fingerprint_at(path: str) -> str:
    """Of a finished artefact of any kind, or the SHA-256 of a file. Raises UserError if there is
    none."""
    if Path(path).is_file():
        return files.sha256(Path(path))
    if Path(path).suffix and not (Path(path).is_dir() or partial_of(Path(path)).exists()):
        raise UserError(f"{path}: no such file")
    return read_any_meta(Path(path))["fingerprint"]


def digests_at(path: str) -> dict[str, str]:
    """SHA-256 of each file of a finished artefact; none, if it is a file (whose digest is its
    fingerprint) or still to be made."""
    try:
        return read_any_meta(Path(path))["digests"]
    except UserError:
        return {}
