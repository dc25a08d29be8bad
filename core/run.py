"""One piece of work on disk: fingerprint, lock, log, resume state, and the final rename.

A run lives in `OUT.partial/` and ends by renaming it to `OUT/`: if OUT exists, it is whole.
`OUT.partial/` holds config.yaml, log.jsonl, the growing files of the artefact, and three things
that do not survive the end: `lock`, `run.json` (fingerprint and resolved device) and `state/`.
Writing meta.json is the commit point; what follows is tidying that any later process can finish.
"""

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from core import config, files, reading, streams, torchfile
from core.device import DeviceSettings, resolve, unlike
from core.distributed import world
from core.errors import UserError
from core.names import component, printable

SAVE_SECONDS = 60.0     # at most this much work is lost to a kill -9
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

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the job without its names."""
        content = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("name", "preset")}
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
        self.out = out or job.default_out
        if not self.out.name:
            raise UserError(f"out: '{self.out}' is not a new folder; name one")
        self.work = self.out.with_name(self.out.name + ".partial")
        self.seed = job.seed
        self.done = False
        self.checkpoint = None          # the Checkpoint that a trained purifier applies
        self.interrupted = False
        self.settings = settings or {}
        self.seconds = 0.0              # spent in sweeps by this process and those before it
        self.world = world()
        self._device_settings = device or DeviceSettings()
        self._force, self._wait = force, wait
        self._lock: int | None = None
        self._last_save, self._save_took = time.monotonic(), 0.0
        self._last_line = 0.0

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
            if [path.name for path in self.work.glob("*")] == ["lock"]:
                files.remove_tree(self.work)        # nothing was begun: leave nothing behind
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
            files.remove_tree(self.work)        # a mistake found before any work was done
        self._release()

    def occupant(self) -> Literal["nothing", "this", "other"]:
        """What OUT is: absent, this job's artefact, or something else."""
        if not self.out.exists():
            return "nothing"
        try:
            found = reading.read_json(self.out / "meta.json")["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            found = None
        return "this" if found == self.job.fingerprint else "other"

    def _finished(self) -> bool:
        """True if OUT is this job's artefact; refuses or moves aside anything else there."""
        occupant = self.occupant()
        if occupant == "this" and (self.out / "lock").exists():
            files.unlink(self.out / "lock")     # its maker died right after the rename
        if occupant != "other":
            return occupant == "this"
        if not self._force:
            raise UserError(f"{self.out} holds other work (another config, seed or input); "
                            "choose another out=, or --force to move it aside")
        self._move_aside(self.out)
        return False

    def _move_aside(self, path: Path) -> None:
        number = 1
        while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
            number += 1
        files.rename(path, aside)
        self.say(f"moved {path} aside to {aside}")

    def _acquire(self) -> None:
        """Take OUT.partial's lock. It is released by the kernel when this process dies."""
        while True:
            files.mkdir(self.work)
            path = self.work / "lock"
            with files.named_errors(path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if self._wait else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(descriptor)
                raise UserError(f"{self.out} is being made by another process right now; wait for "
                                "it, or choose another out=") from None
            # Whoever held the lock may have finished and renamed the folder under us.
            try:
                current = os.stat(path).st_ino == os.fstat(descriptor).st_ino
            except FileNotFoundError:
                current = False
            if current:
                self._lock = descriptor
                return
            os.close(descriptor)
            if self._finished():
                self.done = True
                return

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _recover(self) -> None:
        """With the lock held: resume, finish what was committed, or begin."""
        if self.done:
            return
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
        file is damaged."""
        for path in (self.work / "meta.json", self.work / "run.json"):
            try:
                return reading.parse_json(path.read_text())["fingerprint"]
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path} is damaged; remove {self.work} to start again") from None
        return None

    def _clear(self) -> None:
        files.unlink(self.work / "meta.json")   # first: without it nothing here looks committed
        for path in self.work.iterdir():
            if path.name != "lock":
                files.remove_tree(path) if path.is_dir() else files.unlink(path)

    def _begin(self) -> None:
        device = self.device.as_settings()
        resolved = {**self.settings, **config.plain(device)}
        files.write_bytes(self.work / "config.yaml", config.dump(resolved).encode())
        files.mkdir(self.work / "state")
        files.write_json(self.work / "run.json",
                         {"fingerprint": self.job.fingerprint, "device": config.plain(device)})

    def _resume(self) -> None:
        begun = json.loads((self.work / "run.json").read_text())["device"]
        try:
            self.device = resolve(DeviceSettings(**begun))
        except UserError:
            raise UserError(f"{self.work} was begun on {begun['device']}; resume it there, or "
                            "remove it") from None
        self._drop_torn_line()
        self.say(f"resuming {self.work}")
        for key, value in config.plain(self._device_settings).items():
            if value not in (begun.get(key), getattr(DeviceSettings, key)):
                self.say(f"{key}={value} is ignored: this was begun with {key}={begun.get(key)}")

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
            if path.name not in UNHASHED and path.is_file() and path.suffix != ".tmp":
                digests[path.name] = files.sha256(path)
        self._sync_log()
        files.fsync(self.work)
        files.write_json(self.work / "meta.json", {
            "format": 1, "fingerprint": self.job.fingerprint, **meta,
            "device": {**self.device.describe(), "processes": self.world.size},
            "versions": versions(), "digests": digests,
        })
        self._tidy()

    def _tidy(self) -> None:
        files.unlink(self.work / "run.json")
        files.remove_tree(self.work / "state")
        files.rename(self.work, self.out)
        files.unlink(self.out / "lock")

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
        import io

        started, buffer = time.monotonic(), io.BytesIO()
        torch.save(state, buffer)
        self._sync_log()            # a state never knows more than the log
        files.write_bytes(self._state_path(name), buffer.getbuffer())
        self._last_save = time.monotonic()
        self._save_took = self._last_save - started

    def load_state(self, name: str) -> dict | None:
        """What save_state wrote, on the CPU; None if nothing. Raises UserError if it is damaged."""
        path = self._state_path(name)
        if not path.exists():
            return None
        try:
            return torchfile.load(path)
        except UserError:
            raise UserError(f"{path} is damaged; remove {self.work} to start again") from None

    def _state_path(self, name: str) -> Path:
        return self.work / "state" / f"{name.replace('/', '-')}.pt"

    def sweep(self, name: str, rows: int, step: int, *files_to_sync: files.RowFile
              ) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) over `rows` in slices of `step`, in order, without those that earlier
        processes finished. Processes of one run share the slices and wait for each other at the
        end.

        The rows of a slice count as done once the files that hold them are synced.
        """
        own = f"{name}@{self.world.rank}"
        found = {path.stem: self.load_state(path.stem)
                 for path in (self.work / "state").glob(f"{name}@*.pt")}
        done = {number for state in found.values() for number in state["slices"]}
        mine = found.get(own, {"slices": [], "seconds": 0.0})
        before, started = mine["seconds"], time.perf_counter()
        self.world.barrier()                    # nobody writes before all have read
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
                mine["slices"].append(number)
                mine["seconds"] = before + time.perf_counter() - started
                if self.save_due() or at == len(left):
                    for file in files_to_sync:
                        file.sync()
                    self.save_state(own, mine)
                    if at < len(left):
                        self.stop_if_interrupted()
        self.seconds += mine["seconds"]
        self.world.barrier()

    def log(self, loop: str, at: int, **values: Any) -> None:
        """Append one line to log.jsonl: which loop, how far, and what was measured."""
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{loop}: {key} became {value} at {at}; lower the learning rate, "
                                "or look at the data")
        line = json.dumps({"loop": loop, "at": at, **values})
        if self.world.leads:
            files.append(self.work / "log.jsonl", line.encode() + b"\n")

    def note(self, name: str, **values: Any) -> None:
        """A single log line outside any loop; a repeated run replaces it."""
        self.rewind_log(name, 0)
        self.log(name, 0, **values)

    def rewind_log(self, loop: str, at: int) -> None:
        """Drop the lines of a loop from `at` on: they will be written again."""
        path = self.work / "log.jsonl"
        if not path.exists() or not self.world.leads:
            return
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines
                if (entry := json.loads(line))["loop"] != loop or entry["at"] < at]
        if len(kept) < len(lines):
            files.write_bytes(path, b"".join(kept))

    def read_log(self) -> list[dict]:
        """The lines of log.jsonl so far."""
        path = self.work / "log.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def _sync_log(self) -> None:
        if (self.work / "log.jsonl").exists():
            files.fsync(self.work / "log.jsonl")

    def _drop_torn_line(self) -> None:
        path = self.work / "log.jsonl"
        data = path.read_bytes() if path.exists() else b""
        if data and not data.endswith(b"\n"):
            files.write_bytes(path, data[: data.rfind(b"\n") + 1])

    # --- talking to a person -----------------------------------------------------------------

    def say(self, text: str) -> None:
        """A line on stderr, above a progress bar if there is one; from rank 0 alone."""
        from tqdm import tqdm

        if self.world.leads:
            tqdm.write(printable(text), file=sys.stderr)

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
        found = unlike(reading.read_json(out / "meta.json")["device"], asked)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    return f", made with {found}: another out= makes it anew" if found else ""


def versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "numpy")
    return {"python": sys.version.split()[0], **{name: version(name) for name in packages}}


def this_line() -> str:
    """The command line as typed, for 'the same line resumes'."""
    words = list(sys.orig_argv)
    words[0] = Path(words[0]).name
    return shlex.join(words)
