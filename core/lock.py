"""A folder that one process works in at a time. Its file `lock` is also the sign that the folder is
ours: one without it is somebody's own, and nothing in it is touched.

The kernel drops the lock when its holder dies. The sign is on disk before anything else is made in
the folder, so that every folder that a power cut leaves behind is either empty or signed.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from core import files
from core.errors import UserError

NAME = "lock"
SIGN = b"A command of this repository works in this folder.\n"
HOLDER_BYTES = 400              # the line about the holder has one length: it is written in place
LOOKS = (0.001, 0.01, 0.0)      # seconds until the next try: `holder` has the lock for a moment
OLDER = ("run.json", "meta.json")       # without the sign: made before there was one


class Held(Exception):
    """Another process holds the lock; its text says which."""


def take(folder: Path) -> int:
    """Make `folder` or enter it, and lock it; returns the descriptor that holds the lock.

    Raises Held if another process has it, and UserError if the folder is not ours.
    """
    while True:
        files.mkdir(folder)
        path = folder / NAME
        try:
            check_ours(folder)
            with files.named_errors(path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:       # whoever held it renamed the folder just now
            continue
        try:
            if _locked(descriptor, path):
                _sign(descriptor, folder)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _locked(descriptor: int, path: Path) -> bool:
    """Lock it; False if the file is no longer the one of that name."""
    with files.named_errors(path):
        for wait in LOOKS:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(wait)
        else:
            raise Held(describe(os.pread(descriptor, HOLDER_BYTES, len(SIGN))))
        with contextlib.suppress(FileNotFoundError):
            return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    return False


def holder(folder: Path) -> str | None:
    """Who holds the lock of a folder right now; None if nobody does. Changes nothing."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return describe(os.pread(descriptor, HOLDER_BYTES, len(SIGN)))
    finally:
        os.close(descriptor)
    return None


def check_ours(folder: Path) -> None:
    """Raise UserError unless the folder is empty or was made here."""
    names, path = os.listdir(folder), folder / NAME
    if not names or any(name in names for name in OLDER):
        return
    if NAME in names and path.is_file():
        sign = path.read_bytes()[:len(SIGN)]
        # Its maker may have died in the middle of signing, before it made anything else.
        if sign == SIGN or (names == [NAME] and SIGN.startswith(sign.rstrip(b"\0"))):
            return
    elif NAME in names and not path.is_symlink():
        path.stat()             # FileNotFoundError, if it was renamed away meanwhile
    raise UserError(f"{folder} is in the way and was not made by this repository: move it away, or "
                    "choose another name")


def _sign(descriptor: int, folder: Path) -> None:
    holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname(),
                         "since": time.strftime("%Y-%m-%d %H:%M:%S")}).encode()
    line = holder.ljust(HOLDER_BYTES - 1)[:HOLDER_BYTES - 1] + b"\n"
    files.operation("write", folder / NAME)
    with files.named_errors(folder / NAME):
        files.put(descriptor, SIGN + line, 0)
    files.fsync(folder / NAME)
    files.fsync(folder)


def describe(line: bytes) -> str:
    """Who holds a lock, for people, from the line that it left."""
    try:
        holder = json.loads(line)
        pid, host, since = int(holder["pid"]), str(holder["host"]), str(holder["since"])
    except (ValueError, KeyError, TypeError):       # it has not written it yet
        return "another process"
    stopped = ""
    if host == socket.gethostname() and is_stopped(pid):
        stopped = f", which is stopped (kill -CONT {pid} lets it go on)"
    return f"another process ({pid} on {host}, since {since}){stopped}"


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine was stopped (Ctrl-Z, SIGSTOP), by Linux's /proc."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in "Tt"
