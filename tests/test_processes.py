"""scripts/tables/processes.py: no command outlives the one that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, process, until

from core import command
from scripts.tables import processes

# A command: it says that it is ready, works for a minute, and saves when it is asked to end.
CHILD = """
import signal, sys, time
from pathlib import Path
from core.command import end_with_starter

def save(number, frame):
    Path("saved").touch()
    sys.exit(130)

signal.signal(signal.SIGTERM, save)
end_with_starter()
Path("ready").touch()
time.sleep(60)
"""
PARENT = """
import sys
from pathlib import Path
from scripts.tables import processes
with processes.interruptible():
    child = processes.start(["-c", sys.argv[1]])
    Path("child").write_text(str(child.pid))
    try:
        child.wait()
    except BaseException:
        processes.stop([child])
        raise
"""


def ended(number: int) -> bool:
    """Whether a process that is not ours to wait for is gone, or only waits to be collected."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_child_ends_with_its_parent(number):
    """kill -9 leaves the parent no word: the kernel passes it on."""
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a child")
    Path("parent.py").write_text(PARENT)
    parent = process("parent.py", CHILD)
    until(Path("ready").exists)
    child = int(Path("child").read_text())
    parent.send_signal(number)
    parent.communicate(timeout=60)
    assert parent.returncode != 0
    until(lambda: ended(child), seconds=30)
    assert Path("saved").exists()


def test_a_child_whose_parent_died_while_it_was_importing(monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    monkeypatch.setenv(command.STARTER, str(gone.pid))
    with pytest.raises(KeyboardInterrupt):
        command.end_with_starter()


@pytest.mark.parametrize("starter", ["", "me", "this process", "1"])
def test_others_are_nobodys_children(monkeypatch, starter):
    """No starter, or one that lives and is not our parent (a grandparent's word, inherited)."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    starter = str(os.getpid()) if starter == "this process" else starter
    monkeypatch.setenv(command.STARTER, starter)
    command.end_with_starter()


def test_a_second_interrupt_asks_again(monkeypatch):
    asked = []

    class Process:
        done = None

        def terminate(self):
            asked.append("end")

        def poll(self):
            return self.done

        def wait(self):
            if len(asked) == 1:
                raise KeyboardInterrupt
            self.done = 130

    processes.stop([Process()])
    assert asked == ["end", "end"]


def test_scripts_end_what_they_start():
    """scripts/setup.sh names the shell: `kill` of a script ends the command that it waits for."""
    Path("child.py").write_text(CHILD)
    Path("script.sh").write_text(f"source {ROOT}/scripts/setup.sh\npython child.py\ntouch after\n")
    shell = subprocess.Popen(
        ["bash", "script.sh"], stderr=subprocess.DEVNULL,
        env={**os.environ, "VIRTUAL_ENV": sys.prefix, "INSTALL": "no", "PYTHONPATH": str(ROOT),
             "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    until(Path("ready").exists)
    shell.send_signal(signal.SIGTERM)
    shell.wait(timeout=60)
    until(Path("saved").exists)
    assert not Path("after").exists()


# --- fork ------------------------------------------------------------------------------------


@pytest.fixture
def forked(tmp_path):
    """A function in a forked process, with what is open besides; its status and what it said."""
    def run(main, **options):
        with open("log", "w") as log:
            child = processes.fork(main, ["purify.py", "x"], stderr=log, env={"GIVEN": "yes"},
                                   **options)
        return child, child.wait(), Path("log").read_text()

    return run


def test_a_fork_is_a_command_of_its_own(forked):
    kept, closed = (os.open("held", os.O_RDWR | os.O_CREAT) for _ in range(2))

    def main() -> int:
        print("to nowhere")
        print(os.environ["GIVEN"], sys.orig_argv[1:], os.getsid(0) == os.getpid(), file=sys.stderr)
        os.fstat(kept)                                  # a claim, which ends with the process
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(closed)
        return 7

    child, status, said = forked(main, pass_fds=(kept,))
    assert (status, child.poll(), said) == (7, 7, "yes ['purify.py', 'x'] True\n")
    assert os.environ.get("GIVEN") is None


@pytest.mark.parametrize(("end", "status", "said"), [
    (lambda: sys.exit(2), 2, ""), (lambda: 1 / 0, 1, "ZeroDivisionError"),
    (lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL, "")])
def test_how_a_fork_ended(forked, end, status, said):
    _, found, log = forked(end)
    assert found == status
    assert said in log


def test_a_fork_is_asked_to_end(tmp_path):
    with open("log", "w") as log:
        child = processes.fork(lambda: time.sleep(60), [], stderr=log, env={})
    assert child.poll() is None
    processes.stop([child])
    assert child.returncode == -signal.SIGTERM
    child.terminate()                                   # it is gone: nobody else is asked
