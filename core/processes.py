"""Commands that another command starts: Ctrl-C reaches them through it, and they end with it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

STARTER = "UNLEARNABLE_STARTER"     # environment: the process that a command is to end with
PR_SET_PDEATHSIG = 1                # of linux/prctl.h


def start(words: Iterable[str], *, env: dict[str, str] | None = None, **options: Any
          ) -> subprocess.Popen:
    """`python WORDS` in a session of its own; the options are Popen's, `env` adds to ours."""
    return subprocess.Popen([sys.executable, *words], start_new_session=True,
                            env={**os.environ, **(env or {}), STARTER: str(os.getpid())}, **options)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM raise KeyboardInterrupt: also where a shell started us in the
    background, with SIGINT ignored."""
    before = {number: signal.signal(number, signal.default_int_handler)
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(processes: Iterable[subprocess.Popen]) -> None:
    """Ask each to end, and wait: a run saves its state first. Another Ctrl-C asks once more, and
    then it ends at once. SIGTERM, because a process that is still importing may ignore SIGINT."""
    processes = list(processes)
    for process in processes:
        process.terminate()
    for process in processes:
        while process.poll() is None:
            try:
                process.wait()
            except KeyboardInterrupt:
                for other in processes:
                    other.terminate()


def end_with_starter() -> None:
    """In a command that `start`, a script or torchrun started: have the kernel send SIGTERM, upon
    which a run saves its state, if that process dies, however it dies (Linux). Raises
    KeyboardInterrupt if it died already."""
    starter = os.environ.get(STARTER, "")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        starter = str(os.getppid())
    if not starter.isdecimal():
        return
    if os.getppid() == int(starter) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(starter) and not alive(int(starter)):
        raise KeyboardInterrupt


def alive(number: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
