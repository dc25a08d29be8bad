"""Make every missing artefact of a table, each once.

    python scripts/run_table.py configs/tables/NAME.yaml [--quick] [--jobs N] [key=value ...]

key=value goes to every command (data=, root=, device=, threads=). Goes on after a failure and says
at the end what failed and why. Repeating the line resumes; what is done, or committed under
results/, is not done again, and what another process is making is waited for. Each command's stderr
is in runs/logs/. Then: python scripts/table.py with the same words prints the table.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core import files, planning, records, tables
from core.command import command
from core.errors import UserError

LOGS, TIMINGS = Path("runs/logs"), Path("runs/timings.jsonl")


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python scripts/run_table.py",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE.yaml")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--quick", action="store_true", help="the same grid on digits, small")
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
        settings += (f"threads={max(1, os.cpu_count() // arguments.jobs)}",)

    table = tables.read(arguments.table, quick=arguments.quick, overrides=settings)
    cells = list(planning.Planner(table).cells())
    missing = planning.wanted(cells, records.committed(), sets=arguments.sets)
    say(f"{table.title}: {len(cells)} cells; {len(missing)} artefacts to make; {estimate(missing)}")
    if arguments.dry_run:
        for artefact in missing:
            print(f"{about(seconds_of(artefact)):>12}  python {shlex.join(artefact.line)}")
        return
    typed = any(word.startswith("device=") for word in settings)
    failed = Scheduler(missing, arguments.jobs, [] if typed else visible_gpus()).run()
    if failed:
        for cell in cells:
            if cell.record in failed:
                say(f"{cell.row.name} x {cell.column.name} (seed {cell.seed}): "
                    f"{failed[cell.record]}")
        broken = sum(cell.record in failed for cell in cells)
        raise UserError(f"{broken} of {len(cells)} cells failed; mend the causes above and repeat "
                        "the same line")


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

    def __init__(self, missing: list[planning.Artefact], jobs: int, gpus: list[str]) -> None:
        self.pending, self.jobs, self.total = list(missing), jobs, len(missing)
        self.running: dict[planning.Artefact, Running] = {}
        self.gpus = gpus
        self.failed: dict[planning.Artefact, str] = {}
        self.finished = 0

    def run(self) -> dict[planning.Artefact, str]:
        """Returns what failed, and why."""
        # Both by hand: a process started in the background begins with SIGINT ignored.
        before = {number: signal.signal(number, signal.default_int_handler)
                  for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self.pending or self.running:
                self._start()
                time.sleep(0.05)
                self._collect()
        except BaseException:                           # Ctrl-C, or our own log on a full disk
            for running in self.running.values():
                running.process.send_signal(signal.SIGINT)      # each saves its state
            for running in self.running.values():
                running.process.wait()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
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

    def _launch(self, artefact: planning.Artefact) -> None:
        files.mkdir(LOGS)
        fresh = not artefact.out.with_name(artefact.out.name + ".partial").exists()
        busy = [running.gpu for running in self.running.values()]
        gpu = min(self.gpus, key=busy.count, default=None)
        environment = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        with open(log_of(artefact), "w") as log:
            process = subprocess.Popen(
                [sys.executable, *artefact.line], stdout=subprocess.DEVNULL, stderr=log,
                env={**os.environ, **environment},
                start_new_session=True)         # Ctrl-C reaches it through us, once
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


def why(artefact: planning.Artefact, status: int) -> str:
    """The error line of a command that failed."""
    lines = log_of(artefact).read_text(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    cause = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return f"{cause}; see {log_of(artefact)}"


def log_of(artefact: planning.Artefact) -> Path:
    return LOGS / f"{artefact.job.kind}-{artefact.out.name}.log"


# --- estimates -------------------------------------------------------------------------------


def key_of(artefact: planning.Artefact) -> list:
    """What seconds depend on: not on the seed."""
    return [artefact.step.command, artefact.job.method, artefact.job.config, artefact.rows]


def note_seconds(artefact: planning.Artefact, seconds: float) -> None:
    line = json.dumps({"key": key_of(artefact), "seconds": round(seconds, 1)})
    files.append(TIMINGS, line.encode() + b"\n")


def seconds_of(artefact: planning.Artefact) -> float | None:
    """The median of what such a step took here before; None if it never ran to its end."""
    if not TIMINGS.exists():
        return None
    entries = [json.loads(line) for line in TIMINGS.read_text().splitlines()]
    key = json.loads(json.dumps(key_of(artefact)))
    times = [entry["seconds"] for entry in entries if entry["key"] == key]
    return median(times) if times else None


def estimate(missing: list[planning.Artefact]) -> str:
    """One job's time for what has been timed here before, and how much has not."""
    times = [seconds_of(artefact) for artefact in missing]
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


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
