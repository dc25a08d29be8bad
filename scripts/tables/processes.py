"""Commands that another command starts: Ctrl-C reaches them through it, and they end with it
(`core.command.end_with_starter`)."""

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from core.command import STARTER


def start(words: Iterable[str], *, env: dict[str, str] | None = None, **options: Any
          ) -> subprocess.Popen:
    """`python WORDS` in a session of its own; the options are Popen's, `env` adds to ours."""
    return subprocess.Popen([sys.executable, *words], start_new_session=True,
                            env={**os.environ, **(env or {}), STARTER: str(os.getpid())}, **options)


class Forked:
    """A process that `fork` made, with what `stop` and others use of subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self, options: int = os.WNOHANG) -> int | None:
        """Its exit status, or minus the signal that killed it; None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self) -> int:
        return self.poll(0)

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def fork(main: Callable[[], int], words: Iterable[str], *, stderr: IO, env: dict[str, str],
         pass_fds: tuple[int, ...] = ()) -> Forked:
    """As `start`, but with what this process has imported: `main` is called in a copy of it, where
    `words` are what its line would be. For one thread alone, and before CUDA is begun."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    starter = os.getpid()
    if pid := os.fork():
        return Forked(pid)
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for source, target in ((nothing, 0), (nothing, 1), (stderr.fileno(), 2)):
            os.dup2(source, target)
        kept = sorted({2, *pass_fds})
        for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False)  # noqa: SIM115
                                  for number in (1, 2))
        sys.orig_argv = [sys.executable, *words]
        os.environ |= {**env, STARTER: str(starter)}
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)


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
