"""Make every missing artefact of a table, each once.

    python scripts/run_table.py configs/tables/NAME.yaml ... [--quick | --small] [key=value ...]

key=value goes to every command (data=, root=, device=, threads=). Goes on after a failure and says
at the end what failed and why. Repeating the line resumes; what is done, or committed under
results/, is not done again. The same line on several terminals shares the work; --worker does so on
several hosts of one file system, and --status says how far they are. Each command's stderr is in
runs/logs/. Then: python scripts/table.py with the same words prints the table.
"""

import argparse
import contextlib
import functools
import importlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from core import files, lock, processes, records
from core.command import command
from core.device import free_cores
from core.distributed import say
from core.errors import UserError
from core.unfinished import partial_of
from core.workfolder import otherwise
from scripts.tables import claims, estimates, noted, plan, spec, status, workers
from scripts.tables.claims import log_of
from scripts.tables.estimates import Estimates, about

INTERRUPTED = 130                   # exit status of a command that saved its state and ended
THREADS = torch.get_num_threads()   # of torch, unless told
POLL_SECONDS = 0.05                 # between two looks at our own commands
PAUSE_SECONDS, LONGEST_PAUSE = 0.5, 5.0     # between two at what others make, if nothing changes


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python scripts/run_table.py",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="TABLE.yaml | key=value")
    spec.Choice.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and an estimate")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="commands at once")
    parser.add_argument("--worker", action="store_true",
                        help="one of several on this runs/, perhaps on other hosts: needs a file "
                             "system with locks, and the others' commit")
    parser.add_argument("--status", action="store_true",
                        help="print how far it is, who makes what, and what failed; make nothing")
    parser.add_argument("--sets", action="store_true",
                        help="also the sets and checkpoints behind records that are there: figures "
                             "read them")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs}: must be at least 1")
    paths = [word for word in arguments.words if "=" not in word]
    settings = tuple(word for word in arguments.words if "=" in word)
    if not paths:
        raise UserError("name a table: configs/tables/NAME.yaml")
    if arguments.jobs > 1 and not any(word.startswith("threads=") for word in settings):
        settings += (f"threads={max(1, free_cores() // arguments.jobs)}",)

    choice = spec.Choice.of(arguments)
    tables = [table for path in paths for table in spec.read(path, choice, settings)]
    torch.set_num_threads(1)                # a process that used several cannot be forked
    cells = plan.cells_of(tables, fetch=not (arguments.dry_run or arguments.status))
    committed = records.committed()
    missing = plan.wanted(cells, committed, sets=arguments.sets)
    timings = Estimates()
    titles = "; ".join(table.title for table in tables)
    if arguments.status:
        print(status.text(titles, cells, missing, committed, timings), end="")
        return
    say_made_otherwise(cells, committed)
    # Now, not after what they stand on was trained.
    for check in dict.fromkeys(artefact.check for artefact in missing):
        check()
    times = [timings.of(artefact) for artefact in missing]
    say(f"{titles}: {len(cells)} cells; {len(missing)} artefacts to make; {estimates.total(times)}")
    if arguments.dry_run:
        for artefact, seconds in zip(missing, times, strict=True):
            print(f"{about(seconds):>12}  python {shlex.join(artefact.line)}")
        return
    noted.note((*paths, *choice.words, *settings), cells, sets=arguments.sets)
    typed = any(word.startswith("device=") for word in settings)
    names = status.names_of(cells)
    written = {table.path: files.sha256(Path(table.path)) for table in tables}
    with workers.enlisted() if arguments.worker else contextlib.nullcontext(workers.nothing) as ask:
        failed = Scheduler(missing, arguments.jobs, [] if typed else visible_gpus(), names,
                           timings, ask).run()
    for path, digest in written.items():
        if not Path(path).exists() or files.sha256(Path(path)) != digest:
            say(f"{path} was changed meanwhile; the same line makes what it says now")
    if failed:
        for cell in cells:
            if cell.record in failed:
                say(f"{cell}: {failed[cell.record]}")
        broken = sum(cell.record in failed for cell in cells)
        raise UserError(f"{broken} of {len(cells)} cells failed; mend the causes above and repeat "
                        "the same line")


def say_made_otherwise(cells: list[plan.Cell], committed: dict[str, Path]) -> None:
    """Where finished records have another precision than the one asked for, which they are not
    known by."""
    places = [(plan.place_of(cell.record, committed), cell.record.device) for cell in cells]
    found = [f"{place} is already done{text}" for place, asked in places
             if place is not None and (text := otherwise(place, asked))]
    if found:
        say(f"{found[0]} ({len(found)} such record{'s' if len(found) > 1 else ''})")


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, where there are several; else nothing to choose."""
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return names[:count] if count > 1 else []


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
        cause = f"exit status {code}"
    else:
        cause = ("it made something else than was planned, because a YAML or the code was changed "
                 "meanwhile: start again")
    return f"{cause}; see {log_of(artefact)}"
