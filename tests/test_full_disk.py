"""A disk that is full, read-only or broken: a sentence, nothing half made, and the same line goes
on once there is room."""

import errno
import os
import resource
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import content, run_command, succeed
from refusals import DVAE, EM60, GRAY, LSP, OUT, PATCH, TINY_NET, TINY_VAE, refused

import evaluate
import purify
import train_vae
from core import files, memory
from core.command import command
from poisons.__main__ import main as poison


@pytest.fixture
def readonly():
    """A folder where nobody may write, as seen by a user who is not root."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        try:
            os.seteuid(65534)
        except OSError:
            pytest.skip("cannot become another user")
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    files.remove_tree(folder)


def test_a_read_only_folder_is_named(readonly):
    """Nothing has to be imported late: an unprivileged user may not read root's libraries."""
    out = readonly / "sub" / "out"
    outcome = run_command(poison, "method=random_signs", "data=digits", "--limit", 50, f"out={out}")
    refused(outcome, str(readonly), "permission denied", out=out)


COMMANDS = {
    "poison": (poison, [LSP, "data=digits", PATCH, "--limit", 64]),
    "purify": (purify.main, [GRAY, "data=digits", "--limit", 64]),
    "train": (train_vae.main, [DVAE, "data=digits", "--limit", 64, *TINY_VAE]),
    "evaluate": (evaluate.main, [EM60, "data=digits", "--limit", 64, *TINY_NET]),
}


@pytest.mark.parametrize(("name", "every"), [
    ("poison", 1), ("purify", 4), ("train", 7), ("evaluate", 4),
    *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("purify", "train", "evaluate"))])
def test_a_disk_that_fills_up_at_any_write_costs_a_sentence(name, every, monkeypatch):
    """ENOSPC at the k-th operation, k = 1, 1 + every, ...; then there is room and the same line
    is repeated."""
    main, arguments = COMMANDS[name]
    expected = content(succeed(main, *arguments, "out=expected"))
    calls, fail_at = 0, 0

    def operation(kind, path):
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "operation", operation)
    out = Path("deep/out")
    for k in range(1, 1000, every):
        calls, fail_at = 0, k
        outcome = run_command(main, *arguments, f"out={out}")
        if outcome.status == 0:
            break
        assert outcome.error is not None, outcome.stderr
        assert "no space left on device" in outcome.error
        assert "deep" in outcome.error
        assert "Traceback" not in outcome.stderr
        if out.exists():            # only once everything is on disk: then it must be whole
            assert content(out) == expected
        fail_at = 0
        assert content(succeed(main, *arguments, f"out={out}")) == expected, k
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        files.remove_tree(out.parent)
    assert k > 10
    assert content(out) == expected


@pytest.mark.parametrize("limit", [50, 127, 1000, 100_000, 230_000])
def test_a_file_that_may_not_grow_costs_a_sentence(limit):
    """A real limit of the kernel: writes fail beyond it (EFBIG), as on a full disk."""
    arguments = ["method=random_signs", "data=digits", "--limit", 300, f"out={OUT}"]
    expected = content(succeed(poison, *arguments[:-1], "out=expected"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        outcome = run_command(poison, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(outcome, "out.partial", "file too large")
    assert content(succeed(poison, *arguments)) == expected


@pytest.fixture
def tmpfs(tmp_path):
    """A function that mounts a file system of so many kilobytes."""
    mounted = []

    def mount(kilobytes: int) -> Path:
        folder = tmp_path / f"small{kilobytes}"
        folder.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs",
                               str(folder)], capture_output=True, check=False)
        if made.returncode:
            pytest.skip("may not mount a tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("free_pages", range(8))
def test_a_small_tmpfs_that_is_full_and_then_has_room(tmpfs, free_pages, monkeypatch):
    """ballast leaves so many pages free; the images.npy of 230 kB needs 57, its header the first.

    The file's size is set before its pages exist: what fails in between must not look finished.
    Room was there when it was asked for: another program took it.
    """
    monkeypatch.setattr(memory, "require_disk", lambda *_: None)
    expected = content(succeed(poison, "method=random_signs", "data=digits", "--limit", 300))
    disk = tmpfs(600)
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    with open(ballast, "wb", buffering=0) as file:
        file.write(b"\0" * (free.f_bsize * free.f_bavail - 4096 * free_pages))
    arguments = ["method=random_signs", "data=digits", "--limit", 300, f"out={disk / 'out'}"]
    refused(run_command(poison, *arguments), str(disk), "no space left on device", out=disk / "out")
    ballast.unlink()
    assert content(succeed(poison, *arguments)) == expected


def test_a_set_that_does_not_fit_is_refused_before_the_work(tmpfs):
    disk = tmpfs(200)
    refused(run_command(poison, "method=random_signs", "data=digits", "--limit", 300,
                        f"out={disk / 'out'}"),
            "images.npy: 300 images are 0.2 MB, and its disk has", "make room", out=disk / "out")


@pytest.mark.parametrize("number", [errno.EIO, errno.ELOOP, errno.ESTALE, errno.ENOLCK, errno.EBUSY,
                                    errno.ENOTEMPTY, errno.EXDEV, errno.ENXIO, errno.ETIMEDOUT])
def test_whatever_a_disk_answers_is_a_sentence(number, capsys):
    def body(argv):
        raise OSError(number, os.strerror(number), "place")

    assert command(body)() == 1
    assert f"error: place: {os.strerror(number).lower()}; " in capsys.readouterr().err
