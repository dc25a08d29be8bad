"""The folder that work is made in: locks, occupied folders, damage, resume; by real processes where
it matters."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import core.files
import core.workfolder
from core import lock
from core.device import DeviceSettings
from core.errors import UserError
from core.job import Job
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


@pytest.mark.parametrize(("saved", "kept"), [(True, True), (False, False)])
def test_a_mistake_found_late_costs_no_saved_work(tmp_path, saved, kept):
    """A loss that is not finite after hours; a key that cannot be, after none."""
    def work():
        with Run(job(), out=tmp_path / "set") as run:
            if saved:
                run.save_state("loop", {"epoch": 3})
            raise UserError("loss became nan")

    with pytest.raises(UserError):
        work()
    assert (tmp_path / "set.partial").exists() == kept


def test_a_mistake_of_one_process_leaves_the_others_folder(tmp_path):
    def work():
        with Run(job(), out=tmp_path / "set") as run:
            run.world = dataclasses.replace(run.world, size=2)
            raise UserError("mine")

    with pytest.raises(UserError):
        work()
    assert (tmp_path / "set.partial").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't "
                                   "allocate memory: you tried to allocate 8 bytes"),
                                   torch.OutOfMemoryError("CUDA out of memory.")])
def test_what_did_not_fit_into_memory_leaves_the_place_to_smaller_work(tmp_path, error):
    with pytest.raises(type(error)), Run(job(), out=tmp_path / "set"):
        raise error
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), Run(job(), out=tmp_path / "set"):
        raise RuntimeError("a mistake in the code")
    assert (tmp_path / "set.partial/run.json").exists()


def test_what_is_committed_is_never_taken_for_unbegun(tmp_path, monkeypatch):
    """Also where memory runs out between the commit and the end."""
    def tidy(*_):
        raise MemoryError

    monkeypatch.setattr(WorkFolder, "_tidy", tidy)
    with pytest.raises(MemoryError):
        finish(tmp_path / "set")
    assert (tmp_path / "set.partial/images.npy").read_bytes() == b"pixels"


def test_a_lock_that_leads_nowhere_is_refused(tmp_path):
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial/lock").symlink_to("nowhere")
    with pytest.raises(UserError, match="in the way and was not made by this repository"), \
            Run(job(), out=tmp_path / "set"):
        pass


def test_a_finished_log_has_no_lines_that_nobody_vouched_for(tmp_path):
    """Of a loop that the run before us went through and this one does not."""
    with Run(job(), out=tmp_path / "set") as run:
        run.log("old", 0, loss=1.0)
    with Run(job(), out=tmp_path / "set") as run:
        run.log("new", 0, loss=2.0)
        (run.work / "images.npy").write_bytes(b"pixels")
        run.finish({"kind": "imageset"})
    lines = (tmp_path / "set/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["loop"] for line in lines] == ["new"]


def test_what_was_written_is_on_the_disk_before_it_is_the_artefact(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(core.files, "operation", lambda kind, path: done.append((kind, path)))
    finish(tmp_path / "set")
    work = tmp_path / "set.partial"
    rename = done.index(("rename", tmp_path / "set"))
    last = max(i for i, (kind, path) in enumerate(done[:rename]) if path.parent == work)
    assert ("fsync", work) in done[last + 1 : rename]


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


@pytest.mark.parametrize("reason", ["another process", "no such device"])
def test_what_cannot_begin_moves_nothing_aside(tmp_path, reason):
    finish(tmp_path / "set")
    with contextlib.ExitStack() as held:
        if reason == "another process":
            descriptor = lock.take(tmp_path / "set.partial")
            held.callback(os.close, descriptor)
        device = DeviceSettings("cuda:99" if reason == "no such device" else "cpu")
        with pytest.raises(UserError), \
                Run(job(seed=1), out=tmp_path / "set", device=device, force=True):
            pass
    assert (tmp_path / "set" / "images.npy").read_bytes() == b"pixels"
    assert not (tmp_path / "set.old-1").exists()


def test_force_makes_room_for_what_is_resumed(tmp_path):
    """Other work came to be at OUT meanwhile."""
    with Run(job(seed=1), out=tmp_path / "set"):
        pass
    finish(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "set")
    with Run(job(seed=1), out=tmp_path / "set", force=True):
        pass
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


def test_what_says_whose_it_is_is_gone_from_the_disk_before_the_rest(tmp_path, monkeypatch):
    """A power cut may keep the later removals and lose the earlier ones."""
    with Run(job(), out=tmp_path / "set") as run:
        run.save_state("loop", {"epoch": 3})
        (run.work / "images.npy").write_bytes(b"pixels")
    work, done = tmp_path / "set.partial", []
    monkeypatch.setattr(core.files, "operation", lambda kind, path: done.append((kind, path)))
    with Run(job(seed=1), out=tmp_path / "set", force=True):
        pass
    removed = [i for i, (kind, path) in enumerate(done)
               if kind == "unlink" and path.is_relative_to(work)]
    first, second, *rest = removed
    assert {done[i][1].name for i in (first, second)} == {"meta.json", "run.json"}
    assert work / "images.npy" in {done[i][1] for i in rest}
    assert ("fsync", work) in done[second : rest[0]]


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
    said = (r"set\.partial was begun on cuda:99 and cannot go on as it was begun \(device: "
            r"'cuda:99' is not on this machine.*; resume it where it can, or remove it")
    with pytest.raises(UserError, match=said), \
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
    code = ("import sys, time; from core.run import *; from core.job import Job;"
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


# --- damage ----------------------------------------------------------------------------------


def flips(data, count=20):
    """`data` with one bit changed, at `count` places spread over it."""
    for place in np.linspace(0, 8 * len(data) - 1, count).astype(int):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        yield bytes(flipped)


def test_no_flipped_bit_of_the_identity_is_silent(tmp_path):
    with Run(job(), out=tmp_path / "set") as run:
        path = run.work / "run.json"
    for flipped in flips(path.read_bytes(), 60):
        path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"run\.json is damaged|other unfinished work"), \
                Run(job(), out=tmp_path / "set"):
            pass


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


def test_another_module_of_the_method_is_said_at_resume(tmp_path, monkeypatch, capsys):
    """What it made already stays. A job of no method here has none."""
    assert list(job().code) == ["poisons/lsp.py"]
    assert job(method="none").code == {}
    for module, changed in (("a" * 64, False), ("b" * 64, True)):
        monkeypatch.setattr(Job, "code", {"poisons/lsp.py": module})
        with Run(job(), out=tmp_path / "set"):
            pass
        said = capsys.readouterr().err
        assert ("begun with another poisons/lsp.py" in said) == changed
        assert ("--force makes all of it again" in said) == changed


def test_force_drops_what_another_module_began(tmp_path, monkeypatch):
    """And not what this one did."""
    for number, (module, kept) in enumerate((("a", False), ("a", True), ("b", False))):
        monkeypatch.setattr(Job, "code", {"poisons/lsp.py": module * 64})
        with Run(job(), out=tmp_path / "set", force=True) as run:
            assert (run.load_state("walk") is not None) == kept, number
            run.save_state("walk", {"epoch": 1})


def test_a_record_and_a_checkpoint_say_what_they_are_of(tmp_path):
    with Run(job(), out=tmp_path / "record") as run:
        core.files.write_json(run.work / "record.json", {"learner": "lsp", "config": {"a": 1},
                                                    "seed": 0})
        run.finish({"kind": "record"})
    with Run(job(), out=tmp_path / "checkpoint") as run:
        run.finish({"kind": "checkpoint", "method": "lsp", "config": {"a": 1}, "seed": 0})
    for name in ("record", "checkpoint"):
        for changes, said in (({"config": {"a": 2}}, "lsp.a is 1 there, 2 here"),
                              ({"seed": 1}, "seed is 0 there, 1 here"),
                              ({"method": "ar"}, "of lsp, not of ar")):
            with pytest.raises(UserError) as error, Run(job(**changes), out=tmp_path / name):
                pass
            assert f"{name} holds other work ({said}); choose another out=" in str(error.value)


@pytest.mark.parametrize(("changes", "said"), [
    ({"config": {"a": 2}}, "lsp.a is 1 there, 2 here"), ({"seed": 1}, "seed is 0 there, 1 here"),
    ({"inputs": {"data": "e"}}, "another input"), ({"method": "ar"}, "of lsp, not of ar"),
    ({"version": 2}, "another config, seed, input, --limit or --smoke"),
])
def test_other_work_is_told_apart(tmp_path, changes, said):
    with Run(job(), out=tmp_path / "set") as run:
        run.finish({"kind": "imageset", "lineage": [run.lineage_entry()]})
    with pytest.raises(UserError) as error, Run(job(**changes), out=tmp_path / "set"):
        pass
    assert f"set holds other work ({said}); choose another out=" in str(error.value)


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


def test_who_only_looks_is_in_nobodys_way(tmp_path, monkeypatch):
    """A lock that another has for a moment is tried again; one that is kept is not waited for."""
    flock, tries = lock.fcntl.flock, []

    def busy(descriptor, how):
        tries.append(how)
        if len(tries) < blocked:
            raise BlockingIOError
        flock(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", busy)
    for blocked in (1, 2, 3):
        tries.clear()
        os.close(lock.take(tmp_path / "set.partial"))
        assert len(tries) == blocked
    blocked = 100
    with pytest.raises(lock.Held):
        lock.take(tmp_path / "set.partial")


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
