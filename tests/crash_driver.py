"""Kill each command at every change it makes on disk, repeat the line, compare the bytes.

    python tests/crash_driver.py COMMAND WORK [--every N] [--kills N]

COMMAND is one of `lines`. The process dies by `os._exit` at core.files' k-th operation, k = 1,
1 + N, 1 + 2N, ... until a run survives; then by SIGKILL and by Ctrl-C at random moments. Each time
the same line must end with the bytes of an uninterrupted run, timings aside. Children are forked
from this process, which has torch loaded and has computed nothing yet.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import core.files
import core.run

for heavy in ("sklearn.datasets", "sklearn.linear_model", "sklearn.model_selection"):
    importlib.import_module(heavy)      # once, before any fork

DIED = 77
TIMINGS = ("seconds", "images_per_second")
DIGESTS_OF_TIMINGS = ("record.json", "log_sha256", "sha256")
SMOKE = ["--smoke", "--limit", "200", "threads=1"]


def lines(work: Path) -> dict[str, tuple[str, list[str]]]:
    """Command -> (module, arguments); later ones stand on earlier ones' output."""
    return {
        "poison": ("poisons.__main__", ["configs/poisons/lsp_digits.yaml", "data=digits"]),
        **{name: ("poisons.__main__", [f"configs/poisons/{name}_digits.yaml", "data=digits"])
           for name in ("tap", "rem", "sep")},
        "train_vae": ("train_vae", ["configs/purifiers/dvae.yaml", f"data={work}/poison"]),
        "purify": ("purify", ["configs/purifiers/dvae.yaml", f"data={work}/poison",
                              f"checkpoint={work}/train_vae", "dvae.save_perturbation=true"]),
        "evaluate": ("evaluate", ["configs/learners/digits10.yaml", f"data={work}/poison"]),
        "train_ddpm": ("train_ddpm", ["configs/purifiers/ddpm_digits.yaml", "data=digits",
                                      "split=test", "ddpm.train.sample_every=2"]),
        "jcdp": ("purify", ["configs/purifiers/jcdp_digits.yaml", f"data={work}/poison",
                            f"checkpoint={work}/train_ddpm", "jcdp.batch_size=64"]),
    }


def run(
    work: Path, command: str, die_at: int | None = None,
    signal_after: tuple[signal.Signals, float] | None = None,
) -> int:
    """Run a command in a fork; the exit status, DIED or -SIGKILL."""
    module, arguments = lines(work)[command]
    main = importlib.import_module(module).main
    child = os.fork()
    if child == 0:
        log = os.open(work / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        core.run.SAVE_SECONDS = 0.0             # state after every step: as many places to die
        count = 0

        def operation(kind, path):
            nonlocal count
            count += 1
            if count == die_at:
                os._exit(DIED)

        core.files.operation = operation
        try:
            status = main([*arguments, *SMOKE, f"out={work / command}"])
        except BaseException:
            import traceback

            traceback.print_exc()
            status = 99
        sys.stdout.flush()
        os._exit(status)
    if signal_after is not None:
        number, delay = signal_after
        time.sleep(delay)
        os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(folder: Path) -> dict[str, bytes]:
    """Every file of an artefact, timings removed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            found[f"{path.relative_to(folder)}/"] = b""
            continue
        data = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            parts = data.splitlines() if path.suffix == ".jsonl" else [data]
            data = json.dumps([without_timings(json.loads(part)) for part in parts]).encode()
        found[str(path.relative_to(folder))] = data
    return found


def without_timings(value):
    if isinstance(value, dict):
        return {key: without_timings(item) for key, item in value.items()
                if key not in (*TIMINGS, *DIGESTS_OF_TIMINGS)}
    return [without_timings(item) for item in value] if isinstance(value, list) else value


def clear(work: Path, command: str) -> None:
    for path in (work / command, work / f"{command}.partial"):
        shutil.rmtree(path, ignore_errors=True)


def check(work: Path, command: str, reference: dict[str, bytes], what: str) -> None:
    """The same line again must succeed, leave the reference's bytes and nothing else."""
    status = run(work, command)
    if status != 0:
        raise SystemExit(f"{command}, {what}: the same line again ended with {status}:\n"
                         + (work / "output.txt").read_text())
    found = content(work / command)
    for name in sorted(set(found) | set(reference)):
        if found.get(name) != reference.get(name):
            raise SystemExit(f"{command}, {what}: {name} differs from an uninterrupted run")
    if (work / f"{command}.partial").exists():
        raise SystemExit(f"{command}, {what}: {command}.partial was left behind")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=list(lines(Path())))
    parser.add_argument("work", type=Path)
    parser.add_argument("--every", type=int, default=1, help="kill at every N-th operation")
    parser.add_argument("--kills", type=int, default=5, help="random SIGKILLs and Ctrl-Cs")
    arguments = parser.parse_args()
    work, command = arguments.work.resolve(), arguments.command
    work.mkdir(parents=True, exist_ok=True)

    for earlier in lines(work):             # what the command needs
        if earlier == command:
            break
        if run(work, earlier) != 0:
            raise SystemExit(f"{earlier} failed:\n" + (work / "output.txt").read_text())
    clear(work, command)
    started = time.monotonic()
    if run(work, command) != 0:
        raise SystemExit(f"{command} failed:\n" + (work / "output.txt").read_text())
    duration = time.monotonic() - started
    reference = content(work / command)

    deaths, k = 0, 1
    while True:
        clear(work, command)
        if run(work, command, die_at=k) != DIED:
            break
        deaths, k = deaths + 1, k + arguments.every
        check(work, command, reference, f"died at operation {k - arguments.every}")
    print(f"{command}: died at {deaths} of its operations (every {arguments.every}), "
          "same bytes each time")

    moments = random.Random(0)
    for number in (signal.SIGKILL, signal.SIGINT):
        statuses = []
        for _ in range(arguments.kills):
            clear(work, command)
            delay = moments.uniform(0.05, 0.95) * duration
            status = run(work, command, signal_after=(number, delay))
            allowed = (130, 0) if number == signal.SIGINT else (-signal.SIGKILL, 0)
            if status not in allowed:
                raise SystemExit(f"{command}, {number.name} after {delay:.2f} s: status {status}\n"
                                 + (work / "output.txt").read_text())
            check(work, command, reference, f"{number.name} after {delay:.2f} s")
            statuses.append(status)
        print(f"{command}: {number.name} at {arguments.kills} random moments (exit status "
              f"{', '.join(map(str, statuses))}), same bytes each time")


if __name__ == "__main__":
    main()
