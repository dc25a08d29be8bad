"""One piece of work on disk: fingerprint, lock, log, resume state, and the final rename.

A run lives in `OUT.partial/` and ends by renaming it to `OUT/`: if OUT exists, it is whole.
`OUT.partial/` holds config.yaml, log.jsonl, the growing files of the artefact, and three things
that do not survive the end: `lock`, `run.json` (fingerprint, resolved device, versions, digests of
the inputs) and `state/`. What a later process goes on from has a digest: it is as it was written,
or refused, or made again. Writing meta.json is the commit point; what follows is tidying that any
later process can finish.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from core import config, distributed, files, lock, reading, streams, torchfile
from core.device import DeviceSettings, resolve, unlike
from core.errors import UserError
from core.names import component

SAVE_SECONDS = 60.0     # at most this much work is lost to a kill -9
POLL_SECONDS = 0.2      # between two looks at a lock that another process holds
SEAL_BYTES = 32         # of SHA-256, behind every state
SCAFFOLD = ("lock", "run.json", "state")        # in OUT.partial/ only
UNHASHED = ("config.yaml", "log.jsonl", "meta.json", *SCAFFOLD)


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
    digests: dict[str, dict[str, str]] = field(default_factory=dict)    # role -> file -> SHA-256;
                                    # no part of the identity, but the same at every resume

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the job without its names and the inputs' bytes."""
        content = {k: v for k, v in dataclasses.asdict(self).items()
                   if k not in ("name", "preset", "digests")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def default_out(self) -> Path:
        return Path("runs", self.kind, f"{component(self.name)}-{self.fingerprint[:8]}")


class Run:
    """A context manager around one job. Inside, `done` says that OUT is already there.

    Raises UserError if OUT holds other work (unless `force`, which moves it aside) or if another
    process is making it (unless `wait`). Under torchrun rank 0 does all of this, and the others
    work in the folder that it opened.
    """

    def __init__(
        self,
        job: Job,
        *,
        out: Path | None = None,
        settings: dict | None = None,
        device: DeviceSettings | None = None,
        force: bool = False,
        wait: bool = False,
    ) -> None:
        self.job = job
        self.out = place_of(out or job.default_out)
        self.work = self.out.with_name(self.out.name + ".partial")
        self.seed = job.seed
        self.done = False
        self.checkpoint = None          # the Checkpoint that a trained purifier applies
        self.interrupted = False
        self.settings = settings or {}
        self.seconds = 0.0              # spent in sweeps by this process and those before it
        self.world = distributed.world()
        self._device_settings = device or DeviceSettings()
        self._force, self._wait = force, wait
        self._lock: int | None = None
        self._last_save, self._save_took = time.monotonic(), 0.0
        self._last_line = 0.0
        self._loops: set[str] = set()   # whose lines of the log this process knows to be right

    # --- life cycle --------------------------------------------------------------------------

    def __enter__(self) -> "Run":
        if self.world.size == 1:
            return self._open()
        opened = None
        try:
            if self.world.leads:
                self._open()
                device = None if self.done else config.plain(self.device.as_settings())
                opened = {"done": self.done, "device": device}
        finally:
            opened = self.world.from_leader(opened)
        if not self.world.leads:
            self._follow(opened)
        return self

    def _follow(self, opened: dict | None) -> None:
        """Join the folder that rank 0 opened; leave quietly if it could not: it says why."""
        if opened is None:
            raise SystemExit(1)
        self.done = opened["done"]
        if not self.done:
            self.device = resolve(DeviceSettings(**opened["device"]))
            self._catch_signals()

    def _open(self) -> "Run":
        if self._finished():
            self.done = True
            self.say(f"{self.out} is already done{otherwise(self.out, self._device_settings)}")
            return self
        files.mkdir(self.out.parent)
        self._acquire()
        try:
            self._recover()
        except BaseException:
            with contextlib.suppress(OSError):      # what went wrong first is what is said
                if [path.name for path in self.work.glob("*")] == ["lock"]:
                    files.remove_tree(self.work)    # nothing was begun: leave nothing behind
            self._release()
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._restore_signals()
        if self._lock is None:
            return
        begun = any((self.work / "state").glob("*.pt"))
        shared = self.world.size > 1            # others may be writing there
        if isinstance(error, UserError) and not (begun or shared):
            with contextlib.suppress(OSError):
                files.remove_tree(self.work)    # a mistake found before any work was done
        self._release()

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

    def _finished(self) -> bool:
        """True if OUT is this job's artefact; refuses or moves aside anything else there."""
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
                f"{self.out} holds other work (another config, seed or input); choose another "
                "out=, or --force to move it aside")
        self._move_aside(self.out)
        return False

    def _move_aside(self, path: Path) -> None:
        number = 1
        while os.path.lexists(aside := path.with_name(f"{path.name}.old-{number}")):
            number += 1
        files.rename(path, aside)
        self.say(f"moved {path} aside to {aside}")

    def _acquire(self) -> None:
        """Take OUT.partial's lock. It is released by the kernel when this process dies."""
        if self.work.is_symlink():
            raise UserError(f"{self.work} is a link; remove it, or choose another out=")
        told = None
        while self._lock is None:
            try:
                self._lock = lock.take(self.work)
            except lock.Held as holder:
                if not self._wait:
                    raise UserError(f"{self.out} is being made by {holder} right now; --wait for "
                                    "it, or choose another out=") from None
                if told != str(holder):
                    told = str(holder)
                    self.say(f"waiting for {holder} to make {self.out}")
                time.sleep(POLL_SECONDS)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _recover(self) -> None:
        """With the lock held: resume, finish what was committed, or begin."""
        if self._finished():                    # made while we waited for the lock
            files.remove_tree(self.work)
            self.done = True
            return
        holder = self.holder()
        if holder not in (None, self.job.fingerprint) and not self._force:
            raise UserError(f"{self.work} holds other unfinished work (another config, seed or "
                            "input); choose another out=, or --force to drop it")
        if holder != self.job.fingerprint:
            self.device = resolve(self._device_settings)
            self._clear()
            self._begin()
        elif (self.work / "meta.json").exists():
            self._tidy()
            self.done = True
            return
        else:
            self._resume()
        self._catch_signals()

    def holder(self) -> str | None:
        """Whose work OUT.partial holds: the fingerprint in meta.json once that is there (run.json
        may be gone by then), else in run.json; None if it is nobody's. Raises UserError if the
        file is damaged, or the folder is somebody's own."""
        if not self.work.exists():
            return None
        lock.check_ours(self.work)
        for path in (self.work / "meta.json", self.work / "run.json"):
            try:
                return str(files.read_json(path)["fingerprint"])
            except FileNotFoundError:
                continue
            except (ValueError, KeyError, TypeError):
                raise self._damaged(path) from None
        return None

    def _damaged(self, path: Path, why: str = "is damaged") -> UserError:
        return UserError(f"{path} {why}; remove {self.work} to start again")

    def _clear(self) -> None:
        # First what says whose this is: what a death leaves then is nobody's, never half a state.
        for name in ("meta.json", "run.json"):
            files.unlink(self.work / name)
        files.fsync(self.work)
        for path in self.work.iterdir():
            if path.name != lock.NAME:
                is_folder = path.is_dir() and not path.is_symlink()
                files.remove_tree(path) if is_folder else files.unlink(path)

    def _begin(self) -> None:
        self._write_config()
        files.mkdir(self.work / "state")
        files.write_sealed(self.work / "run.json", {
            "fingerprint": self.job.fingerprint, "device": config.plain(self.device.as_settings()),
            "inputs": self.job.digests, "versions": versions()})

    def _write_config(self) -> None:
        resolved = {**self.settings, **config.plain(self.device.as_settings())}
        files.write_bytes(self.work / "config.yaml", config.dump(resolved).encode())

    def _resume(self) -> None:
        begun = self._read_begun()
        for path in (*self.work.iterdir(), *self.work.glob("state/*")):
            folder = path == self.work / "state"
            if path.is_symlink() or not (path.is_dir() if folder else path.is_file()):
                raise self._damaged(path, "is not what this code makes, a regular file")
        device = config.plain(begun["device"])
        try:
            self.device = resolve(begun["device"])
        except UserError:
            raise UserError(f"{self.work} was begun on {device['device']}; resume it there, or "
                            "remove it") from None
        for left in (*self.work.glob("*.tmp"), *(self.work / "state").glob("*.tmp")):
            files.unlink(left)                  # its writer died
        files.mkdir(self.work / "state")
        self._write_config()
        self._drop_lines(lambda entry: True)     # torn by a death or a power cut
        self.say(f"resuming {self.work}")
        for key, value in config.plain(self._device_settings).items():
            if value not in (device.get(key), getattr(DeviceSettings, key)):
                self.say(f"{key}={value} is ignored: this was begun with {key}={device.get(key)}")
        for package, now in versions().items():
            if (then := begun["versions"].get(package)) != now:
                self.say(f"begun with {package} {then}, going on with {now}: the rest may differ "
                         "in its last bits from a run of one version")

    def _read_begun(self) -> dict:
        """run.json, `device` as DeviceSettings. Raises UserError if it is damaged, and if an input
        has other bytes than those that this run was begun with."""
        path = self.work / "run.json"
        try:
            begun = files.read_json(path)
            if not {"sha256", "inputs", "versions"} <= begun.keys():
                raise self._damaged(path, "is damaged, or of an older version of this code")
            begun["device"] = DeviceSettings(**begun["device"])
        except UserError:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise self._damaged(path) from None
        for role, digests in self.job.digests.items():
            before = begun["inputs"].get(role, {})
            if changed := sorted(name for name in {*before, *digests}
                                 if before.get(name) != digests.get(name)):
                raise UserError(
                    f"{self.work} was begun with other bytes of its input '{role}' "
                    f"({', '.join(changed)}), though its fingerprint is the same; restore that "
                    f"input, or remove {self.work} to start again")
        return begun

    def lineage_entry(self) -> dict:
        """What this run adds to the lineage of its output."""
        entry = {
            "method": self.job.method, "preset": self.job.preset, "version": self.job.version,
            "seed": self.seed, "config": self.job.config, "settings": self.job.settings,
            "fingerprint": self.job.fingerprint, "inputs": self.job.inputs,
            "seconds": round(self.seconds, 3),
        }
        if self.checkpoint is not None:
            entry["trained_on"] = self.checkpoint.meta["trained_on"]
        return entry

    def finish(self, meta: dict) -> None:
        """Commit: hash and sync every file of the artefact, write meta.json, rename to OUT."""
        self.world.barrier()                    # the others have written what is theirs
        if self.world.leads:
            self._commit(meta)
        self.world.barrier()
        self.done = True

    def _commit(self, meta: dict) -> None:
        digests = {}
        for path in sorted(self.work.iterdir()):
            if path.name not in UNHASHED and path.is_file():
                files.fsync(path)
                digests[path.name] = files.sha256(path)
        self._drop_lines(lambda entry: entry["loop"] in self._loops)
        self._sync_log()
        log = self.work / "log.jsonl"
        files.fsync(self.work)
        files.write_sealed(self.work / "meta.json", {
            "format": 1, "fingerprint": self.job.fingerprint, **meta,
            "device": {**self.device.describe(), "processes": self.world.size},
            "versions": versions(), "digests": digests,
            **({"log_sha256": files.sha256(log)} if log.exists() else {}),
        })
        self._tidy()

    def _tidy(self) -> None:
        for name in ("run.json", "state"):
            self._drop_scaffold(self.work, name)
        files.fsync(self.work)                  # before the rename: OUT never has them
        files.rename(self.work, self.out)
        self._drop_scaffold(self.out)

    def _drop_scaffold(self, folder: Path, *names: str) -> None:
        for path in (folder / name for name in names or SCAFFOLD):
            if path.is_dir():
                files.remove_tree(path)
            elif path.exists():
                files.unlink(path)

    # --- Ctrl-C ------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def _restore_signals(self) -> None:
        for number, handler in getattr(self, "_handlers", {}).items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number, frame) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.say("stopping after this step; once more stops at once")

    def stop_if_interrupted(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed. Call it where the state is saved."""
        if self.interrupted:
            raise KeyboardInterrupt

    # --- random streams ----------------------------------------------------------------------

    def stream(self, name: str, step: int = 0, device: str | torch.device = "cpu"):
        """A torch.Generator of its own for (seed, name, step)."""
        return streams.generator(self.seed, name, step, device)

    def rng(self, name: str, step: int = 0) -> np.random.Generator:
        """A NumPy Generator of its own for (seed, name, step)."""
        return streams.rng(self.seed, name, step)

    def reseed(self, name: str, step: int) -> None:
        """Seed torch's global generators, for layers that take no generator of their own."""
        torch.manual_seed(streams.derive(self.seed, name, step))

    def initialisation(self, name: str):
        """`with run.initialisation("surrogate"):` seeds torch's default weight init."""
        return streams.initialisation(self.seed, name)

    # --- state, sweeps and log ---------------------------------------------------------------

    def save_due(self) -> bool:
        """Whether to save now: SAVE_SECONDS have passed since the last time (so many minutes, if
        saving takes so many seconds), or Ctrl-C came."""
        pause = SAVE_SECONDS * max(1.0, self._save_took)
        return self.interrupted or time.monotonic() - self._last_save >= pause

    def save_state(self, name: str, state: dict) -> None:
        """Write a loop's resume state whole. Tensors, numbers, strings, dicts and lists only."""
        started = time.monotonic()
        self.keep(name, state)
        self._last_save = time.monotonic()
        self._save_took = self._last_save - started

    def keep(self, name: str, state: dict) -> None:
        """The same for what a run will read again and no loop goes on from: saving that is not the
        loop's saving."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        seal = hashlib.sha256(buffer.getbuffer()).digest()
        buffer.seek(0, io.SEEK_END)
        buffer.write(seal)
        self._sync_log()            # a state never knows more than the log
        files.write_bytes(self._state_path(name), buffer.getbuffer())

    def load_state(self, name: str, *, required: bool = False) -> dict | None:
        """What save_state or keep wrote, on the CPU; None if nothing. Raises UserError if it is
        damaged, or `required` and missing."""
        path = self._state_path(name)
        if not path.exists():
            if required:
                raise self._damaged(path, "is missing")
            return None
        with files.named_errors(path):
            data = path.read_bytes()
        seal = hashlib.sha256(memoryview(data)[:-SEAL_BYTES]).digest()
        if seal != data[-SEAL_BYTES:]:
            raise self._damaged(path, "is damaged, or of an older version of this code")
        try:
            return torchfile.load(path)
        except UserError:
            raise self._damaged(path) from None

    def _state_path(self, name: str) -> Path:
        return self.work / "state" / f"{name.replace('/', '-')}.pt"

    def sweep(self, name: str, rows: int, step: int, *row_files: files.RowFile
              ) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) over `rows` in slices of `step`, in order, without those that earlier
        processes finished. Processes of one run share the slices and wait for each other at the
        end.

        The rows of a slice count as done once the files that hold them are synced, and as long as
        these still hold what was written: slices of a file that is missing, cut short or damaged
        are yielded again.
        """
        own = f"{name}@{self.world.rank}"
        mine = self.load_state(own) or {"slices": {}, "seconds": 0.0}
        done, lost = self._swept(name, rows, step, row_files)
        if lost:
            self.say(f"{name}: {len(lost)} slices were done and are not on the disk as they were "
                     "written; they are made again")
        mine |= {"step": step, "slices": {number: digests for number, digests
                                          in mine["slices"].items() if number in done}}
        before, started = mine["seconds"], time.perf_counter()
        left = [number for number in range(-(-rows // step)) if number not in done]
        left = left[self.world.rank :: self.world.size]
        with self.progress(rows, name, initial=min(len(done) * step, rows)) as bar:
            for at, number in enumerate(left, 1):
                start, stop = number * step, min((number + 1) * step, rows)
                yield start, stop
                bar.update((stop - start) * self.world.size)
                left_seconds = (time.perf_counter() - started) / at * (len(left) - at)
                self.say_sometimes(f"{name}: {at}/{len(left)} slices of {step} rows, about "
                                   f"{left_seconds:.0f} s left")
                mine["slices"][number] = [file.digest(start, stop) for file in row_files]
                mine["seconds"] = before + time.perf_counter() - started
                if self.save_due() or at == len(left):
                    for file in row_files:
                        file.sync()
                    self.save_state(own, mine)
                    if at < len(left):
                        self.stop_if_interrupted()
        self.seconds += mine["seconds"]
        self.world.barrier()

    def require_sweep(self, name: str, rows: int, step: int, *row_files: files.RowFile) -> None:
        """Raise UserError unless a sweep is finished and its rows are on the disk as they were
        written: for rows that nothing can make again, since what made them has changed."""
        done, _ = self._swept(name, rows, step, row_files)
        if len(done) < -(-rows // step):
            raise self._damaged(row_files[0].path, "does not hold what was written to it")

    def _swept(self, name: str, rows: int, step: int, row_files: tuple[files.RowFile, ...]
               ) -> tuple[set[int], set[int]]:
        """Numbers of the slices that are done, and of those that were. Rank 0 looks, for all."""
        if not self.world.leads:
            return self.world.from_leader(None)
        done, known = set(), set()
        for path in sorted((self.work / "state").glob(f"{name}@*.pt")):
            state = self.load_state(path.stem)
            try:
                slices = state["slices"].items() if state["step"] == step else ()
                for number, digests in slices:
                    start, stop = number * step, min((number + 1) * step, rows)
                    known.add(number)
                    if digests == [file.digest(start, stop) for file in row_files]:
                        done.add(number)
            except (KeyError, TypeError, ValueError, AttributeError):
                raise self._damaged(path, "is of another version of this code") from None
        return self.world.from_leader((done, known - done))

    def log(self, loop: str, at: int, **values: Any) -> None:
        """Append one line to log.jsonl: which loop, how far, and what was measured."""
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{loop}: {key} became {value} at {at}; lower the learning rate, "
                                "or look at the data")
        line = json.dumps({"loop": loop, "at": at, **values}).encode() + b"\n"
        self._loops.add(loop)
        if self.world.leads:
            files.append(self.work / "log.jsonl", line)

    def note(self, name: str, **values: Any) -> None:
        """A single log line outside any loop; a repeated run replaces it."""
        self.rewind_log(name, 0)
        self.log(name, 0, **values)

    def rewind_log(self, loop: str, at: int) -> None:
        """Drop the lines of a loop from `at` on: they will be written again."""
        self._loops.add(loop)
        self._drop_lines(lambda entry: entry["loop"] != loop or entry["at"] < at)

    def _drop_lines(self, keep: Callable[[dict], bool]) -> None:
        """Keep the lines of log.jsonl that are whole and that `keep` is true of."""
        path = self.work / "log.jsonl"
        if not path.exists() or not self.world.leads:
            return
        data = path.read_bytes()
        kept = b"".join(line for line in data.splitlines(keepends=True)
                        if (entry := _entry(line)) is not None and keep(entry))
        if kept != data:
            files.write_bytes(path, kept)

    def log_digest(self, loop: str) -> str:
        """SHA-256 of a loop's lines so far, whatever stands between them."""
        path, digest = self.work / "log.jsonl", hashlib.sha256()
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            if (entry := _entry(line)) is not None and entry["loop"] == loop:
                digest.update(line)
        return digest.hexdigest()

    def read_log(self) -> list[dict]:
        """The lines of log.jsonl so far."""
        path = self.work / "log.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def _sync_log(self) -> None:
        if (self.work / "log.jsonl").exists():
            files.fsync(self.work / "log.jsonl")

    # --- talking to a person -----------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line on stderr, above a progress bar if there is one; from rank 0 alone."""
        distributed.say(text)

    def say_sometimes(self, text: str) -> None:
        """For a log file: what a progress bar would show, at most every ten seconds."""
        if not sys.stderr.isatty() and time.monotonic() - self._last_line >= 10:
            self._last_line = time.monotonic()
            self.say(text)

    def progress(self, total: int, name: str, initial: int = 0):
        """A tqdm bar with ETA; silent when stderr is not a terminal."""
        from tqdm import tqdm

        return tqdm(total=total, initial=initial, desc=name, leave=False, file=sys.stderr,
                    disable=None if self.world.leads else True, dynamic_ncols=True)


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
    if out.name.endswith(".partial"):
        raise UserError(f"out: '{out}' is the name of an unfinished run; choose another")
    if not out.is_symlink():
        return out
    target = Path(os.path.realpath(out))
    if target.is_symlink():
        raise UserError(f"out: '{out}' is a link that leads in a circle")
    return target


def _entry(line: bytes) -> dict | None:
    """A line of the log; None if it is torn or damaged."""
    with contextlib.suppress(ValueError):
        entry = reading.parse_json(line)
        if line.endswith(b"\n") and isinstance(entry, dict) and isinstance(entry.get("loop"), str) \
                and type(entry.get("at")) is int:
            return entry
    return None


def versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "numpy")
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}


def this_line() -> str:
    """The command line as typed, for 'the same line resumes'."""
    words = list(sys.orig_argv)
    words[0] = Path(words[0]).name
    return shlex.join(words)
