"""Commands at once: what is missing of a table, each artefact after what it needs."""

import functools
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from core import files, lock
from core.artefact import partial_of
from core.distributed import say
from core.errors import UserError
from scripts.tables import claims, estimates, plan, processes, status, workers
from scripts.tables.claims import log_of
from scripts.tables.estimates import Estimates, about

INTERRUPTED = 130                   # exit status of a command that saved its state and ended
THREADS = torch.get_num_threads()   # of torch, unless told
POLL_SECONDS = 0.05                 # between two looks at our own commands
PAUSE_SECONDS, LONGEST_PAUSE = 0.5, 5.0     # between two at what others make, if nothing changes


@dataclass(frozen=True)
class Running:
    """A command that was launched: whether it began from nothing, on which GPU of several, and the
    lock, if any, that keeps other runners from that."""

    process: subprocess.Popen | processes.Forked
    claim: claims.Claim
    started: float
    fresh: bool
    gpu: str | None
    locks: tuple[int, ...]

    def release(self) -> None:
        self.claim.release()
        for descriptor in self.locks:
            os.close(descriptor)


class Scheduler:
    """Runs commands, at most `jobs` at a time: of the artefacts whose needs are there the first
    whose claim is free, the longest chain first; on several GPUs, each on one that no runner of
    this host has a command on, or on our least busy one.

    Other runners take from the same artefacts: what they made is found done, and what they failed
    to make is not tried again. `ask` is called before each command and may raise UserError: then
    what is running ends, and nothing else begins.
    """

    def __init__(self, missing: list[plan.Artefact], jobs: int, gpus: list[str],
                 names: dict[plan.Artefact, str] | None = None, timings: Estimates | None = None,
                 ask: Callable[[], None] = workers.nothing) -> None:
        self.jobs, self.gpus, self.total = jobs, gpus, len(missing)
        self.names, self.timings, self.ask = names or {}, timings or Estimates(), ask
        times = {artefact: self.timings.of(artefact) for artefact in missing}
        known = [seconds for seconds in times.values() if seconds]
        typical = sum(known) / len(known) if known else 1.0
        chain = estimates.chains(missing, lambda artefact: times[artefact] or typical)
        # Sorting is stable: what an artefact needs stays before it.
        self.pending = dict.fromkeys(sorted(missing, key=lambda artefact: -chain[artefact]))
        self.running: dict[plan.Artefact, Running] = {}
        self.failed: dict[plan.Artefact, str] = {}
        # Failures of before, which a repeated line tries again; but a task of a SLURM array that is
        # started again does not.
        self.before = {found.token for artefact in missing if (found := claims.failure(artefact))
                       and not (found.submission and found.submission == claims.submission())}
        self.killed: set[plan.Artefact] = set()
        # Where torch has looked for a GPU and found one, a fork of this process cannot use it.
        self.forks = sys.platform == "linux" and not torch.cuda.is_available()
        self.finished = 0
        self._pause, self._next_look, self._told = PAUSE_SECONDS, 0.0, ""

    def run(self) -> dict[plan.Artefact, str]:
        """Returns what failed, and why."""
        refused = None
        with processes.interruptible():
            try:
                while self.running or (self.pending and refused is None):
                    self._collect()
                    if refused is None and time.monotonic() >= self._next_look:
                        try:
                            self._look()
                        except UserError as error:      # of `ask`
                            refused = error
                    time.sleep(POLL_SECONDS)
            except BaseException:                       # Ctrl-C, or our own log on a full disk
                processes.stop(running.process for running in self.running.values())
                raise
            finally:
                for running in self.running.values():
                    running.release()
        if refused is not None:
            raise refused
        return self.failed

    def _look(self) -> None:
        """Begin what can be, and drop what others made or failed to make. While nothing changes the
        next look is later and later."""
        before, waiting = (len(self.pending), len(self.running)), ""
        for artefact in list(self.pending):
            if len(self.running) >= self.jobs:
                break
            broken = next((need for need in artefact.needs if need in self.failed), None)
            if broken is not None:
                self._fail(artefact, self.failed[broken])
            elif self._ready(artefact):
                try:
                    self._take(artefact)
                except lock.Held as held:
                    waiting = waiting or f"waiting for {held} to make {self._name(artefact)}"
        if (len(self.pending), len(self.running)) != before:
            self._pause = PAUSE_SECONDS
        elif waiting and not self.running and waiting != self._told:
            self._told = waiting
            say(waiting)
        self._next_look = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _ready(self, artefact: plan.Artefact) -> bool:
        return not any(need in self.pending or need in self.running for need in artefact.needs)

    def _take(self, artefact: plan.Artefact) -> None:
        """Begin an artefact whose needs are there, or find what became of it. Raises Held if
        somebody is making it."""
        if artefact.done:
            self._drop(artefact)
            return
        claim, launched = claims.take(artefact), False
        try:
            # Looked at again with the claim held. NFS remembers that a name was missing until the
            # folder is read.
            if artefact.out.parent.is_dir():
                os.listdir(artefact.out.parent)
            found = claims.failure(artefact)
            if artefact.done:
                self._drop(artefact)
            elif found and found.token not in self.before:
                self._fail(artefact, found.why)
            else:
                self.ask()
                self._launch(artefact, claim)
                launched = True
        finally:
            if not launched:
                claim.release()

    def _drop(self, artefact: plan.Artefact) -> None:
        del self.pending[artefact]
        self.finished += 1

    def _fail(self, artefact: plan.Artefact, why: str) -> None:
        self._drop(artefact)
        self.failed[artefact] = why

    def _launch(self, artefact: plan.Artefact, claim: claims.Claim) -> None:
        files.mkdir(claims.LOGS)
        fresh = not partial_of(artefact.out).exists()
        gpu, locks = self._gpu()
        environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        # torch.compile starts 32 processes for each command, or one a core if there are fewer.
        share = str(min(32, max(1, free_cores() // self.jobs)))
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = os.environ.get(
            "TORCHINDUCTOR_COMPILE_THREADS", share)
        with open(log_of(artefact), "w") as log:
            options = {"stderr": log, "env": environment,
                       "pass_fds": (claim.descriptor, *locks)}
            if artefact.brief and self.forks:           # to import torch would take longer
                process = processes.fork(functools.partial(run_here, artefact.line), artefact.line,
                                         **options)
            else:
                process = processes.start(artefact.line, stdout=subprocess.DEVNULL, **options)
        del self.pending[artefact]
        self.running[artefact] = Running(process, claim, time.monotonic(), fresh, gpu, locks)
        say(f"begun: {self._name(artefact)} ({log_of(artefact)})")

    def _gpu(self) -> tuple[str | None, tuple[int, ...]]:
        """Which of several GPUs is the next command's, and the lock that keeps it."""
        if taken := claims.take_gpu(self.gpus):
            return taken[0], taken[1:]
        busy = [running.gpu for running in self.running.values()]
        return min(self.gpus, key=busy.count, default=None), ()

    def _collect(self) -> None:
        for artefact, running in list(self.running.items()):
            code = running.process.poll()
            if code is None:
                continue
            del self.running[artefact]
            self._next_look = 0.0
            seconds = time.monotonic() - running.started
            if code == 0 and artefact.done:
                self.finished += 1
                if running.fresh:
                    self.timings.note(artefact, seconds)
                self._say_done(artefact, seconds)
            elif (code < 0 or code == INTERRUPTED) and artefact not in self.killed:
                self.killed.add(artefact)       # by a person, a batch system or for its memory
                self.pending = {artefact: None, **self.pending}
                how = f"killed by signal {-code}" if code < 0 else "interrupted"
                say(f"{how}, to be gone on with: {self._name(artefact)}")
            else:
                self.finished += 1
                self.failed[artefact] = why = why_of(artefact, code)
                running.claim.fail(why)
                say(f"[{self.finished}/{self.total}] FAILED: {self._name(artefact)}: {why}")
            running.release()

    # --- what a person reads -----------------------------------------------------------------

    def _name(self, artefact: plan.Artefact) -> str:
        return self.names.get(artefact, str(artefact))

    def _say_done(self, artefact: plan.Artefact, seconds: float) -> None:
        for other in list(self.pending):        # what other runners made meanwhile counts
            if self._ready(other) and other.done:
                self._drop(other)
        left = self._left()
        say(f"[{self.finished}/{self.total}] {self._name(artefact)}: {status.result_of(artefact)}  "
            f"({about(seconds)}{left and f'; {left}'})")

    def _left(self) -> str:
        """'about 9 min': what is still to be made, by all who make it now."""
        elsewhere = len(claims.held(self.pending))
        here = min(self.jobs, len(self.running) + len(self.pending) - elsewhere)
        begun = {artefact: time.monotonic() - running.started
                 for artefact, running in self.running.items()}
        return estimates.left([*self.running, *self.pending], self.timings, here + elsewhere, begun)


def run_here(line: list[str]) -> int:
    """A command in this process, in which nothing ran on several threads yet."""
    torch.set_num_threads(THREADS)
    return importlib.import_module(line[0].removesuffix(".py")).main(line[1:])


def why_of(artefact: plan.Artefact, code: int) -> str:
    """The error line of a command that failed, and where the rest is."""
    try:
        lines = log_of(artefact).read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        cause = errors[-1]
    elif code < 0:
        cause = f"killed by signal {-code}"
    elif code > 0:
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        cause = f"exit status {code}: {last}"
    else:
        cause = ("it made something else than was planned, because a YAML or the code was changed "
                 "meanwhile: start again")
    return f"{cause}; see {log_of(artefact)}"


def free_cores() -> int:
    """Cores that this process may use: a container or a batch system may have given it a few."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:                          # not on macOS
        return os.cpu_count() or 1
