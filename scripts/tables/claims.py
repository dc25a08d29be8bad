"""Whose an artefact is while it is made. A claim is a lock below runs/claims, held by a runner and
by the command that it started for as long as either lives: the kernel frees what was killed, and no
file's age is judged. A failure is kept beside it, so that no other runner repeats it.
"""

import contextlib
import dataclasses
import os
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core import files, lock
from scripts.tables.plan import Artefact

CLAIMS, LOGS = Path("runs/claims"), Path("runs/logs")


@dataclass(frozen=True)
class Failure:
    """Why an artefact could not be made. `token` tells two failures apart without a clock, and
    `submission` is the SLURM array whose workers all count it, also one that is started again."""

    fingerprint: str
    why: str
    token: str
    submission: str


@dataclass(frozen=True)
class Claim:
    """The right to make an artefact. A command that `descriptor` is passed on to keeps it, should
    its runner die."""

    artefact: Artefact
    descriptor: int

    def fail(self, why: str) -> None:
        """Leave word for the others, if the disk has room."""
        failure = Failure(self.artefact.job.fingerprint, why, secrets.token_hex(8), submission())
        with contextlib.suppress(OSError):
            files.write_json(folder_of(self.artefact) / "failed.json", dataclasses.asdict(failure))

    def release(self) -> None:
        folder = folder_of(self.artefact)
        if self.artefact.done or not (folder / "failed.json").exists():
            with contextlib.suppress(OSError):      # another runner looks into it right now
                files.remove_tree(folder)
        os.close(self.descriptor)


def take(artefact: Artefact) -> Claim:
    """Raises core.lock.Held, which says by whom, if it is taken."""
    return Claim(artefact, lock.take(folder_of(artefact)))


def held(artefacts: Iterable[Artefact]) -> dict[Artefact, str]:
    """Those that are being made right now, and by whom."""
    taken = {folder: who for folder in CLAIMS.glob("*") if (who := lock.holder(folder)) is not None}
    return {artefact: taken[folder] for artefact in artefacts
            if (folder := folder_of(artefact)) in taken}


def take_gpu(names: Iterable[str]) -> tuple[str, int] | None:
    """The first of this host's GPUs that no runner has a command on, and the descriptor of the lock
    that says so; None if there is none."""
    for name in names:
        with contextlib.suppress(lock.Held):
            place = f"gpu-{socket.gethostname()}-{name}".replace("/", "-")
            return name, lock.take(CLAIMS / place)
    return None


def failure(artefact: Artefact) -> Failure | None:
    """The last one of an artefact that was not made since."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = Failure(**files.read_json(folder_of(artefact) / "failed.json"))
        if found.fingerprint == artefact.job.fingerprint:
            return found
    return None


def submission() -> str:
    """Of the SLURM array that this process is a task of."""
    return os.environ.get("SLURM_ARRAY_JOB_ID", "")


def folder_of(artefact: Artefact) -> Path:
    return CLAIMS / f"{artefact.job.kind}-{artefact.out.name}"


def log_of(artefact: Artefact) -> Path:
    """What its command prints."""
    return LOGS / f"{artefact.job.kind}-{artefact.out.name}.log"
