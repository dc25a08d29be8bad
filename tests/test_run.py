"""Runs: locks, occupied folders, Ctrl-C, resume; by real processes where it matters."""

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import core.files
import core.reading
import core.run
import core.workfolder
from core import lock
from core.device import DeviceSettings
from core.errors import UserError
from core.files import RowFile
from core.identity import Job
from core.loop import Loop
from core.run import Run
from core.workfolder import WorkFolder

ROOT = Path(__file__).resolve().parents[1]


def job(**changes):
    return Job(**{"kind": "poisons", "name": "x", "method": "lsp", "version": 1, "config": {"a": 1},
                  "seed": 0, "inputs": {"data": "d"}, **changes})


def finish(out, **changes):
    with Run(job(**changes), out=out) as run:
        (run.work / "images.npy").write_bytes(b"pixels")
        run.finish({"kind": "imageset"})


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        core.files.write_bytes(tmp_path / "folder", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_fingerprint_follows_what_the_output_depends_on():
    base = job().fingerprint
    assert job(name="other", preset="p").fingerprint == base
    for change in ({"method": "em"}, {"version": 2}, {"config": {"a": 2}}, {"seed": 1},
                   {"inputs": {"data": "e"}}, {"settings": {"limit": 5}}):
        assert job(**change).fingerprint != base


def test_a_run_appears_only_when_whole(tmp_path):
    out = tmp_path / "set"
    with Run(job(), out=out) as run:
        (run.work / "images.npy").write_bytes(b"pixels")
        assert not out.exists()
        run.finish({"kind": "imageset"})
    assert sorted(p.name for p in out.iterdir()) == ["config.yaml", "images.npy", "meta.json"]
    assert not (tmp_path / "set.partial").exists()
    digest = json.loads((out / "meta.json").read_text())["digests"]["images.npy"]
    assert digest == hashlib.sha256(b"pixels").hexdigest()


def test_finished_work_is_not_done_again(tmp_path, capsys):
    finish(tmp_path / "set")
    with Run(job(), out=tmp_path / "set") as run:
        assert run.done
    assert capsys.readouterr().err == f"{tmp_path / 'set'} is already done\n"


def test_occupied_folder_is_refused_and_moved_aside_by_force(tmp_path):
    finish(tmp_path / "set")
    with pytest.raises(UserError, match="holds other work"), \
            Run(job(seed=1), out=tmp_path / "set"):
        pass
    with Run(job(seed=1), out=tmp_path / "set", force=True) as run:
        assert not run.done
    assert (tmp_path / "set.old-1" / "images.npy").read_bytes() == b"pixels"


def test_unfinished_other_work_is_refused(tmp_path):
    with Run(job(), out=tmp_path / "set"):
        pass
    with pytest.raises(UserError, match="unfinished work"), Run(job(seed=1), out=tmp_path / "set"):
        pass


def die(*_):
    raise KeyboardInterrupt


def test_committed_work_of_another_is_never_taken_over(tmp_path, monkeypatch):
    """Death in _tidy after run.json is gone, or in --force's clearing: meta.json says whose."""
    out, partial = tmp_path / "set", tmp_path / "set.partial"
    with monkeypatch.context() as patch:
        patch.setattr(core.files, "remove_tree", die)       # _tidy removes run.json, then state/
        with pytest.raises(KeyboardInterrupt):
            finish(out)
    assert not (partial / "run.json").exists()
    for _ in range(2):
        with pytest.raises(UserError, match="other unfinished work"), Run(job(seed=1), out=out):
            pass
    with monkeypatch.context() as patch:
        patch.setattr(core.files, "unlink", lambda path: path.unlink() or die())
        with pytest.raises(KeyboardInterrupt), Run(job(seed=1), out=out, force=True):
            pass
    assert not (partial / "meta.json").exists()             # what is left is nobody's
    finish(out, seed=1)
    assert json.loads((out / "meta.json").read_text())["fingerprint"] == job(seed=1).fingerprint


def test_a_damaged_identity_is_a_user_error(tmp_path):
    with Run(job(), out=tmp_path / "set") as run:
        (run.work / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"run\.json is damaged; remove"), \
            Run(job(), out=tmp_path / "set"):
        pass


def test_a_device_that_is_not_there_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="'cuda:99' is not on this machine"), \
            Run(job(), out=tmp_path / "set", device=DeviceSettings("cuda:99")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_resuming_elsewhere_says_where_it_was_begun(tmp_path):
    with Run(job(), out=tmp_path / "set", device=DeviceSettings("cpu")) as run:
        begun = core.files.read_json(run.work / "run.json")
        begun["device"]["device"] = "cuda:99"
        core.files.write_sealed(run.work / "run.json", begun)
    with pytest.raises(UserError, match=r"set\.partial was begun on cuda:99; resume it there"), \
            Run(job(), out=tmp_path / "set", device=DeviceSettings("cpu")):
        pass
    assert (tmp_path / "set.partial" / "run.json").exists()


def test_resuming_names_the_device_settings_that_it_ignores(tmp_path, capsys):
    with Run(job(), out=tmp_path / "set", device=DeviceSettings("cpu", "fp32", threads=1)):
        pass
    with Run(job(), out=tmp_path / "set", device=DeviceSettings("cpu", "bf16")) as run:
        assert run.device.precision == "fp32"
    said = capsys.readouterr().err.splitlines()
    assert said[1:] == ["precision=bf16 is ignored: this was begun with precision=fp32"]


def test_second_process_is_refused_while_the_first_lives(tmp_path, capsys):
    code = ("import sys, time; from core.run import *; from core.identity import Job;"
            "job = Job('poisons', 'x', 'lsp', 1, {'a': 1}, 0, {'data': 'd'});"
            f"run = Run(job, out=Path({str(tmp_path / 'set')!r}));"
            "run.__enter__(); print('locked', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match="another process"), Run(job(), out=tmp_path / "set"):
            pass
    finally:
        other.kill()
        other.wait()
    with Run(job(), out=tmp_path / "set"):      # the kernel dropped the dead one's lock
        assert "resuming" in capsys.readouterr().err


def test_commit_point_survives_death_before_the_rename(tmp_path, monkeypatch):
    out = tmp_path / "set"
    monkeypatch.setattr(WorkFolder, "_tidy", lambda self: None)
    finish(out)
    assert not out.exists()
    monkeypatch.undo()
    with Run(job(), out=out) as run:
        assert run.done
    assert (out / "images.npy").read_bytes() == b"pixels"


def test_streams_depend_on_name_seed_and_step_alone(tmp_path):
    with Run(job(), out=tmp_path / "a") as a, Run(job(seed=1), out=tmp_path / "b") as b:
        draw = torch.randn(4, generator=a.stream("noise", 3))
        torch.randn(7, generator=a.stream("other"))
        assert torch.equal(draw, torch.randn(4, generator=a.stream("noise", 3)))
        assert not torch.equal(draw, torch.randn(4, generator=a.stream("noise", 4)))
        assert not torch.equal(draw, torch.randn(4, generator=b.stream("noise", 3)))


def test_damaged_state_is_a_user_error(tmp_path):
    with Run(job(), out=tmp_path / "set") as run:
        run.save_state("loop", {"rows": 1})
        (run.work / "state" / "loop.pt").write_bytes(b"not a state")
    with Run(job(), out=tmp_path / "set") as run, pytest.raises(UserError, match=r"loop\.pt"):
        run.load_state("loop")


def test_the_log_is_on_disk_before_a_state_and_before_the_end(tmp_path, monkeypatch):
    with Run(job(), out=tmp_path / "set") as run:
        run.log("loop", 0, value=1)
        seen = []
        monkeypatch.setattr(core.files, "operation", lambda *change: seen.append(change))
        run.save_state("loop", {})
        run.finish({"kind": "imageset"})
    names = [(kind, path.name) for kind, path in seen]
    synced = [i for i, name in enumerate(names) if name == ("fsync", "log.jsonl")]
    assert synced[0] < names.index(("rename", "loop.pt"))
    assert synced[1] < names.index(("rename", "meta.json"))


class Count:
    """Minibatches 0, 1, 2 of every epoch."""

    def __len__(self):
        return 3

    def epoch(self, epoch, start=0):
        yield from range(start, 3)


def walk(run, stop_at=None, last=None):
    """Four epochs of adding up, or up to `last`; dies after `stop_at` steps. The trace of (epoch,
    step)."""
    total = torch.nn.Linear(1, 1, bias=False)
    total.weight.data.zero_()
    loop, trace = Loop(run, "walk", 4, total=total), []
    for epoch in loop:
        for step in loop.steps(Count()):
            total.weight.data += 10 * epoch + step
            loop.add(1, value=total.weight.sum())
            trace.append((epoch, step))
            if len(trace) == stop_at:
                return trace, None
        if epoch == last:
            loop.stop()
        loop.end_epoch()
    return trace, total.weight.item()


def lines_of(run):
    """The log, timings aside."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run.folder.log.lines()]


@pytest.mark.parametrize("stop_at", range(1, 12))
def test_loop_resumes_at_every_step(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0)
    with Run(job(), out=tmp_path / "whole") as run:
        whole, total = walk(run)
        lines = lines_of(run)
    with Run(job(), out=tmp_path / "broken") as run:
        before, _ = walk(run, stop_at)
    with Run(job(), out=tmp_path / "broken") as run:
        after, resumed = walk(run)
        again = lines_of(run)
    assert before[:-1] + after == whole     # the last step was not saved before we died
    assert resumed == total
    assert again == lines


@pytest.mark.parametrize("stop_at", [2, 3, 4, 6, None])
def test_a_loop_that_stops_early_resumes_to_that_end(tmp_path, monkeypatch, stop_at):
    """Dead within the first epoch, at its end, within the last, before it stops, and after: there
    nothing is done again."""
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0 if stop_at else 1e9)
    with Run(job(), out=tmp_path / "whole") as run:
        whole, total = walk(run, last=1)
        lines = lines_of(run)
    assert [epoch for epoch, _ in whole] == [0] * 3 + [1] * 3
    with Run(job(), out=tmp_path / "broken") as run:
        before, _ = walk(run, stop_at, last=1)
    with Run(job(), out=tmp_path / "broken") as run:
        after, resumed = walk(run, last=1)
        assert lines_of(run) == lines
    assert (before[:-1] if stop_at else before) + after == whole
    assert resumed == total


def test_a_state_from_before_loops_could_stop_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0)
    with Run(job(), out=tmp_path / "whole") as run:
        whole, total = walk(run)
    with Run(job(), out=tmp_path / "broken") as run:
        before, _ = walk(run, 5)
        state = run.load_state("walk")
        del state["epochs"]
        run.save_state("walk", state)
    with Run(job(), out=tmp_path / "broken") as run:
        after, resumed = walk(run)
    assert before[:-1] + after == whole
    assert resumed == total


def test_the_first_step_of_a_process_is_off_the_clock(tmp_path, monkeypatch):
    """Every step takes a second, the first of a process a hundred: it compiles."""
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0)
    now = 0.0
    monkeypatch.setattr("core.loop.time.perf_counter", lambda: now)
    for stop_at in (4, None):
        with Run(job(), out=tmp_path / "set") as run:
            loop, steps = Loop(run, "walk", 3), 0
            for _ in loop:
                for _ in loop.steps(Count()):
                    steps += 1
                    now += 100 if steps == 1 else 1
                    loop.add(10, value=torch.tensor(1.0))
                    if steps == stop_at:
                        break
                if steps == stop_at:
                    break
                loop.end_epoch()
    # 3 steps were saved before the death, 6 follow; each process leaves out its first.
    assert (loop.images, loop.timed, loop.seconds) == (90, 70, 7.0)
    assert loop.images_per_second == 10
    assert loop.means == {"value": 1.0}


def test_not_a_number_stops_the_loop(tmp_path):
    with Run(job(), out=tmp_path / "set") as run:
        loop = Loop(run, "walk", 1)
        for _ in loop.steps(Count()):
            loop.add(1, loss=torch.tensor(float("nan")))
        with pytest.raises(UserError, match="loss became nan in epoch 0"):
            loop.end_epoch()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_the_same_line_resumes(tmp_path, number):
    line = [sys.executable, "evaluate.py", "configs/learners/em60.yaml", "data=digits",
            f"out={tmp_path / 'record'}", "--limit", "400", "standard.epochs=400", "threads=1"]
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "record.partial" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert "the same line resumes" in errors
    assert "evaluate.py configs/learners/em60.yaml" in errors
    assert "Traceback" not in errors
    saved = torch.load(tmp_path / "record.partial" / "state" / "classifier.pt", weights_only=True)
    assert saved["epoch"] * 6 + saved["step"] > 0


# --- damage ----------------------------------------------------------------------------------


def flips(data, count=20):
    """`data` with one bit changed, at `count` places spread over it."""
    for place in np.linspace(0, 8 * len(data) - 1, count).astype(int):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)


def test_no_flipped_bit_of_a_state_is_silent(tmp_path):
    with Run(job(), out=tmp_path / "set") as run:
        run.save_state("loop", {"weights": torch.arange(300.0), "epoch": 3})
        path = run.work / "state" / "loop.pt"
        for flipped in flips(path.read_bytes(), 60):
            path.write_bytes(flipped)
            with pytest.raises(UserError, match=r"loop\.pt is damaged.*; remove .*set\.partial"):
                run.load_state("loop")


def test_a_state_is_read_once(tmp_path, monkeypatch):
    """They may be gigabytes: by a loop that resumes, and by a sweep."""
    reads = []
    read_bytes, regular = Path.read_bytes, core.reading.regular
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read_bytes(path))
    monkeypatch.setattr(core.reading, "regular", lambda path: reads.append(path) or regular(path))
    with Run(job(), out=tmp_path / "set") as run:
        run.save_state("loop", {"epoch": 3})
        reads.clear()
        run.load_state("loop")
        assert reads == [run.work / "state" / "loop.pt"]
        swept(run)
    with Run(job(), out=tmp_path / "set") as run:
        reads.clear()
        assert swept(run) == []
        assert [path.name for path in reads if path.suffix == ".pt"] == ["images@0.pt"]


@pytest.mark.parametrize("name", ["images.npy", "log.jsonl", "state/loop.pt", "config.yaml"])
@pytest.mark.parametrize("what", ["pipe", "link", "circle", "folder"])
def test_what_is_no_regular_file_is_not_resumed_from(tmp_path, name, what):
    with Run(job(), out=tmp_path / "set") as run:
        swept(run)
        run.log("loop", 0, loss=1.0)
        run.save_state("loop", {"epoch": 1})
        path = run.work / name
    path.rename(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    {"pipe": os.mkfifo, "folder": os.mkdir,
     "link": lambda path: path.symlink_to(tmp_path / "elsewhere"),
     "circle": lambda path: path.symlink_to(path.name)}[what](path)
    with pytest.raises(UserError, match=rf"{path.name} is not what .*; remove .*set\.partial"), \
            Run(job(), out=tmp_path / "set"):
        pass
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_no_flipped_bit_of_the_identity_is_silent(tmp_path):
    with Run(job(), out=tmp_path / "set") as run:
        path = run.work / "run.json"
    for flipped in flips(path.read_bytes(), 60):
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"run\.json is damaged|other unfinished work"), \
                Run(job(), out=tmp_path / "set"):
            pass


def test_no_flipped_bit_of_a_log_is_silent(tmp_path, monkeypatch):
    """A line of a saved epoch is refused; a later one, or a note, is written again."""
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0)

    def steps(run, stop_at=None):
        walk(run, stop_at)
        run.note("end", value=5)

    with Run(job(), out=tmp_path / "whole") as run:
        steps(run)
        whole = lines_of(run)
    with Run(job(), out=tmp_path / "set") as run:
        steps(run, stop_at=8)
        path = run.work / "log.jsonl"
    log, state = path.read_bytes(), (run.work / "state" / "walk.pt").read_bytes()
    saved = len(b"".join(log.splitlines(keepends=True)[:2]))    # after 8 steps of 3 an epoch

    def survives(flipped):
        return flipped[:saved] == log[:saved]

    refused = 0
    for flipped in flips(log, 40):
        path.write_bytes(flipped)
        (run.work / "state" / "walk.pt").write_bytes(state)
        with Run(job(), out=tmp_path / "set") as run:
            told = contextlib.nullcontext() if survives(flipped) else pytest.raises(
                UserError, match=r"log\.jsonl is damaged")
            with told:
                steps(run)
            if not survives(flipped):
                refused += 1
                continue
            run.folder.log.drop_unknown()          # as the commit does
            assert lines_of(run) == whole
    assert refused > 10


def test_no_flipped_bit_of_a_finished_meta_is_silent(tmp_path):
    finish(tmp_path / "set")
    path = tmp_path / "set" / "meta.json"
    for flipped in flips(path.read_bytes(), 60):
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"meta\.json|JSON|Expecting|Invalid|decode|Extra"):
            core.files.read_json(path)
        with pytest.raises(UserError, match=r"meta\.json is damaged"), \
                Run(job(), out=tmp_path / "set"):
            pass


def test_an_older_meta_without_a_digest_is_still_this_work(tmp_path):
    finish(tmp_path / "set")
    path = tmp_path / "set" / "meta.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items()
                                if k not in ("sha256", "log_sha256")}))
    with Run(job(), out=tmp_path / "set") as run:
        assert run.done


def test_other_bytes_of_an_input_are_refused_at_resume(tmp_path):
    first = {"data": {"images.npy": "a" * 64, "labels.npy": "b" * 64}}
    other = {"data": {"images.npy": "c" * 64, "labels.npy": "b" * 64}}
    assert job(digests=first).fingerprint == job(digests=other).fingerprint
    with Run(job(digests=first), out=tmp_path / "set"):
        pass
    with pytest.raises(UserError, match=r"other bytes of its input 'data' \(images\.npy\)"), \
            Run(job(digests=other), out=tmp_path / "set"):
        pass
    with Run(job(digests=first), out=tmp_path / "set") as run:
        assert not run.done


def test_another_torch_is_said_at_resume(tmp_path, monkeypatch, capsys):
    with Run(job(), out=tmp_path / "set"):
        pass
    monkeypatch.setattr(core.workfolder, "versions", lambda: {"torch": "1.0"})
    with Run(job(), out=tmp_path / "set"):
        pass
    assert f"begun with torch {torch.__version__.split('+')[0]}" in capsys.readouterr().err


def swept(run, rows=10, step=3):
    """A sweep that writes 1 + its row number; the starts of the slices that it yielded."""
    file = RowFile(run.work / "images.npy", (rows, 2), np.uint8)
    starts = []
    with contextlib.closing(file):
        for start, stop in run.sweep("images", rows, step, file):
            file.write(start, np.repeat(np.arange(start + 1, stop + 1, dtype=np.uint8)[:, None],
                                        2, axis=1))
            starts.append(start)
    return starts


@pytest.mark.parametrize(("damage", "again"), [
    (lambda path: None, []),
    (lambda path: path.unlink(), [0, 3, 6, 9]),
    (lambda path: os.truncate(path, 5), [0, 3, 6, 9]),
    (lambda path: os.truncate(path, path.stat().st_size - 1), [9]),
    (lambda path: path.write_bytes(bytes(path.stat().st_size)), [0, 3, 6, 9]),
    (lambda path: path.write_bytes(bytes(100) + path.read_bytes()[100:]), []),     # the header
    (lambda path: path.write_bytes(path.read_bytes()[:-8] + bytes(8)), [6, 9]),
], ids=["whole", "gone", "short", "a byte short", "zeros", "no header", "zeros at the end"])
def test_rows_that_are_not_on_the_disk_are_made_again(tmp_path, capsys, damage, again):
    with Run(job(), out=tmp_path / "set") as run:
        assert swept(run) == [0, 3, 6, 9]
        whole = (run.work / "images.npy").read_bytes()
    damage(run.work / "images.npy")
    with Run(job(), out=tmp_path / "set") as run:
        assert swept(run) == again
        assert (run.work / "images.npy").read_bytes() == whole
    assert ("made again" in capsys.readouterr().err) == bool(again)


def test_rows_that_nothing_can_make_again_are_required(tmp_path):
    with Run(job(), out=tmp_path / "set") as run:
        swept(run)
        with contextlib.closing(RowFile(run.work / "images.npy", (10, 2), np.uint8)) as file:
            run.require_sweep("images", 10, 3, file)
            file.clear()
            with pytest.raises(UserError, match=r"images\.npy does not hold what was written"):
                run.require_sweep("images", 10, 3, file)


def test_a_header_is_written_in_as_many_pieces_as_it_takes(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:7], at))
    with contextlib.closing(RowFile(tmp_path / "rows.npy", (4, 3), np.int64)) as file:
        file.write(0, np.arange(12).reshape(4, 3))
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), np.arange(12).reshape(4, 3))


def test_names_are_synced_before_a_state_speaks_of_them(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(core.files, "operation",
                        lambda kind, path: seen.append((kind, path.name)))
    with Run(job(), out=tmp_path / "set") as run:
        swept(run)
    at = seen.index(("rename", "images@0.pt"))
    images = seen.index(("fsync", "images.npy"))
    assert seen[images + 1] == ("fsync", "set.partial")
    assert images + 1 < at


# --- folders that are not ours ---------------------------------------------------------------


@pytest.mark.parametrize("names", [["thesis.tex"], ["lock"], ["lock", "thesis.tex"], ["state"]])
@pytest.mark.parametrize("force", [False, True])
def test_a_folder_in_the_way_is_not_touched(tmp_path, names, force):
    mine = tmp_path / "set.partial"
    mine.mkdir()
    for name in names:
        (mine / name).write_text("precious")
    with pytest.raises(UserError, match=r"set\.partial is in the way"), \
            Run(job(), out=tmp_path / "set", force=force):
        pass
    assert {path.name: path.read_text() for path in mine.iterdir()} \
        == dict.fromkeys(names, "precious")


def test_names_beside_a_file_are_not_touched(tmp_path):
    (tmp_path / "a.png.tmp").mkdir()
    (tmp_path / "a.png.tmp" / "thesis.tex").write_text("precious")
    (tmp_path / f"a.png.{os.getpid()}-0.tmp").write_text("precious")
    core.files.write_bytes(tmp_path / "a.png", b"picture")
    assert (tmp_path / "a.png").read_bytes() == b"picture"
    assert (tmp_path / f"a.png.{os.getpid()}-0.tmp").read_text() == "precious"
    assert (tmp_path / "a.png.tmp" / "thesis.tex").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_disk_that_fails_also_while_tidying_is_named_and_unlocks(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "the first")

    with monkeypatch.context() as failing:
        failing.setattr(WorkFolder, "_begin", fail)
        failing.setattr(core.files, "remove_tree", fail)
        with pytest.raises(OSError, match="the first"), Run(job(), out=tmp_path / "set"):
            pass
    finish(tmp_path / "set")                    # not locked by what failed
    assert (tmp_path / "set" / "meta.json").exists()


def test_what_was_moved_aside_before_is_not_moved_over(tmp_path):
    finish(tmp_path / "set")
    (tmp_path / "set.old-1").symlink_to("nowhere")
    with Run(job(seed=1), out=tmp_path / "set", force=True):
        pass
    assert (tmp_path / "set.old-1").is_symlink()
    assert (tmp_path / "set.old-2" / "images.npy").exists()


def test_an_empty_folder_is_used_and_links_are_followed(tmp_path):
    (tmp_path / "empty").mkdir()
    finish(tmp_path / "empty")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "scratch" / "set")
    finish(tmp_path / "dangling")
    assert (tmp_path / "dangling").is_symlink()
    for out in (tmp_path / "empty", tmp_path / "dangling", tmp_path / "scratch" / "set"):
        assert (out / "meta.json").exists()
        with Run(job(), out=out) as run:
            assert run.done
    assert not list(tmp_path.rglob("*.partial"))


def test_names_that_can_be_no_new_folder_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for out, words in (("a", "circle"), ("..", "not a new folder"), ("x.partial", "unfinished")):
        with pytest.raises(UserError, match=words):
            Run(job(), out=tmp_path / out)
    (tmp_path / "c.partial").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"c\.partial is a link"), Run(job(), out=tmp_path / "c"):
        pass


@pytest.mark.parametrize("kept", ["state", "run.json", "lock"])
def test_out_never_keeps_what_was_for_resuming(tmp_path, kept):
    """Whatever a maker left behind, the same line removes."""
    finish(tmp_path / "set")
    (tmp_path / "set" / kept).mkdir() if kept == "state" else (tmp_path / "set" / kept).touch()
    with Run(job(), out=tmp_path / "set") as run:
        assert run.done
    assert not (tmp_path / "set" / kept).exists()


# --- the lock --------------------------------------------------------------------------------


def test_a_folder_renamed_between_mkdir_and_open_is_made_again(tmp_path, monkeypatch):
    """Its holder finished just then."""
    check, calls = lock.check_ours, []

    def renamed_first(folder):
        check(folder)
        if not calls:
            os.rename(folder, tmp_path / "finished")
        calls.append(folder)

    monkeypatch.setattr(lock, "check_ours", renamed_first)
    os.close(lock.take(tmp_path / "set.partial"))
    assert len(calls) == 2
    assert (tmp_path / "set.partial" / "lock").exists()


@pytest.mark.parametrize("left", [b"", lock.SIGN[:9], bytes(60)])
def test_a_lock_whose_maker_died_while_it_signed_is_taken(tmp_path, left):
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "lock").write_bytes(left)
    finish(tmp_path / "set")


def test_waiting_says_for_whom_and_that_it_is_stopped(tmp_path, monkeypatch, capsys):
    code = f"import time; from core import lock; from pathlib import Path; " \
           f"lock.take(Path({str(tmp_path / 'set.partial')!r})); print('locked', flush=True); " \
           "time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match=rf"another process \({other.pid} on .*, since 20"), \
                Run(job(), out=tmp_path / "set"):
            pass
        other.send_signal(signal.SIGSTOP)

        def looked(_):
            if "which is stopped" in (said := capsys.readouterr().err):
                assert f"waiting for another process ({other.pid} on" in said
                other.kill()

        monkeypatch.setattr(core.workfolder.time, "sleep", looked)
        with Run(job(), out=tmp_path / "set", wait=True) as run:
            assert other.wait() == -signal.SIGKILL
            assert not run.done
    finally:
        other.kill()
        other.wait()
