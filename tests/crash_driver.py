"""Kill each command at every change it makes on disk, repeat the line, compare the bytes.

    python -m tests.crash_driver COMMAND WORK [--every N] [--kills N] [--cut names | bytes]

COMMAND is one of `lines`. The process dies by `os._exit` at core.files' k-th operation, k = 1,
1 + N, 1 + 2N, ... until a run survives; then by SIGKILL and by Ctrl-C at random moments. Each time
the same line must end with the bytes of an uninterrupted run, timings aside. Children are forked
from this process, which has torch loaded.

With --cut the death is a power cut: what was not synced is gone. `names`: a file whose folder was
not synced since is not there (or has its old name), and its bytes are those of its last sync.
`bytes`: names and sizes are there, as a journal of metadata keeps them, and bytes that were not
synced are zeros.
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

import core.files
import core.run

for heavy in ("sklearn.datasets", "sklearn.linear_model", "sklearn.model_selection"):
    importlib.import_module(heavy)      # once, before any fork

DIED = 77
TIMINGS = ("seconds", "images_per_second", "date")
DIGESTS_OF_TIMINGS = ("record.json", "log_sha256", "sha256")
SMOKE = ["--smoke", "--limit", "200", "threads=1"]


def lines(work: Path) -> dict[str, tuple[str, list[str]]]:
    """Command -> (module, arguments); later ones stand on earlier ones' output."""
    return {
        "poison": ("poisons.__main__", ["configs/poisons/lsp.yaml", "data=digits"]),
        **{name: ("poisons.__main__", [f"configs/poisons/{name}.yaml", "data=digits"])
           for name in ("tap", "rem", "sep")},
        "train_vae": ("train_vae", ["configs/purifiers/dvae.yaml", f"data={work}/poison"]),
        "purify": ("purify", ["configs/purifiers/dvae.yaml", f"data={work}/poison",
                              f"checkpoint={work}/train_vae", "dvae.save_perturbation=true"]),
        "chain": ("purify", ["configs/purifiers/chain.yaml", f"data={work}/poison"]),
        "evaluate": ("evaluate", ["configs/learners/em60.yaml", f"data={work}/poison"]),
        "train_ddpm": ("train_ddpm", ["configs/purifiers/ddpm.yaml", "data=digits",
                                      "split=test", "ddpm.train.sample_every=2"]),
        "jcdp": ("purify", ["configs/purifiers/jcdp.yaml", f"data={work}/poison",
                            f"checkpoint={work}/train_ddpm", "jcdp.batch_size=64"]),
    }


class Disk:
    """What of a folder would be there after a power cut, learnt from core.files' operations."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synced: dict[int, bytes] = {}              # inode -> bytes
        self.names: dict[int, dict[str, int]] = {}      # inode of a folder -> its synced names
        self.folders: set[int] = set()
        self.new: Path | None = None                    # about to be made
        self.was_synced(root)

    def see(self, kind: str, path: Path) -> None:
        """An operation, before it is done."""
        if self.new and self.new.exists():
            self.synced.pop(self.new.stat().st_ino, None)   # an inode of one that was removed
        self.new = path if kind == "write" and not path.exists() else None
        if kind == "fsync":
            self.was_synced(path)

    def was_synced(self, path: Path) -> None:
        """A sync is about to return: what is there now is kept."""
        path = Path(os.path.abspath(path))
        if not path.exists() or not path.is_relative_to(self.root):
            return
        if path.is_dir():
            self.names[path.stat().st_ino] = {
                entry.name: self.number(Path(entry.path)) for entry in os.scandir(path)}
        else:
            self.synced[path.stat().st_ino] = path.read_bytes()

    def number(self, path: Path) -> int:
        inode = path.stat().st_ino
        if path.is_dir():
            self.folders.add(inode)
        return inode

    def cut(self, how: str) -> None:
        """Make the folder what is left of it. The dead write nothing more."""
        left: dict[Path, bytes | None] = {}             # None: a folder

        def kept(inode: int, at: Path) -> None:
            for name, entry in self.names.get(inode, {}).items():
                left[at / name] = None if entry in self.folders else self.synced.get(entry, b"")
                if entry in self.folders:
                    kept(entry, at / name)

        if how == "names":
            kept(self.root.stat().st_ino, self.root)
        else:
            for path in sorted(self.root.rglob("*")):
                data = None if path.is_dir() else path.read_bytes()
                if data is not None and data != (whole := self.synced.get(path.stat().st_ino, b"")):
                    data = whole[:len(data)] + bytes(len(data) - len(whole))
                left[path] = data
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path, data in left.items():
            path.mkdir() if data is None else path.write_bytes(data)


def run(
    work: Path, command: str, die_at: int | None = None,
    signal_after: tuple[signal.Signals, float] | None = None, cut: str | None = None,
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
        count, out = 0, work / command
        if cut:                                 # in a folder of its own
            out = work / "disk" / command
            out.parent.mkdir(exist_ok=True)
            disk = Disk(out.parent)

        def operation(kind, path):
            nonlocal count
            count += 1
            if count == die_at:
                if cut:
                    disk.cut(cut)
                os._exit(DIED)
            if cut:
                disk.see(kind, path)

        core.files.operation = operation
        try:
            status = main([*arguments, *SMOKE, f"out={out}"])
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
    for path in (work / command, work / f"{command}.partial", work / "disk"):
        shutil.rmtree(path, ignore_errors=True)


def check(work: Path, command: str, reference: dict[str, bytes], what: str,
          cut: str | None = None) -> None:
    """The same line again must succeed, leave the reference's bytes and nothing else."""
    status = run(work, command, cut=cut)
    if status != 0:
        raise SystemExit(f"{command}, {what}: the same line again ended with {status}:\n"
                         + (work / "output.txt").read_text())
    place = work / "disk" if cut else work
    found = content(place / command)
    for name in sorted(set(found) | set(reference)):
        if found.get(name) != reference.get(name):
            raise SystemExit(f"{command}, {what}: {name} differs from an uninterrupted run")
    if (place / f"{command}.partial").exists():
        raise SystemExit(f"{command}, {what}: {command}.partial was left behind")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=list(lines(Path())))
    parser.add_argument("work", type=Path)
    parser.add_argument("--every", type=int, default=1, help="kill at every N-th operation")
    parser.add_argument("--kills", type=int, default=5, help="random SIGKILLs and Ctrl-Cs")
    parser.add_argument("--cut", choices=("names", "bytes"), help="cut the power instead")
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
    if run(work, command, cut=arguments.cut) != 0:
        raise SystemExit(f"{command} failed:\n" + (work / "output.txt").read_text())
    duration = time.monotonic() - started
    reference = content((work / "disk" if arguments.cut else work) / command)

    deaths, k = 0, 1
    while True:
        clear(work, command)
        if run(work, command, die_at=k, cut=arguments.cut) != DIED:
            break
        deaths, k = deaths + 1, k + arguments.every
        what = f"{'power cut' if arguments.cut else 'died'} at operation {k - arguments.every}"
        check(work, command, reference, what, arguments.cut)
    what = f"power cut ({arguments.cut})" if arguments.cut else "died"
    print(f"{command}: {what} at {deaths} of its operations (every {arguments.every}), "
          "same bytes each time")
    if arguments.cut:
        return

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
