"""The folder that one piece of work is made in, which no death leaves half a result in.

Work goes on in `OUT.partial/` and ends by renaming that to `OUT/`: if OUT exists, it is whole.
`OUT.partial/` holds config.yaml, log.jsonl, the growing files of the artefact, and three things
that do not survive the end: `lock`, `run.json` (fingerprint, resolved device, versions, digests of
the inputs) and `state/`. What a later process goes on from has a digest: it is as it was written,
or refused, or made again. Writing meta.json is the commit point; what follows is tidying that any
later process can finish.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Literal

import torch

from core import config, files, lock, torchfile
from core.artefact import FORMAT, PARTIAL, is_finished, partial_of
from core.device import Device, DeviceSettings, resolve, unlike
from core.distributed import say
from core.errors import UserError
from core.job import Job
from core.log import Log
from core.names import printable

POLL_SECONDS = 0.2      # between two looks at a lock that another process holds
SEAL_BYTES = 32         # of SHA-256, behind every state
SCAFFOLD = ("lock", "run.json", "state")        # in OUT.partial/ only
UNHASHED = ("config.yaml", "log.jsonl", "meta.json", *SCAFFOLD)


class WorkFolder:
    """OUT.partial/ (`path`) of a job, while this process holds its lock.

    Raises UserError if OUT holds other work (unless `force`, which moves it aside) or if another
    process is making it (unless `wait`); `option` is how a user chooses OUT. Of several processes
    rank 0 alone opens, commits and closes it, and `leads`; the others write row files and states of
    their own into it.
    """

    def __init__(self, job: Job, out: Path, *, force: bool = False, wait: bool = False,
                 leads: bool = True, option: str = "out=") -> None:
        self.job, self._option = job, option
        self.out = place_of(out)
        self.path = partial_of(self.out)
        self.log = Log(self.path / "log.jsonl", writes=leads)
        self._force, self._wait = force, wait
        self._lock: int | None = None

    # --- whose work is there -----------------------------------------------------------------

    def occupant(self) -> Literal["nothing", "this", "damaged", "other"]:
        """What OUT is: absent or empty, this job's artefact, one that cannot be read, or something
        else."""
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return "nothing"
        if not (self.out / "meta.json").exists():
            return "other"
        try:
            found = files.read_json(self.out / "meta.json")["fingerprint"]
        except (ValueError, KeyError, TypeError):
            return "damaged"
        return "this" if found == self.job.fingerprint else "other"

    def _apart(self) -> str:
        """How the artefact that is at OUT differs from this job, as far as it says."""
        parts = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError,
                                 AttributeError):
            there = files.read_json(self.out / "meta.json")
            if there["kind"] == "record":
                there = files.read_json(self.out / "record.json")
                there = {**there, "method": there["learner"], "inputs": self.job.inputs}
            elif there["kind"] == "imageset":
                there = there["lineage"][-1]
            if there["method"] != self.job.method:
                return f"of {printable(there['method'])}, not of {self.job.method}"
            pairs = {f"{self.job.method}.{key}": (there["config"].get(key), value)
                     for key, value in self.job.config.items()}
            pairs["seed"] = there["seed"], self.job.seed
            parts = ["{} is {} there, {} here".format(
                key, *(printable(json.dumps(value)) for value in both))
                for key, both in pairs.items() if both[0] != both[1]]
            if there.get("inputs", self.job.inputs) != self.job.inputs:
                parts.append("another input")
        return "; ".join(parts[:3]) or "another config, seed, input, --limit or --smoke"

    def holder(self) -> str | None:
        """Whose work OUT.partial holds: the fingerprint in meta.json once that is there (run.json
        may be gone by then), else in run.json; None if it is nobody's. Raises UserError if the
        file is damaged, or the folder is somebody's own."""
        if not self.path.exists():
            return None
        lock.check_ours(self.path)
        for path in (self.path / "meta.json", self.path / "run.json"):
            try:
                return str(files.read_json(path)["fingerprint"])
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError):
                raise self.damaged(path) from None
        return None

    def damaged(self, path: Path, why: str = "is damaged") -> UserError:
        """What to raise for a file here that cannot be gone on from."""
        return UserError(f"{path} {why}; remove {self.path} to start again")

    # --- open: lock, then begin, resume or find it done --------------------------------------

    def open(self, settings: dict, asked: DeviceSettings) -> Device | None:
        """Begin the work, or resume it on the device that it was begun on; None if it is done.
        `settings` are what config.yaml shows beside the device's."""
        if self._finished():
            say(f"{self.out} is already done{otherwise(self.out, asked)}")
            return None
        files.mkdir(self.out.parent)
        self._acquire()
        try:
            return self._recover(settings, asked)
        except BaseException:
            with contextlib.suppress(OSError):      # what went wrong first is what is said
                if [path.name for path in self.path.glob("*")] == ["lock"]:
                    files.remove_tree(self.path)    # nothing was begun: leave nothing behind
            self._release()
            raise

    def _finished(self) -> bool:
        """True if OUT is this job's artefact. Refuses anything else there, unless --force will make
        room."""
        occupant = self.occupant()
        if occupant == "this":
            self._drop_scaffold(self.out)       # its maker died right after the rename
            return True
        if occupant == "nothing":
            if os.path.ismount(self.out):       # nothing can be renamed to it
                raise UserError(f"{self.out} is a mount point; name a folder inside it")
            return False
        if not self._force:
            raise UserError(
                f"{self.out}/meta.json is damaged; remove {self.out} to make it again"
                if occupant == "damaged" else
                f"{self.out} holds other work ({self._apart()}); choose another {self._option}, or "
                "--force to move it aside"
                if (self.out / "meta.json").exists() else
                f"{self.out} is there already and not of this code's making; choose another "
                f"{self._option}, or --force to move it aside")
        return False

    def _make_room(self) -> None:
        """Move aside what else is at OUT (`_finished` refused it without --force). With the lock
        held, and when nothing that a user can cause is left to fail."""
        if self.occupant() in ("nothing", "this"):
            return
        number = 1
        while os.path.lexists(aside := self.out.with_name(f"{self.out.name}.old-{number}")):
            number += 1
        files.rename(self.out, aside)
        say(f"moved {self.out} aside to {aside}")

    def _acquire(self) -> None:
        """Take OUT.partial's lock. It is released by the kernel when this process dies."""
        if self.path.is_symlink():
            raise UserError(f"{self.path} is a link; remove it, or choose another "
                            f"{self._option}")
        told = None
        while self._lock is None:
            try:
                self._lock = lock.take(self.path)
            except lock.Held as holder:
                if not self._wait:
                    raise UserError(f"{self.out} is being made by {holder} right now; --wait for "
                                    f"it, or choose another {self._option}") from None
                if told != str(holder):
                    told = str(holder)
                    say(f"waiting for {holder} to make {self.out}")
                time.sleep(POLL_SECONDS)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _recover(self, settings: dict, asked: DeviceSettings) -> Device | None:
        """With the lock held: resume, finish what was committed, or begin."""
        if self._finished():                    # made while we waited for the lock
            files.remove_tree(self.path)
            return None
        holder = self.holder()
        if holder not in (None, self.job.fingerprint) and not self._force:
            raise UserError(
                f"{self.path} holds other unfinished work (another config, seed, input, --limit or "
                f"--smoke); choose another {self._option}, or --force to drop it")
        if holder == self.job.fingerprint:
            if (self.path / "meta.json").exists():
                self._make_room()
                self._tidy()
                return None
            if not (self._force and self._changed_since(self._read_begun())):
                return self._resume(settings, asked)
        device = resolve(asked)
        self._make_room()
        self._clear()
        self._begin(settings, device)
        return device

    def _changed_since(self, begun: dict) -> list[str]:
        """The modules of the method that are others than those that this was begun with."""
        return [module for module, digest in self.job.code.items()
                if begun.get("code", {}).get(module, digest) != digest]

    def _clear(self) -> None:
        # First what says whose this is: what a death leaves then is nobody's, never half a state.
        for name in ("meta.json", "run.json"):
            files.unlink(self.path / name)
        files.fsync(self.path)
        for path in self.path.iterdir():
            if path.name != lock.NAME:
                is_folder = path.is_dir() and not path.is_symlink()
                files.remove_tree(path) if is_folder else files.unlink(path)

    def _begin(self, settings: dict, device: Device) -> None:
        self._write_config(settings, device)
        files.mkdir(self.path / "state")
        files.write_sealed(self.path / "run.json", {
            "fingerprint": self.job.fingerprint, "device": config.plain(device.as_settings()),
            "inputs": self.job.digests, "versions": versions(), "code": self.job.code})

    def _write_config(self, settings: dict, device: Device) -> None:
        resolved = {**config.plain(device.as_settings()), **settings}
        files.write_bytes(self.path / "config.yaml", config.dump(resolved).encode())

    def _resume(self, settings: dict, asked: DeviceSettings) -> Device:
        begun = self._read_begun()
        for path in (*self.path.iterdir(), *self.path.glob("state/*")):
            state = self.path / "state"         # the folders in it are parts' runs, as this one
            folder = path == state or (path.parent == state and path.is_dir()
                                       and path.suffix != ".pt")
            allowed = path.is_dir() if folder else path.is_file()
            if path.is_symlink() or not allowed:
                raise self.damaged(path, "is not what this code makes, a regular file")
        before = config.plain(begun["device"])
        try:
            device = resolve(begun["device"])
        except UserError as error:
            raise UserError(f"{self.path} was begun on {before['device']} and cannot go on as it "
                            f"was begun ({error}); resume it where it can, or remove it") from None
        self._make_room()
        for left in (*self.path.glob("*.tmp"), *self.path.glob("state/*.tmp")):
            files.unlink(left)                  # its writer died
        files.mkdir(self.path / "state")
        self._write_config(settings, device)
        self.log.drop_torn()
        say(f"resuming {self.path}")
        for key, value in config.plain(asked).items():
            if value not in (before.get(key), getattr(DeviceSettings, key)):
                say(f"{key}={value} is ignored: this was begun with {key}={before.get(key)}")
        for package, now in versions().items():
            if (then := begun["versions"].get(package)) != now:
                say(f"begun with {package} {then}, going on with {now}: the rest may differ "
                    "in its last bits from a run of one version")
        for module in self._changed_since(begun):
            say(f"begun with another {module}, which was changed since: what is made already "
                "stays; --force makes all of it again")
        return device

    def _read_begun(self) -> dict:
        """run.json, `device` as DeviceSettings. Raises UserError if it is damaged, and if an input
        has other bytes than those that this run was begun with."""
        path = self.path / "run.json"
        try:
            begun = files.read_json(path)
            if not {"sha256", "inputs", "versions"} <= begun.keys():
                raise self.damaged(path, "is damaged, or of an older version of this code")
            begun["device"] = DeviceSettings(**begun["device"])
        except UserError:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise self.damaged(path) from None
        for role, digests in self.job.digests.items():
            before = begun["inputs"].get(role, {})
            if changed := sorted(name for name in {*before, *digests}
                                 if before.get(name) != digests.get(name)):
                raise UserError(
                    f"{self.path} was begun with other bytes of its input '{role}' "
                    f"({', '.join(changed)}), though its fingerprint is the same; restore that "
                    f"input, or remove {self.path} to start again")
        return begun

    # --- the end -----------------------------------------------------------------------------

    def commit(self, meta: dict) -> None:
        """Hash and sync every file of the artefact, write meta.json, rename to OUT."""
        digests = {}
        for path in sorted(self.path.iterdir()):
            if path.name not in UNHASHED and path.is_file():
                files.fsync(path)
                digests[path.name] = files.sha256(path)
        self.log.drop_unknown()
        self.log.sync()
        files.fsync(self.path)
        files.write_sealed(self.path / "meta.json", {
            "format": FORMAT, "fingerprint": self.job.fingerprint, **meta,
            "versions": versions(), "digests": digests,
            **({"log_sha256": files.sha256(self.log.path)} if self.log.path.exists() else {}),
        })
        self._tidy()

    def _tidy(self) -> None:
        for name in ("run.json", "state"):
            self._drop_scaffold(self.path, name)
        files.fsync(self.path)                  # before the rename: OUT never has them
        files.rename(self.path, self.out)
        self._drop_scaffold(self.out)

    def _drop_scaffold(self, folder: Path, *names: str) -> None:
        for path in (folder / name for name in names or SCAFFOLD):
            if path.is_dir():
                files.remove_tree(path)
            elif path.exists():
                files.unlink(path)

    def close(self, *, keep: bool = True) -> None:
        """Let go of the lock. Without `keep`, work that has no state yet and is not committed is
        removed."""
        if self._lock is None:
            return
        begun = any(self.path.glob("state/*")) or (self.path / "meta.json").exists()
        if not keep and not begun:
            with contextlib.suppress(OSError):
                files.remove_tree(self.path)
        self._release()

    # --- states ------------------------------------------------------------------------------

    def write_state(self, name: str, state: dict) -> None:
        """Write a resume state whole. Tensors, numbers, strings, dicts and lists only."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        seal = hashlib.sha256(buffer.getbuffer()).digest()
        buffer.seek(0, io.SEEK_END)
        buffer.write(seal)
        self.log.sync()             # a state never knows more than the log
        files.write_bytes(self.state_path(name), buffer.getbuffer())

    def read_state(self, name: str, *, required: bool = False) -> dict | None:
        """What write_state wrote, on the CPU; None if nothing. Raises UserError if it is damaged,
        or `required` and missing."""
        path = self.state_path(name)
        if not path.exists():
            if required:
                raise self.damaged(path, "is missing")
            return None
        with files.named_errors(path):
            data = path.read_bytes()
        seal = hashlib.sha256(memoryview(data)[:-SEAL_BYTES]).digest()
        if seal != data[-SEAL_BYTES:]:
            raise self.damaged(path, "is damaged, or of an older version of this code")
        try:
            return torchfile.parse(io.BytesIO(data), len(data), path)
        except UserError:
            raise self.damaged(path) from None

    def read_states(self, pattern: str) -> dict[str, dict]:
        """Every state whose name matches, by name."""
        names = sorted(path.stem for path in self.path.glob(f"state/{pattern}.pt"))
        return {name: self.read_state(name) for name in names}

    def state_path(self, name: str) -> Path:
        return self.path / "state" / f"{name.replace('/', '-')}.pt"


def otherwise(out: Path, asked: DeviceSettings) -> str:
    """What to add where a finished artefact was made in another precision than the one asked for,
    which is no part of its fingerprint; '' where it was not, or does not say."""
    try:
        found = unlike(files.read_json(out / "meta.json")["device"], asked)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f", made with {found}: another out= makes it anew" if found else ""


def place_of(out: Path) -> Path:
    """Where OUT is made: a link is followed, also to a folder that is not there yet. Raises
    UserError for what cannot be a new folder."""
    if out.name in ("", ".."):
        raise UserError(f"out: '{out}' is not a new folder; name one")
    if out.name.endswith(PARTIAL):
        raise UserError(f"out: '{out}' is the name of an unfinished run; choose another")
    if above := next(filter(is_finished, out.parents), None):
        raise UserError(f"out: '{out}' lies in {above}, which is finished work: name a folder "
                        "outside it")
    if not out.is_symlink():
        return out
    target = Path(os.path.realpath(out))
    if target.is_symlink():
        raise UserError(f"out: '{out}' is a link that leads in a circle")
    return target


@functools.cache                        # a package's metadata are read whole, as a letter
def versions() -> dict[str, str]:
    """Of Python and the packages that decide an output's last bits. Not to be changed."""
    from importlib.metadata import version

    packages = ("torch", "numpy")
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}
