"""Standard output and error of a command: no path and no full disk there ends in a traceback."""

import codecs
import io
import os
import sys
from pathlib import Path

from core import files


class Stdout(io.FileIO):
    """Standard output. A failed write names it, once: what is buffered then is dropped, or Python
    would try again at its end, and complain."""

    failed = False

    def write(self, data) -> int:
        if self.failed:
            return len(data)
        try:
            with files.named_errors(Path("standard output")):
                return super().write(data)
        except OSError:
            self.failed = True
            raise


class Stderr(io.FileIO):
    """Standard error. A message that nobody can read is no reason to stop the work."""

    def write(self, data) -> int:
        try:
            written = super().write(data)       # None: of a pipe that does not block, and is full
        except OSError:
            written = None
        return len(data) if written is None else written


def as_bytes_of_a_path(error: UnicodeEncodeError) -> tuple[bytes, int]:
    """For characters that an encoding lacks: their bytes in a file's name, which a script that
    reads the line can open."""
    text = error.object[error.start : error.end]
    try:
        return os.fsencode(text), error.end
    except UnicodeEncodeError:
        return text.encode("ascii", "backslashreplace"), error.end


def prepare() -> None:
    """Make this process's streams forgiving. Ones that are closed become /dev/null: else the next
    file that is opened would take their number, and what libraries print would go into it."""
    codecs.register_error("path", as_bytes_of_a_path)
    for name, raw, errors in (("stdout", Stdout, "path"), ("stderr", Stderr, "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            buffer = io.BufferedWriter(raw(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(
                buffer, encoding=stream.encoding, errors=errors,
                line_buffering=stream.line_buffering or stream.write_through))


def flush() -> None:
    """Raises OSError if what was printed cannot be written."""
    if sys.stdout is not None:
        sys.stdout.flush()
