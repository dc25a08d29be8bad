"""What every attack, purifier and learner shares: one idea a file."""

import contextlib
import sys
from pathlib import Path

if sys.version_info < (3, 11):      # noqa: UP036 - for whoever starts it with an older one
    sys.exit("error: Python 3.11 or later is needed, and this is " + sys.version.split()[0])
try:
    import fcntl  # noqa: F401 - locks, without which two runs would mix
except ImportError:
    sys.exit("error: Linux and macOS are supported, and this system has no file locks (fcntl); on "
             "Windows, use the Windows Subsystem for Linux (WSL)")

ROOT = Path(__file__).resolve().parent.parent       # the folder of the code


def quiet_if_interrupted(kind, error, trace, otherwise=sys.excepthook) -> None:
    """Of Ctrl-C while modules are still being imported, before core.command can explain it, no
    traceback."""
    if issubclass(kind, KeyboardInterrupt):
        with contextlib.suppress(OSError):
            print("interrupted", file=sys.stderr)
    else:
        otherwise(kind, error, trace)


sys.excepthook = quiet_if_interrupted
