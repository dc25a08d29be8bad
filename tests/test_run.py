"""Runs: locks, occupied folders, Ctrl-C, resume; by real processes where it matters."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import core.files
import core.run
from core.device import DeviceSettings
from core.errors import UserError
from core.loop import Loop
from core.run import Job, Run

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
        begun = json.loads((run.work / "run.json").read_text())
        begun["device"]["device"] = "cuda:99"
        (run.work / "run.json").write_text(json.dumps(begun))
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
    code = ("import sys, time; from core.run import *;"
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
    monkeypatch.setattr(Run, "_tidy", lambda self: None)
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


def walk(run, stop_at=None):
    """Four epochs of adding up; dies after `stop_at` steps. The trace of (epoch, step)."""
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
        loop.end_epoch()
    return trace, total.weight.item()


@pytest.mark.parametrize("stop_at", range(1, 12))
def test_loop_resumes_at_every_step(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0)
    with Run(job(), out=tmp_path / "whole") as run:
        whole, total = walk(run)
        lines = [{k: v for k, v in line.items() if k != "seconds"} for line in run.read_log()]
    with Run(job(), out=tmp_path / "broken") as run:
        before, _ = walk(run, stop_at)
    with Run(job(), out=tmp_path / "broken") as run:
        after, resumed = walk(run)
        again = [{k: v for k, v in line.items() if k != "seconds"} for line in run.read_log()]
    assert before[:-1] + after == whole     # the last step was not saved before we died
    assert resumed == total
    assert again == lines


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
    line = [sys.executable, "evaluate.py", "configs/learners/digits10.yaml", "data=digits",
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
    assert "evaluate.py configs/learners/digits10.yaml" in errors
    assert "Traceback" not in errors
    saved = torch.load(tmp_path / "record.partial" / "state" / "classifier.pt", weights_only=True)
    assert saved["epoch"] * 6 + saved["step"] > 0
