"""Runs: streams, loops and sweeps that resume, their states and log, Ctrl-C."""

import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import process, until
from test_workfolder import flips, job

import core.files
import core.reading
import core.run
from core.errors import UserError
from core.files import RowFile
from core.loop import Loop
from core.run import Interrupt, Run

ROOT = Path(__file__).resolve().parents[1]


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


def test_slow_saving_saves_less_often(tmp_path, monkeypatch):
    """After a minute, or ten where a save takes ten seconds."""
    now = [1000.0]
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 60.0)
    monkeypatch.setattr(core.run.time, "monotonic", lambda: now[0])
    with Run(job(), out=tmp_path / "run") as run:
        for took, pause in ((0.1, 60), (10, 600)):
            def keep(name, state, took=took):
                now[0] += took

            monkeypatch.setattr(run, "keep", keep)
            run.save_state("loop", {})
            now[0] += pause - 1
            assert not run.save_due()
            now[0] += 1.1
            assert run.save_due()


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


def test_a_state_that_cannot_say_whether_its_loop_had_ended_is_refused(tmp_path, monkeypatch):
    """An epoch more would be other bytes under the same fingerprint."""
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0)
    with Run(job(), out=tmp_path / "set") as run:
        walk(run, 5)
        state = run.load_state("walk")
        del state["epochs"]
        run.save_state("walk", state)
    with (Run(job(), out=tmp_path / "set") as run,
          pytest.raises(UserError, match="another version of this code; remove it")):
        walk(run)


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
    assert run.seconds == 7.0                           # of all its loops and sweeps
    assert loop.means == {"value": 1.0}


def test_not_a_number_stops_the_loop(tmp_path):
    with Run(job(), out=tmp_path / "set") as run:
        loop = Loop(run, "walk", 1)
        for _ in loop.steps(Count()):
            loop.add(1, loss=torch.tensor(float("nan")))
        with pytest.raises(UserError, match="loss became nan in epoch 1"):
            loop.end_epoch()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_the_same_line_resumes(tmp_path, monkeypatch, number):
    monkeypatch.chdir(ROOT)
    running = process("evaluate.py", "configs/learners/em60.yaml", "data=digits",
                      f"out={tmp_path / 'record'}", "--limit", "400", "standard.epochs=400",
                      "standard.width=8", "threads=1")
    log = tmp_path / "record.partial" / "log.jsonl"
    until(lambda: log.exists() and log.stat().st_size)
    running.send_signal(number)
    errors = running.communicate(timeout=60)[1]
    assert running.returncode == 130, errors
    assert "the same line resumes" in errors
    assert "evaluate.py configs/learners/em60.yaml" in errors
    assert "Traceback" not in errors
    saved = torch.load(tmp_path / "record.partial" / "state" / "classifier.pt", weights_only=True)
    assert saved["epoch"] * 6 + saved["step"] > 0


def test_a_signal_and_its_echo_ask_once(monkeypatch):
    """SLURM ends a job with SIGTERM to every process of it, and the worker passes its own on."""
    now, interrupt = [100.0], Interrupt()
    monkeypatch.setattr(core.run.time, "monotonic", lambda: now[0])

    def stops_at_once(number: int) -> bool:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            return True
        return False

    interrupt.catch()
    try:
        assert not stops_at_once(signal.SIGTERM)
        assert interrupt.asked
        now[0] += 0.5
        assert not stops_at_once(signal.SIGTERM)
        now[0] += 2
        assert stops_at_once(signal.SIGINT)
    finally:
        interrupt.restore()


# --- damage ----------------------------------------------------------------------------------


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


def test_a_note_takes_no_loops_name(tmp_path):
    """It would drop the loop's lines, and a death after it could not be resumed."""
    with Run(job(), out=tmp_path / "set") as run:
        run.log("surrogate", 0, loss=1.0)
        run.save_state("surrogate", {"epoch": 1})
        with pytest.raises(RuntimeError, match="'surrogate' is a loop's name"):
            run.log_once("surrogate", share=0.5)
        assert len(run.folder.log.lines()) == 1


def test_no_flipped_bit_of_a_log_is_silent(tmp_path, monkeypatch):
    """A line of a saved epoch is refused; a later one, or a note, is written again."""
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0)

    def steps(run, stop_at=None):
        walk(run, stop_at)
        run.log_once("end", value=5)

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


def test_names_beside_a_file_are_not_touched(tmp_path):
    (tmp_path / "a.png.tmp").mkdir()
    (tmp_path / "a.png.tmp" / "thesis.tex").write_text("precious")
    (tmp_path / f"a.png.{os.getpid()}-0.tmp").write_text("precious")
    core.files.write_bytes(tmp_path / "a.png", b"picture")
    assert (tmp_path / "a.png").read_bytes() == b"picture"
    assert (tmp_path / f"a.png.{os.getpid()}-0.tmp").read_text() == "precious"
    assert (tmp_path / "a.png.tmp" / "thesis.tex").exists()
    assert len(list(tmp_path.iterdir())) == 3
