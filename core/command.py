"""What every command shares: its errors and its exit status.

0 the artefact is on disk and verified, 1 a mistake explained in one sentence, 2 usage, 130
interrupted (the same line resumes).
"""

import argparse
import contextlib
import contextvars
import ctypes
import errno
import functools
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from core import distributed, output
from core.errors import UserError, is_out_of_memory
from core.names import printable

STARTER = "UNLEARNABLE_STARTER"     # environment: the process that a command is to end with
PR_SET_PDEATHSIG = 1                # of linux/prctl.h
# What no disk and no user causes: a mistake in the code, and its traceback is wanted.
UNEXPLAINED = (None, errno.EBADF, errno.EFAULT, errno.ECHILD, errno.ESRCH)


def command(main: Callable[[list[str] | None], None]) -> Callable[[list[str] | None], int]:
    """Turn a main that raises into one that explains and returns an exit status."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        output.prepare()
        try:
            end_with_starter()
            leads = distributed.world().leads           # rank 0 prints the artefact's path
            with contextlib.nullcontext() if leads else contextlib.redirect_stdout(None):
                try:
                    contextvars.copy_context().run(main, argv)
                except SystemExit:                      # --help
                    output.flush()
                    raise
            output.flush()
        except UserError as error:
            return fail(str(error))
        except KeyboardInterrupt:
            print(f"interrupted; the same line resumes:\n  {this_line()}", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return 1
        except OSError as error:
            if error.errno in UNEXPLAINED:
                raise
            return fail(f"{error.filename or 'a file'}: {(error.strerror or '').lower()}; nothing "
                        "was left half-written: mend that and repeat the same line")
        except MemoryError as error:
            return fail("out of memory: lower the batch size, or take fewer rows"
                        + f" ({error})" * bool(str(error)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return fail("out of memory: lower the batch size or the width "
                        f"({str(error).splitlines()[0]})")
        return 0

    return wrapped


class Parser(argparse.ArgumentParser):
    """Of a command line of ours; the description is a module's docstring, as it stands there."""

    def __init__(self, prog: str, description: str | None = None, **options):
        super().__init__(prog, description=description, **options)
        self.formatter_class = argparse.RawDescriptionHelpFormatter

    def error(self, message: str) -> NoReturn:
        """End with status 2; a key that was typed as an option is said to be none."""
        option = re.search(r"unrecognized arguments: .*?--([A-Za-z_][\w.]*)", message)
        super().error(message + (f"; if it is a key, write {option[1]}=VALUE" if option else ""))


def positive(text: str) -> int:
    """An option's value: a whole number, at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def this_line() -> str:
    """The command line as typed, for 'the same line resumes'."""
    words = list(sys.orig_argv)
    words[0] = Path(words[0]).name
    return shlex.join(words)


def fail(message: str) -> int:
    """Say what went wrong; of several processes, which one it went wrong in."""
    rank = distributed.rank()
    where = f" (process {rank})" if rank else ""
    with contextlib.suppress(OSError):
        output.flush()                  # now, where a full disk behind it hides nothing
    print(f"error{where}: {printable(message)}", file=sys.stderr)
    return 1


def end_with_starter() -> None:
    """In a command that a script, another command or torchrun started: have the kernel send
    SIGTERM, upon which a run saves its state, if that process dies, however it dies (Linux). Raises
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
