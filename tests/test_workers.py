"""Several runners of one table: claims, and what each death leaves to the others."""

import contextlib
import errno
import multiprocessing
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import until

from core import files, lock
from core.device import DeviceSettings
from core.errors import UserError
from core.job import Job
from scripts.tables import claims, estimates, plan, processes, schedule, status, workers

# Stands for a command of a table: says that it begins, works in seconds, and leaves `out` whole.
COMMAND = """
import os, sys, time
out, seconds, code = sys.argv[1:]
with open("starts", "a") as file:
    file.write(f"{os.path.basename(out)} {os.getpid()}\\n")
if code.endswith("once") and not os.path.exists("again"):
    open("again", "w").close()
    if code == "interrupted once":
        sys.exit(130)
    os.kill(os.getpid(), 9)
time.sleep(float(seconds))
while code == "waits" and not os.path.exists("go on"):
    time.sleep(0.01)
if code.isdecimal():
    print(f"error: it is {code}", file=sys.stderr)
    sys.exit(int(code))
if code != "nothing":
    os.mkdir(out)
"""


@dataclass(frozen=True, eq=False)
class Piece(plan.Artefact):
    """An artefact that a small Python program makes."""

    seconds: float = 0.0
    code: str = ""

    @property
    def line(self) -> list[str]:
        return ["-c", COMMAND, str(self.out), str(self.seconds), self.code]

    @property
    def done(self) -> bool:
        return self.out.exists()


