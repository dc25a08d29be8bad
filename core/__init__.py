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


INSTALLED_AS = {"yaml": "pyyaml", "sklearn": "scikit-learn"}


def in_one_sentence(kind, error, trace, otherwise=sys.excepthook) -> None:
    """What keeps modules from being imported, which is before core.command can explain it: Ctrl-C,
    and a package of requirements.txt that is not installed."""
    if issubclass(kind, KeyboardInterrupt):
        said = "interrupted"
    elif package := not_installed(error):
        said = (f"error: the Python package '{package}' is not installed for {sys.executable}: "
                "`bash scripts/setup.sh` installs what is needed, into .venv unless a virtual "
                "environment is active; then `source .venv/bin/activate`")
    else:
        otherwise(kind, error, trace)
        return
    with contextlib.suppress(OSError):
        print(said, file=sys.stderr)


def not_installed(error: BaseException) -> str:
    """The package of requirements.txt that an error is the lack of; '' if it is another."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    name = (error.name or "").partition(".")[0]
    package = INSTALLED_AS.get(name, name)
    needed = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return package if package in [line.partition(">=")[0] for line in needed] else ""


sys.excepthook = in_one_sentence
