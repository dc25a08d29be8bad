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

import core.run
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


def test_finished_work_is_not_done_again(tmp_path):
    finish(tmp_path / "set")
    with Run(job(), out=tmp_path / "set") as run:
        assert run.done


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


def test_second_process_is_refused_while_the_first_lives(tmp_path):
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
    with Run(job(), out=tmp_path / "set") as run:       # the kernel dropped the dead one's lock
        assert run.resumed


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