def piece(name: str, *needs: Piece, seconds: float = 0.0, code: str = "", rows: int = 100,
          **config) -> Piece:
    job = Job("sets", name, "test", 1, {"name": name, **config}, 0, {})
    return Piece(SimpleNamespace(command="poison"), job, (), Path("runs", name), needs, rows,
                 plan.nothing, DeviceSettings(), seconds=seconds, code=code)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    monkeypatch.setattr(schedule, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(schedule, "LONGEST_PAUSE", 0.2)


@pytest.fixture
def pieces() -> list[Piece]:
    """Three chains: of three, of two, and twelve alone."""
    files.mkdir(Path("runs"))
    first = piece("poison", seconds=0.1)
    second = piece("purified", first, seconds=0.1)
    other = piece("other", seconds=0.1)
    return [first, second, piece("record", second, seconds=0.1), other, piece("after", other),
            *(piece(f"alone{i}", seconds=0.1) for i in range(12))]


def runner(missing: list[Piece], jobs: int = 1, **options) -> schedule.Scheduler:
    return schedule.Scheduler(missing, jobs, [], **options)


def forked(missing: list[Piece], output: str, together: Callable[[], object] = int) -> int:
    """A runner in a process of its own, which first calls `together`; its number."""
    number = os.fork()
    if number:
        return number
    with contextlib.suppress(BaseException), open(output, "w", buffering=1) as sys.stderr:
        together()
        os._exit(len(runner(missing).run()))
    os._exit(99)


def status_of(number: int) -> int:
    """How a process of ours ended; one that hangs is ended."""
    deadline = time.monotonic() + 60
    while not (ended := os.waitpid(number, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(number, signal.SIGKILL)
        time.sleep(0.01)
    return ended[1]


def starts() -> list[str]:
    path = Path("starts")
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


# --- sharing ---------------------------------------------------------------------------------


def test_three_runners_begin_every_artefact_once(pieces):
    together = multiprocessing.get_context("fork").Barrier(3).wait
    numbers = [forked(pieces, f"log{i}", together) for i in range(3)]
    assert [status_of(number) for number in numbers] == [0, 0, 0]
    assert Counter(starts()) == Counter(made.out.name for made in pieces)
    assert all(made.done for made in pieces)
    assert not list(claims.CLAIMS.iterdir())            # nothing is left of a claim
    shares = [Path(f"log{i}").read_text().count("begun: ") for i in range(3)]
    assert sum(shares) == len(pieces)
    assert min(shares) > 1                              # and no one walked behind another


def test_a_step_that_was_gone_on_with_is_not_timed(pieces):
    """Its seconds are of a part."""
    lone = pieces[-2:]
    files.mkdir(Path(f"{lone[0].out}.partial"))
    runner(lone).run()
    assert all(made.done for made in lone)
    found, _ = estimates.read_timings()
    assert [key for key, _ in found] == [estimates.key_of(lone[1])]


def test_the_longest_chain_goes_first(pieces):
    """By what like steps took; by their number where nothing was timed."""
    order = list(runner(pieces).pending)
    assert [made.out.name for made in order[:3]] == ["poison", "purified", "other"]
    timed = estimates.Estimates()
    timed.of = lambda made: {"alone7": 9.0, "poison": 2.0}.get(made.out.name, 1.0)
    order = [made.out.name for made in runner(pieces, timings=timed).pending]
    assert order[:2] == ["alone7", "poison"]
    assert order.index("poison") < order.index("purified") < order.index("record")


def test_two_tables_share_what_both_need(pieces):
    """The same artefact of two plans is one claim."""
    again = piece("poison", seconds=0.1)
    both = [forked(pieces[:3], "log0"), forked([again, piece("third", again)], "log1")]
    assert [status_of(number) for number in both] == [0, 0]
    assert Counter(starts()) == Counter(["poison", "purified", "record", "third"])


# --- deaths ----------------------------------------------------------------------------------


@pytest.mark.parametrize("victims", ["the runner", "its command", "both"])
def test_the_others_finish_what_a_killed_one_began(pieces, victims):
    slow = piece("slow", code="waits")
    one = forked([slow], "log0")
    until(lambda: "slow" in starts(), seconds=30)
    command = int(Path("starts").read_text().split()[1])
    other = forked([slow, *pieces[:3]], "log1")
    if victims != "its command":
        os.kill(one, signal.SIGKILL)
    if victims != "the runner":
        os.kill(command, signal.SIGKILL)
    Path("go on").touch()
    assert status_of(other) == 0
    status_of(one)
    assert all(made.done for made in (slow, *pieces[:3]))
    # A command that outlives its runner keeps the claim, so that nobody works beside it.
    assert starts().count("slow") == (1 if victims == "the runner" else 2)


def test_a_claim_of_a_dead_runner_is_free(pieces):
    folder = claims.folder_of(pieces[0])
    folder.mkdir(parents=True)
    (folder / "lock").write_bytes(lock.SIGN + b'{"pid": 1, "host": "gone", "since": "2020"}')
    assert not claims.held(pieces)
    assert runner(pieces[:1]).run() == {}
    assert starts() == ["poison"]


def test_a_killed_command_is_gone_on_with_once():
    """As after the kernel's want of memory; a second time it is a failure."""
    files.mkdir(Path("runs"))
    for name in ("killed", "interrupted"):
        assert runner([piece(name, code=f"{name} once")]).run() == {}
        assert starts().count(name) == 2
        Path("again").unlink()
    slow = piece("slow", seconds=60)
    again = runner([slow])
    for _ in range(2):
        again._look()
        again.running[slow].process.kill()
        again.running[slow].process.wait()
        again._collect()
    assert again.failed == {slow: "killed by signal 9; see runs/logs/sets-slow.log"}


def test_each_of_several_gpus_has_a_command(monkeypatch):
    """Also beside another runner of this host, for as long as the command of that lives."""
    seen = []

    def start(words, *, env, **options):
        seen.append(env["CUDA_VISIBLE_DEVICES"])
        return processes.start(words, env=env, **options)

    monkeypatch.setattr(schedule, "processes",
                        SimpleNamespace(**{**vars(processes), "start": start}))
    files.mkdir(Path("runs"))
    gpus = ["2", "7", "MIG-GPU-1/5/0"]

    def run(jobs: int, names: str) -> list[str]:
        seen.clear()
        missing = [piece(name) for name in names]
        assert schedule.Scheduler(missing, jobs, gpus).run() == {}
        return sorted(seen)

    assert run(3, "abc") == gpus
    name, descriptor = claims.take_gpu(gpus)            # another runner's
    assert name == "2"
    assert run(1, "d") == ["7"]
    assert run(3, "efg") == gpus                        # more at once than are free
    os.close(descriptor)
    assert run(1, "h") == ["2"]


def test_what_another_holds_is_waited_for_and_named(pieces, monkeypatch, capsys):
    held = claims.take(pieces[0])
    waiting = runner(pieces[:2])
    waiting._look()
    waiting._look()
    text = f"waiting for another process ({os.getpid()} on "
    assert capsys.readouterr().err.count(text) == 1     # said once
    assert not waiting.running
    assert claims.held(pieces) == {pieces[0]: lock.holder(claims.folder_of(pieces[0]))}
    held.release()
    waiting._look()
    assert pieces[0] in waiting.running
    assert waiting.run() == {}


def test_a_stopped_runner_holds_up_only_what_it_makes():
    """SIGSTOP: its command goes on and the others with what stands on it; then it goes on too."""
    files.mkdir(Path("runs"))
    slow = piece("slow", seconds=0.5)
    one = forked([slow, piece("last", slow, seconds=0.1)], "log0")
    until(lambda: "slow" in starts(), seconds=30)
    os.kill(one, signal.SIGSTOP)
    other = forked([slow, piece("after slow", slow)], "log1")
    assert status_of(other) == 0
    os.kill(one, signal.SIGCONT)
    assert status_of(one) == 0
    assert Counter(starts())["slow"] == 1


# --- failures --------------------------------------------------------------------------------


def test_a_failure_is_not_repeated_by_the_others_but_by_the_same_line(capsys):
    files.mkdir(Path("runs"))
    broken = piece("broken", code="7")
    stands = piece("stands on it", broken)
    peer = runner([broken, stands])                     # begun before it failed
    found = runner([broken, stands, piece("fine")]).run()
    assert found == dict.fromkeys((broken, stands), "it is 7; see runs/logs/sets-broken.log")
    assert peer.run() == found
    assert starts().count("broken") == 1
    assert list(runner([broken]).run()) == [broken]     # the line is repeated
    assert starts().count("broken") == 2
    assert claims.failure(broken).why == found[broken]
    mended = piece("broken")
    object.__setattr__(mended, "job", broken.job)
    assert runner([mended]).run() == {}
    assert not list(claims.CLAIMS.iterdir())


def test_a_task_of_an_array_that_is_started_again_counts_its_failures(monkeypatch):
    files.mkdir(Path("runs"))
    broken = piece("broken", code="7")
    for array, times in (("41", 1), ("41", 1), ("42", 2), ("", 3)):
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", array)
        assert list(runner([broken]).run()) == [broken]
        assert starts().count("broken") == times


def test_what_is_not_what_was_planned_is_a_failure():
    """A YAML that was edited after the table was planned makes another artefact."""
    files.mkdir(Path("runs"))
    made = piece("one", code="nothing")
    assert "a YAML or the code was changed meanwhile" in runner([made]).run()[made]


def test_a_full_disk_ends_the_runner_and_frees_its_claims(pieces, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    broken = piece("broken", code="7")
    with monkeypatch.context() as patched:
        patched.setattr(files, "write_bytes", full)     # the word for the others is left out
        assert list(runner([broken]).run()) == [broken]
    assert claims.failure(broken) is None
    with monkeypatch.context() as patched:
        patched.setattr(schedule, "log_of", lambda artefact: Path("/dev/full/log"))
        with pytest.raises(OSError, match="/dev/full"):
            runner(pieces).run()
    assert not claims.held(pieces)


# --- progress --------------------------------------------------------------------------------


def test_an_estimate_is_of_what_like_steps_took():
    """Of the same step, whatever its seed; else of its method's nearest in rows and epochs."""
    made = piece("one", rows=200, epochs=3)
    assert estimates.Estimates().of(made) is None       # it never ran here
    other = estimates.Estimates()
    for rows, epochs, seconds in ((100, 3, 10.0), (100, 3, 14.0), (100, 1000, 9.0)):
        other.note(piece("one", rows=rows, epochs=epochs), seconds)
    timings = estimates.Estimates()
    assert timings.of(made) == 24.0                     # 12 of half the rows
    assert timings.of(piece("one", rows=100, epochs=1000)) == 9.0
    assert timings.of(piece("one", rows=50_000, epochs=60)) is None     # 30 times the nearest
    other.note(made, 31.0)                              # by another runner
    assert timings.of(made) == 24.0
    timings.refresh()
    assert timings.of(made) == 31.0


def test_an_estimate_is_of_a_like_network_on_images_of_this_size():
    def made(rows: int, side: int, **config) -> Piece:
        one = piece("one", rows=rows, **config)
        return replace(one, image_shape=(side, side))

    for side, width, seconds in ((16, 8, 10.0), (16, 64, 500.0), (32, 8, 40.0)):
        estimates.Estimates().note(made(100, side, surrogate={"width": width}), seconds)
    timings = estimates.Estimates()
    found = [timings.of(made(200, side, surrogate={"width": width}))
             for side, width in ((16, 8), (16, 64), (32, 8), (32, 64))]
    assert found == [20.0, 1000.0, 80.0, None]


def test_a_step_is_estimated_by_the_one_nearest_in_proportion():
    """400 is nearer to 1,000 than to 100."""
    for rows, seconds in ((100, 10.0), (1000, 200.0)):
        estimates.Estimates().note(piece("one", rows=rows), seconds)
    assert estimates.Estimates().of(piece("one", rows=400)) == pytest.approx(80.0)


@pytest.mark.parametrize("path", [
    "purify.py", "core/run.py", "models/unet.py", "poisons/lsp.py", "purifiers/jpeg.py",
    "learners/standard.py", "scripts/tables/plan.py", "configs/poisons/lsp.yaml",
    "configs/purifiers/jpeg.yaml", "configs/learners/em60.yaml", "train_vae.py",
    "poisons/ar_coefficients.csv", "learners/fast_autoaugment_cifar10.csv",
    "core/weights/squeezenet1_1.npz"])
def test_what_an_artefact_depends_on_is_a_workers_code(tmp_path, monkeypatch, path):
    for name in (path, "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    monkeypatch.setattr(workers, "ROOT", tmp_path)
    before = workers.code()
    (tmp_path / "README.md").write_text("after")
    assert workers.code() == before
    (tmp_path / path).write_text("after")
    assert workers.code() != before


def test_training_by_steps_takes_what_they_are_whatever_the_rows():
    config = {"steps": 50, "batch_size": 8, "epochs": 60}
    assert estimates.work_of("train_ddpm", "ddpm", config, 1000) == 400
    assert estimates.work_of("poison", "tap", config, 1000) == 60_000   # its steps are an image's
    assert estimates.work_of("evaluate", "standard", {**config, "steps": None}, 1000) == 60_000


def test_time_left_is_shared_but_for_the_longest_chain(pieces):
    timings = estimates.Estimates()
    timings.of = lambda made: 100.0
    assert estimates.left(pieces, timings, 2, {}) == "about 14 min left"        # 17 pieces
    assert estimates.left(pieces, timings, 99, {}) == "about 5 min left"        # a chain of three
    assert estimates.left(pieces[:1], timings, 1, {pieces[0]: 70.0}) == "about 30 s left"
    timings.of = lambda made: {"poison": 100.0}.get(made.out.name)
    assert estimates.left(pieces, timings, 1, {}) == "more than 2 min left"
    assert estimates.left(pieces, timings, 1, dict.fromkeys(pieces, 1e6)) == ""
    timings.of = lambda made: None
    assert estimates.left(pieces, timings, 1, {}) == ""


def test_a_line_says_what_came_out(monkeypatch, capsys):
    files.mkdir(Path("runs"))
    monkeypatch.setattr(status.records, "load", lambda out: {"accuracy_last": 0.9312})
    record, after = piece("record"), piece("record")
    object.__setattr__(record, "job", replace(record.job, kind="records"))
    object.__setattr__(after, "out", Path("runs/after"))
    assert runner([record, after], names={record: "EM x JPEG, seed 0"}).run() == {}
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "begun: EM x JPEG, seed 0 (runs/logs/records-record.log)"
    assert re.fullmatch(r"\[1/2\] EM x JPEG, seed 0: 93\.1 %  \(\d s; about \d s left\)", said[1])
    assert re.fullmatch(r"\[2/2\] poison after: made  \(\d s\)", said[3])


def test_a_line_counts_what_others_made(capsys):
    files.mkdir(Path("runs"))
    first, second, third = (piece(name, seconds=0.3) for name in ("first", "second", "third"))
    one = runner([first, second, third])
    one._look()
    assert runner([second]).run() == {}
    assert one.run() == {}
    assert "[2/3] poison first: made" in capsys.readouterr().err
    assert starts().count("second") == 1


def test_status_says_who_makes_what_and_what_failed(capsys):
    """And changes nothing on the disk."""
    files.mkdir(Path("runs"))
    broken, slow, done = piece("broken", code="7"), piece("slow"), piece("done")
    missing = [broken, slow, done]
    assert list(runner([broken, done]).run()) == [broken]
    cell = SimpleNamespace(record=slow)
    with workers.enlisted():
        claim = claims.take(slow)
        before = sorted(Path("runs").rglob("*"))
        lines = status.text("T", [cell], missing[:2], {}, estimates.Estimates()).splitlines()
        assert sorted(Path("runs").rglob("*")) == before
        claim.release()
    who = rf"another process \({os.getpid()} on \S+, since [-: \d]+\)"
    assert re.fullmatch("T: 0 of 1 cells measured; 2 artefacts to make, 1 of them being made, "
                        r"1 failed; about \d s left", lines[0])
    assert re.fullmatch(rf"being made by {who}: namespace.* \(runs/logs/sets-slow.log\)", lines[1])
    assert lines[2] == "failed: poison broken: it is 7; see runs/logs/sets-broken.log"
    assert re.fullmatch(rf"worker: {who}, (commit [0-9a-f]{{8}}.*|an unrecorded commit)", lines[3])
    assert len(lines) == 4


# --- workers ---------------------------------------------------------------------------------


def test_workers_of_one_commit_and_no_other(monkeypatch):
    with workers.enlisted() as unchanged, workers.enlisted():
        unchanged()
        assert len(workers.alive()) == 2
        assert {workers.code_of(folder)["code_sha256"] for folder in workers.alive()} == \
            {workers.code()}
        monkeypatch.setattr(workers, "code", lambda: "other")
        with pytest.raises(UserError, match=r"this worker's code \(.*\) is not that of another "
                           rf"process \({os.getpid()} on .*\): bring both to one commit"), \
                workers.enlisted():
            pass
        with pytest.raises(UserError, match="was changed since this worker began"):
            unchanged()
    with workers.enlisted():                            # nobody else is left
        assert len(workers.alive()) == 1
    assert not list(workers.WORKERS.iterdir())


def test_a_dead_worker_of_other_code_is_no_peer():
    folder = workers.WORKERS / "gone-7-abc"
    folder.mkdir(parents=True)
    (folder / "lock").write_bytes(lock.SIGN)
    (folder / "code.json").write_text('{"code_sha256": "other", "version": "commit 0"}')
    beginning = workers.WORKERS / "new-8-abc"           # it will lock this right now
    beginning.mkdir()
    with workers.enlisted():
        assert len(workers.alive()) == 1
        assert beginning.exists()
        assert not folder.exists()


def test_a_change_of_code_lets_what_runs_end_and_begins_nothing(pieces):
    def ask():
        if starts():
            raise UserError("changed")

    slow = piece("slow", seconds=0.5)
    with pytest.raises(UserError, match="changed"):
        runner([slow, *pieces], jobs=2, ask=ask).run()
    assert len(starts()) <= 2
    assert all(Path("runs", name).exists() for name in starts())
    assert not claims.held(pieces)


MOUNTS = ("22 1 0:21 / / rw - ext4 /dev/sda rw\n"
          r"23 22 0:22 / /a\040folder rw,relatime shared:1 - {} server:/x {}" + "\n")


@pytest.mark.parametrize(("kind", "options", "refused"), [
    ("nfs4", "rw,vers=4.2,local_lock=none", ""), ("nfs", "rw,nolock,local_lock=all", "nolock"),
    ("nfs", "rw,vers=3,local_lock=flock", "local_lock"), ("lustre", "rw,flock,lazystatfs", ""),
    ("lustre", "rw,localflock", "without the option flock"), ("ext4", "rw", ""),
    ("fuse.sshfs", "rw", "other hosts do not see"), ("cifs", "rw,nobrl", "nobrl")])
def test_a_file_system_without_locks_across_hosts_is_known(tmp_path, kind, options, refused):
    (tmp_path / "mounts").write_text(MOUNTS.format(kind, options))
    found = workers.unseen(Path("/a folder/project/runs"), tmp_path / "mounts")
    assert (refused in found) if refused else found is None
    assert workers.unseen(Path("/elsewhere"), tmp_path / "mounts") is None


def test_a_worker_on_a_file_system_without_locks_is_refused(monkeypatch):
    monkeypatch.setattr(workers, "unseen", lambda folder: "nfs (/home), mounted with nolock")
    with pytest.raises(UserError, match=r"runs is on nfs .*--jobs N on one host"), \
            workers.enlisted():
        pass
    monkeypatch.undo()
    monkeypatch.setattr(lock, "holder", lambda folder: None)        # what flock forgets
    with pytest.raises(UserError, match="does not keep locks"), workers.enlisted():
        pass
    monkeypatch.undo()

    def refuse(number: int, text: str) -> None:
        def flock(descriptor, how):
            raise OSError(number, text)

        monkeypatch.setattr(lock.fcntl, "flock", flock)

    refuse(errno.ENOLCK, "No locks available")
    with pytest.raises(UserError, match=r"lock: no locks available: --worker needs"), \
            workers.enlisted():
        pass
    refuse(errno.EIO, "Input/output error")             # another trouble is not called one of locks
    with pytest.raises(OSError, match="Input/output"), workers.enlisted():
        pass
