"""Make every missing artefact of a table, each once.

    python scripts/run_table.py configs/tables/NAME.yaml [--quick | --small] [key=value ...]

key=value goes to every command (data=, root=, device=, threads=). Goes on after a failure and says
at the end what failed and why. Repeating the line resumes; what is done, or committed under
results/, is not done again, and what another process is making is waited for. Each command's stderr
is in runs/logs/. Then: python scripts/table.py with the same words prints the table.
"""

import argparse
import contextlib
import json
import math
import os
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from core import files, processes, reading, records
from core.command import command
from core.device import free_cores
from core.distributed import say
from core.errors import UserError
from core.workfolder import otherwise
from scripts.tables import plan, spec

LOGS, TIMINGS = Path("runs/logs"), Path("runs/timings.jsonl")


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python scripts/run_table.py",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE.yaml")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    spec.Choice.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and an estimate")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="commands at once")
    parser.add_argument("--sets", action="store_true",
                        help="also the sets and checkpoints behind records that are there: figures "
                             "read them")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.jobs < 1:
        raise UserError(f"--jobs {arguments.jobs}: must be at least 1")
    settings = tuple(arguments.settings)
    if arguments.jobs > 1 and not any(word.startswith("threads=") for word in settings):
        settings += (f"threads={max(1, free_cores() // arguments.jobs)}",)

    tables = spec.read(arguments.table, spec.Choice.of(arguments), settings)
    cells = plan.cells_of(tables)
    committed = records.committed()
    missing = plan.wanted(cells, committed, sets=arguments.sets)
    say_made_otherwise(cells, committed)
    for artefact in missing:                # now, not after what they stand on was trained
        artefact.check()
    timings = read_timings()
    times = [seconds_of(artefact, timings) for artefact in missing]
    titles = "; ".join(table.title for table in tables)
    say(f"{titles}: {len(cells)} cells; {len(missing)} artefacts to make; {estimate(times)}")
    if arguments.dry_run:
        for artefact, seconds in zip(missing, times, strict=True):
            print(f"{about(seconds):>12}  python {shlex.join(artefact.line)}")
        return
    typed = any(word.startswith("device=") for word in settings)
    failed = Scheduler(missing, arguments.jobs, [] if typed else visible_gpus()).run()
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


@dataclass(frozen=True)
class Running:
    """A command that was launched: whether it began from nothing, and on which GPU of several."""

    process: subprocess.Popen
    started: float
    fresh: bool
    gpu: str | None


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, where there are several; else nothing to choose."""
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return names[:count] if count > 1 else []


class Scheduler:
    """Runs commands, at most `jobs` at a time, each when what it needs is there; on several GPUs,
    each on the least busy one."""

    def __init__(self, missing: list[plan.Artefact], jobs: int, gpus: list[str]) -> None:
        self.pending, self.jobs, self.total = list(missing), jobs, len(missing)
        self.running: dict[plan.Artefact, Running] = {}
        self.gpus = gpus
        self.failed: dict[plan.Artefact, str] = {}
        self.finished = 0

    def run(self) -> dict[plan.Artefact, str]:
        """Returns what failed, and why."""
        with processes.interruptible():
            try:
                while self.pending or self.running:
                    self._start()
                    time.sleep(0.05)
                    self._collect()
            except BaseException:                       # Ctrl-C, or our own log on a full disk
                processes.stop(running.process for running in self.running.values())
                raise
        return self.failed

    def _start(self) -> None:
        for artefact in list(self.pending):
            if len(self.running) >= self.jobs:
                return
            broken = next((need for need in artefact.needs if need in self.failed), None)
            if broken is not None:
                self.pending.remove(artefact)
                self.failed[artefact] = self.failed[broken]
            elif not any(need in self.pending or need in self.running for need in artefact.needs):
                self.pending.remove(artefact)
                self._launch(artefact)

    def _launch(self, artefact: plan.Artefact) -> None:
        files.mkdir(LOGS)
        fresh = not artefact.out.with_name(artefact.out.name + ".partial").exists()
        busy = [running.gpu for running in self.running.values()]
        gpu = min(self.gpus, key=busy.count, default=None)
        environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        # torch.compile starts 32 processes for each command, or one a core if there are fewer.
        share = str(min(32, max(1, free_cores() // self.jobs)))
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = os.environ.get(
            "TORCHINDUCTOR_COMPILE_THREADS", share)
        with open(log_of(artefact), "w") as log:
            process = processes.start(artefact.line, stdout=subprocess.DEVNULL, stderr=log,
                                      env=environment)
        self.running[artefact] = Running(process, time.monotonic(), fresh, gpu)
        say(f"[{self.finished + len(self.running)}/{self.total}] {artefact.out}")

    def _collect(self) -> None:
        for artefact, running in list(self.running.items()):
            status = running.process.poll()
            if status is None:
                continue
            del self.running[artefact]
            self.finished += 1
            seconds = time.monotonic() - running.started
            if status == 0:
                say(f"done in {about(seconds)}: {artefact.out}")
                if running.fresh:
                    note_seconds(artefact, seconds)
            else:
                self.failed[artefact] = why(artefact, status)
                say(f"FAILED: {artefact.out}: {self.failed[artefact]}")


def why(artefact: plan.Artefact, status: int) -> str:
    """The error line of a command that failed."""
    try:
        lines = log_of(artefact).read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    cause = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return f"{cause}; see {log_of(artefact)}"


def log_of(artefact: plan.Artefact) -> Path:
    return LOGS / f"{artefact.job.kind}-{artefact.out.name}.log"


# --- estimates -------------------------------------------------------------------------------


def key_of(artefact: plan.Artefact) -> list:
    """What seconds depend on: not on the seed."""
    return [artefact.step.command, artefact.job.method, artefact.job.config, artefact.rows]


def note_seconds(artefact: plan.Artefact, seconds: float) -> None:
    line = json.dumps({"key": key_of(artefact), "seconds": round(seconds, 1)})
    files.append_or_skip(TIMINGS, line.encode() + b"\n")


def read_timings() -> dict[str, list[float]]:
    """What steps took here before: key -> seconds. Lines that are torn or not ours do not count."""
    found: dict[str, list[float]] = {}
    try:
        with reading.regular(TIMINGS) as file:
            lines = file.read().splitlines()
    except (OSError, UserError):
        return found
    for line in lines:
        with contextlib.suppress(ArithmeticError, KeyError, TypeError, ValueError):
            entry = reading.parse_json(line)
            seconds = float(entry["seconds"])
            if 0 <= seconds < math.inf:
                found.setdefault(json.dumps(entry["key"], sort_keys=True), []).append(seconds)
    return found


def seconds_of(artefact: plan.Artefact, timings: dict[str, list[float]]) -> float | None:
    """The median of what such a step took; None if it never ran to its end here."""
    times = timings.get(json.dumps(key_of(artefact), sort_keys=True))
    return median(times) if times else None


def estimate(times: list[float | None]) -> str:
    """One job's time for what has been timed here before, and how much has not."""
    known = [seconds for seconds in times if seconds is not None]
    unknown = len(times) - len(known)
    text = f"estimate {about(sum(known))} for {len(known)} of them" if known else "no estimate"
    return text + (f", {unknown} never timed here" if unknown else "")


def about(seconds: float | None) -> str:
    """'40 s', '12 min' or '3.5 h'; '?' for None."""
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
