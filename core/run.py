"""What a method and a training loop see of the work that they are part of: the device, named random
streams, sweeps over rows, the log, states to resume from. Where all that lies on the disk is
`core.workfolder`'s.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import config, distributed, files, streams
from core.device import DeviceSettings, resolve
from core.errors import UserError, is_out_of_memory
from core.job import Job
from core.workfolder import WorkFolder

SAVE_SECONDS = 60.0     # at most this much work is lost to a kill -9
LINE_SECONDS = 10.0     # between two lines that stand for a progress bar
ECHO_SECONDS = 2.0      # between a signal to a whole job and its echo through the starter


class Run:
    """A context manager around one job. Inside, `done` says that OUT is already there.

    Methods use `device`, `stream` and `rng`, `say` and `note`, `work` (the folder to write into);
    ImageSet.map_rows and Loop do their sweeps and states for them. Under torchrun the processes
    work in the folder that rank 0 opened, unless `world` says that each has its own. Raises
    UserError as WorkFolder does.
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
        option: str = "out=",
        world: distributed.World | None = None,
    ) -> None:
        self.job = job
        self.world = world or distributed.world()
        self.folder = WorkFolder(job, out or job.default_out, force=force, wait=wait,
                                 leads=self.world.leads, option=option)
        self.out, self.work = self.folder.out, self.folder.path
        self.seed = job.seed
        self.done = False
        self.checkpoint = None          # the Checkpoint that a trained purifier applies
        self.parts: dict = {}           # the Requests that a purifier is made of, by key
        self.clean = None               # the clean ImageSet of a learner with NEEDS_CLEAN
        self.settings = settings or {}
        self.swept = 0.0                # seconds in sweeps, of this process and those before it
        self.looped: dict[str, float] = {}      # the same in the steps of each loop, by its name
        self.interrupt = Interrupt()
        self._asked = device or DeviceSettings()
        self._last_save, self._save_took = time.monotonic(), 0.0
        self._last_line = 0.0

    # --- life cycle --------------------------------------------------------------------------

    def __enter__(self) -> "Run":
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

    def _open(self) -> None:
        device = self.folder.open(self.settings, self._asked)
        self.done = device is None
        if device is not None:
            self.device = device
            self.interrupt.catch()

    def _follow(self, opened: dict | None) -> None:
        """Join the folder that rank 0 opened; leave quietly if it could not: it says why."""
        if opened is None:
            raise SystemExit(1)
        self.done = opened["done"]
        if not self.done:
            self.device = resolve(DeviceSettings(**opened["device"]))
            self.interrupt.catch()

    def __exit__(self, kind, error, trace) -> None:
        self.interrupt.restore()
        # A mistake found before any work was done leaves nothing, nor does a network too large: its
        # mend is another job in the same place. But others may be writing there.
        mistake = isinstance(error, UserError) or is_out_of_memory(error)
        self.folder.close(keep=not mistake or self.world.size > 1)

    @property
    def seconds(self) -> float:
        """Spent in sweeps and in the steps of loops so far."""
        return self.swept + sum(self.looped.values())

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
        """Make what was written the artefact OUT, whose meta.json says `meta` and the machine."""
        self.world.barrier()                    # the others have written what is theirs
        if self.world.leads:
            machine = {**self.device.as_record(), "processes": self.world.size}
            self.folder.commit({**meta, "device": machine})
        self.world.barrier()
        self.done = True

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

    def initialisation(self, name: str) -> contextlib.AbstractContextManager:
        """`with run.initialisation("surrogate"):` seeds torch's default weight init."""
        return streams.initialisation(self.seed, name)

    # --- states and sweeps -------------------------------------------------------------------

    def save_due(self) -> bool:
        """Whether to save now: SAVE_SECONDS have passed since the last time (so many minutes, if
        saving takes so many seconds), or Ctrl-C came."""
        pause = SAVE_SECONDS * max(1.0, self._save_took)
        return self.interrupt.asked or time.monotonic() - self._last_save >= pause

    def stop_if_interrupted(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed. Call it where the state is saved."""
        if self.interrupt.asked:
            raise KeyboardInterrupt

    def save_state(self, name: str, state: dict) -> None:
        """Write a loop's resume state whole. Tensors, numbers, strings, dicts and lists only."""
        started = time.monotonic()
        self.keep(name, state)
        self._last_save = time.monotonic()
        self._save_took = self._last_save - started

    def keep(self, name: str, state: dict) -> None:
        """The same for what a run will read again and no loop goes on from: saving that is not the
        loop's saving."""
        self.folder.write_state(name, state)

    def load_state(self, name: str, *, required: bool = False) -> dict | None:
        """What save_state or keep wrote, on the CPU; None if nothing. Raises UserError if it is
        damaged, or `required` and missing."""
        return self.folder.read_state(name, required=required)

    def sweep(self, name: str, rows: int, slice_rows: int, *row_files: files.RowFile
              ) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) over `rows` in slices of `slice_rows`, in order, without those that
        earlier processes finished. Processes of one run share the slices and wait for each other at
        the end.

        The rows of a slice count as done once the files that hold them are synced, and as long as
        these still hold what was written: slices of a file that is missing, cut short or damaged
        are yielded again.
        """
        own = f"{name}@{self.world.rank}"
        states = self._sweep_states(name)
        mine = states.get(own) or {"slices": {}, "seconds": 0.0}
        done, lost = self._swept(states, rows, slice_rows, row_files)
        if lost:
            self.say(f"{name}: {len(lost)} slices were done and are not on the disk as they were "
                     "written; they are made again")
        kept = {number: digests for number, digests in mine["slices"].items() if number in done}
        mine |= {"step": slice_rows, "slices": kept}
        before, started = mine["seconds"], time.perf_counter()
        left = [number for number in range(-(-rows // slice_rows)) if number not in done]
        left = left[self.world.rank :: self.world.size]
        with self.progress(rows, name, initial=min(len(done) * slice_rows, rows)) as bar:
            for at, number in enumerate(left, 1):
                start, stop = number * slice_rows, min((number + 1) * slice_rows, rows)
                yield start, stop
                bar.update((stop - start) * self.world.size)
                left_seconds = (time.perf_counter() - started) / at * (len(left) - at)
                self.say_sometimes(f"{name}: {at}/{len(left)} slices of {slice_rows} rows, about "
                                   f"{left_seconds:.0f} s left")
                mine["slices"][number] = [file.digest(start, stop) for file in row_files]
                mine["seconds"] = before + time.perf_counter() - started
                if self.save_due() or at == len(left):
                    for file in row_files:
                        file.sync()
                    self.save_state(own, mine)
                    if at < len(left):
                        self.stop_if_interrupted()
        self.swept += mine["seconds"]
        self.world.barrier()

    def require_sweep(self, name: str, rows: int, slice_rows: int, *row_files: files.RowFile
                      ) -> None:
        """Raise UserError unless a sweep is finished and its rows are on the disk as they were
        written: for rows that nothing can make again, since what made them has changed."""
        done, _ = self._swept(self._sweep_states(name), rows, slice_rows, row_files)
        if len(done) < -(-rows // slice_rows):
            raise self.folder.damaged(row_files[0].path, "does not hold what was written to it")

    def _sweep_states(self, name: str) -> dict[str, dict]:
        """A sweep's states by name: rank 0 reads every process's, the others their own."""
        return self.folder.read_states(f"{name}@{'*' if self.world.leads else self.world.rank}")

    def _swept(self, states: dict[str, dict], rows: int, slice_rows: int,
               row_files: tuple[files.RowFile, ...]) -> tuple[set[int], set[int]]:
        """Numbers of the slices that are done, and of those that were. Rank 0 looks, for all."""
        if not self.world.leads:
            return self.world.from_leader(None)
        done, known = set(), set()
        for name, state in states.items():
            try:
                slices = state["slices"].items() if state["step"] == slice_rows else ()
                for number, digests in slices:
                    start, stop = number * slice_rows, min((number + 1) * slice_rows, rows)
                    known.add(number)
                    if digests == [file.digest(start, stop) for file in row_files]:
                        done.add(number)
            except (KeyError, TypeError, ValueError, AttributeError):
                raise self.folder.damaged(self.folder.state_path(name),
                                          "is of another version of this code") from None
        return self.world.from_leader((done, known - done))

    # --- log, and talking to a person --------------------------------------------------------

    def log(self, loop: str, at: int, **values: Any) -> None:
        """Append one line to log.jsonl: which loop, how far (from 0), and what was measured. Raises
        UserError if that is not finite."""
        check_finite(values, loop, f" in epoch {at + 1}")
        self.folder.log.append(loop, at, values)

    def log_once(self, name: str, **values: Any) -> None:
        """A single log line outside any loop; a repeated run replaces it. Raises as `log`."""
        if self.folder.state_path(name).exists():       # it would replace that loop's lines
            raise RuntimeError(f"'{name}' is a loop's name; give the note another")
        check_finite(values, name)
        self.folder.log.rewind(name, 0)
        self.folder.log.append(name, 0, values)

    def say(self, text: str) -> None:
        """A line on stderr, above a progress bar if there is one; from rank 0 alone."""
        distributed.say(text)

    def say_sometimes(self, text: str) -> None:
        """For a log file: what a progress bar would show."""
        if not sys.stderr.isatty() and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(text)

    def progress(self, total: int, name: str, initial: int = 0):
        """A tqdm bar with ETA; silent when stderr is not a terminal."""
        from tqdm import tqdm

        return tqdm(total=total, initial=initial, desc=name, leave=False, file=sys.stderr,
                    disable=None if self.world.leads else True, dynamic_ncols=True)


class Interrupt:
    """Ctrl-C and SIGTERM: the first asks the run to stop where its state is saved, and another
    stops it at once. What follows within ECHO_SECONDS is the same request: a batch system signals
    every process of a job, and the one that started this one passes it on."""

    def __init__(self) -> None:
        self.asked = False
        self._asked_at = 0.0
        self._before: dict = {}

    def catch(self) -> None:
        """From now on; signals reach a program's main thread alone."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)

    def restore(self) -> None:
        """As it was before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number, frame) -> None:
        if self.asked:
            if time.monotonic() - self._asked_at < ECHO_SECONDS:
                return
            raise KeyboardInterrupt
        self.asked, self._asked_at = True, time.monotonic()
        if distributed.rank() == 0:
            with contextlib.suppress(OSError):  # not sys.stderr, which may be writing just now
                os.write(2, b"stopping after this step; once more stops at once\n")


def check_finite(values: dict[str, Any], what: str, when: str = "") -> None:
    """Raise UserError for the first number that is not finite."""
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{what}: {key} became {value}{when}; lower the learning rate, or look "
                            "at the data")
