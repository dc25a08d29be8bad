"""core/output.py: what stands behind stdout and stderr ends no command in a traceback."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_command

from core import files, output
from core.command import command
from core.errors import UserError
from scripts.bench import bench
from scripts.pictures import figures, inspect_poison, toy
from scripts.pictures.style import picture_path

CODE = """
import sys
from core import output
output.prepare()
print("working", file=sys.stderr)
try:
    for line in sys.argv[1:]:
        print(line)
    output.flush()
except BrokenPipeError:
    sys.exit(1)
except OSError as error:
    sys.exit(f"{error.filename}: {error.strerror}")
"""


def run(*words: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess:
    """A process that prints its words, by a shell that redirects it."""
    return subprocess.run(
        ["bash", "-c", f'"$@" {redirect}', "bash", sys.executable, "-c", CODE, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True,
        check=False)


@contextlib.contextmanager
def full_disk():
    """stdout as `prepare` makes it, on a full disk."""
    with open("/dev/full", "wb") as file:
        raw = output.Stdout(file.fileno(), "w", closefd=False)
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BufferedWriter(raw))):
            yield raw


@pytest.mark.parametrize(("encoding", "text", "written"), [
    ("ascii", "runs/café", "runs/café".encode()),
    ("latin-1", "runs/café", "runs/café".encode("latin-1")),
    ("utf-8", os.fsdecode(b"runs/caf\xe9"), b"runs/caf\xe9"),       # of a disk from elsewhere
    ("ascii", "\ud800", b"\\ud800"),                                # no name on any disk
])
def test_every_path_is_written(encoding, text, written):
    output.prepare()
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="path")
    stream.write(text)
    stream.flush()
    assert raw.getvalue() == written


def test_a_path_that_stdout_cannot_encode_is_printed():
    done = run("runs/café", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "runs/café\n".encode())


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_message_is_there_at_once(unbuffered):
    """For whoever watches the log of a long run."""
    code = ("import os, sys; from core import output; output.prepare(); "
            "print('a', file=sys.stderr); os._exit(0)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True,
                          env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert done.stderr == b"a\n"


def test_a_full_disk_behind_stdout_is_named_once():
    done = run("a", redirect=">/dev/full")
    assert (done.returncode, done.stderr) == (
        1, b"working\nstandard output: No space left on device\n")


def test_a_reader_that_left_is_no_complaint():
    done = run("x" * 100_000, redirect="| head -c 1")
    assert (done.stdout, done.stderr) == (b"x", b"working\n")


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-"])
def test_nobody_reads_the_messages(redirect):
    done = run("a", redirect=redirect)
    assert (done.returncode, done.stdout) == (0, b"a\n")


def test_a_full_pipe_that_does_not_block_stops_nothing():
    """As a terminal program leaves stderr that reads it too slowly."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    done = subprocess.run([sys.executable, "-c", CODE, "made"], stderr=writing, check=False,
                          stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    os.close(reading)
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"made\n")


def test_a_closed_stdout():
    assert run("a", redirect=">&-").returncode == 0


@pytest.mark.parametrize("raised", [None, SystemExit(0)], ids=["the end", "--help"])
def test_a_command_says_that_the_disk_behind_stdout_is_full(capsys, raised):
    @command
    def main(argv):
        print("x")
        if raised:
            raise raised

    with full_disk() as stdout:
        assert main() == 1
        assert stdout.failed                # nothing more is tried there
    assert capsys.readouterr().err == (
        "error: standard output: no space left on device; nothing was left half-written: mend that "
        "and repeat the same line\n")


def test_a_mistake_is_said_also_over_a_full_disk(capsys):
    @command
    def main(argv):
        print("x")
        raise UserError("a mistake")

    with full_disk() as stdout:
        assert main() == 1
        assert stdout.failed                # nothing more is tried there
    assert capsys.readouterr().err == "error: a mistake\n"


def test_drawing_heeds_no_notebook(tmp_path):
    """A notebook's MPLBACKEND names a module that the Python of a command may lack."""
    code = ("from pathlib import Path; from scripts.pictures import style; "
            f"style.save(style.sheet(1), Path({str(tmp_path / 'sheet.png')!r})); print('drawn')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          check=False, env={**os.environ, "MPLBACKEND": "module://nowhere.at_all"})
    assert (done.returncode, done.stdout) == (0, "drawn\n"), done.stderr


def in_the_way(folder: Path) -> dict[str, Path]:
    """Names that a picture must not take, by what is there."""
    there = {name: folder / f"{name}.png"
             for name in ("folder", "pipe", "circle", "device", "data")}
    there["folder"].mkdir()
    os.mkfifo(there["pipe"])
    there["circle"].symlink_to(there["circle"].name)
    there["device"].symlink_to("/dev/null")
    there["data"].write_bytes(b"\x93NUMPY, somebody's")
    return there


@pytest.mark.parametrize("what", ["folder", "pipe", "circle", "device", "data"])
@pytest.mark.parametrize(("main", "arguments"), [
    (inspect_poison.main, ["no-such-set"]), (figures.main, ["grid", "no-such-set"]),
    (toy.main, []), (bench.main, ["--smoke", "device=nowhere"])])
def test_what_is_no_picture_is_not_written_over(tmp_path, what, main, arguments):
    path = in_the_way(tmp_path)[what]
    before = os.lstat(path)
    option = "--json" if main is bench.main else "--out"
    outcome = run_command(main, *arguments, option, str(path))
    assert outcome.status == 1
    assert f"{path} is " in outcome.stderr
    assert "not written over" in outcome.stderr
    assert os.lstat(path).st_ino == before.st_ino
    assert Path("/dev/null").is_char_device()


def test_a_picture_is_replaced_and_a_link_followed(tmp_path):
    (tmp_path / "link.png").symlink_to("there.png")
    assert picture_path(tmp_path / "link.png") == tmp_path / "there.png"
    for picture in (b"\x89PNG, the first", b"\x89PNG, the next"):
        files.write_bytes(picture_path(tmp_path / "link.png"), picture)
    assert (tmp_path / "there.png").read_bytes() == b"\x89PNG, the next"
    assert (tmp_path / "link.png").is_symlink()


def test_only_the_style_imports_matplotlib():
    """So that no other import meets a notebook's backend."""
    importing = {str(path.relative_to(ROOT)) for room in ("core", "scripts", "poisons", "purifiers",
                                                          "learners", "models")
                 for path in (ROOT / room).rglob("*.py")
                 if "import matplotlib" in path.read_text("utf-8")
                 or "from matplotlib" in path.read_text("utf-8")}
    assert importing == {str(Path("scripts/pictures/style.py"))}


def test_ctrl_c_while_modules_are_imported_is_no_traceback():
    def importing(then: str) -> subprocess.CompletedProcess:
        # what a shell starts in its background ignores Ctrl-C, and so would what that starts
        heeding = "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        return subprocess.run([sys.executable, "-c", f"{heeding}; import core; {then}"], cwd=ROOT,
                              capture_output=True, text=True)

    done = importing("os.kill(os.getpid(), signal.SIGINT)")
    assert done.stderr == "interrupted\n"
    assert done.returncode == -signal.SIGINT            # 130 in a shell
    assert "AttributeError" in importing("core.nothing").stderr     # any other keeps its own
