"""Workers of one runs/, on one host or several: each holds a lock below runs/workers for as long as
it lives, with what code it runs beside it. Workers of different code would make a table of two
minds, and ones whose locks the others do not see would make everything twice: both are refused.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from core import ROOT, commit, files, lock
from core.errors import UserError
from scripts.tables import wording

WORKERS = Path("runs/workers")
# What an artefact depends on: the commands, what they import, and the YAMLs that they read
CODE = ("*.py", "core/*.py", "models/*.py", "poisons/*.py", "purifiers/*.py", "learners/*.py",
        "poisons/*.csv", "learners/*.csv", "core/weights/*", "scripts/tables/*.py",
        "configs/poisons/*.yaml", "configs/purifiers/*.yaml", "configs/learners/*.yaml")
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)        # of flock(2)
# File systems whose locks other hosts never see
LOCAL_LOCKS = ("fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "vboxsf")


@contextlib.contextmanager
def enlisted() -> Iterator[Callable[[], None]]:
    """Inside, this process counts as a worker. Raises UserError if its locks would not be seen by
    others, and beside a worker of other code; what is yielded does if the code was changed since.
    """
    files.mkdir(WORKERS)
    if why := unseen(WORKERS):
        raise UserError(f"{WORKERS.parent} is on {why}, so that workers of several hosts would "
                        "make everything twice: mount it with locks, or use --jobs N on one host")
    digest, text = code(), version()
    folder = WORKERS / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        held = lock.take(folder)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(f"{error.filename}: {os.strerror(error.errno).lower()}: --worker needs a "
                        "file system with locks") from None
    try:
        if lock.holder(folder) is None:
            raise UserError(f"{WORKERS.parent} is on a file system that does not keep locks, which "
                            "--worker needs")
        remove_dead()
        # Written before the others are looked at: of two that begin at once, one sees the other.
        files.write_json(folder / "code.json", {"code_sha256": digest, "version": text})
        check_peers(digest, text)

        def unchanged() -> None:
            if code() != digest:
                raise UserError("the code or a method's YAML was changed since this worker began "
                                f"({text}; now {version()}): start it again when the others have "
                                "ended")

        yield unchanged
    finally:
        with contextlib.suppress(OSError):
            files.remove_tree(folder)
        os.close(held)


def remove_dead() -> None:
    """What killed workers left: each had its lock before it wrote code.json."""
    for folder in WORKERS.glob("*"):
        if (folder / "code.json").exists() and lock.holder(folder) is None:
            files.remove_tree(folder)


def check_peers(digest: str, text: str) -> None:
    """Raise UserError if a worker that lives runs other code than this, whose version is `text`."""
    for folder, who in alive().items():
        other = code_of(folder)
        if other and other["code_sha256"] != digest:
            raise UserError(f"this worker's code ({text}) is not that of {who} "
                            f"({other['version']}): bring both to one commit, or wait until that "
                            "worker ends")


def nothing() -> None:
    """What a runner that is no worker asks before each command."""


def alive() -> dict[Path, str]:
    """The folders of the workers of this runs/ that live, and who they are."""
    found = {folder: lock.holder(folder) for folder in sorted(WORKERS.glob("*"))}
    return {folder: who for folder, who in found.items() if who is not None}


def code_of(folder: Path) -> dict | None:
    """What a worker says of its code; None while it is being written."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = files.read_json(folder / "code.json")
        return {key: str(found[key]) for key in ("code_sha256", "version")}
    return None


def code() -> str:
    """SHA-256 over the code and the methods' YAMLs, as they are on the disk now."""
    digest = hashlib.sha256()
    for pattern in CODE:
        for path in sorted(ROOT.glob(pattern)):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(ROOT)} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def version() -> str:
    """Of this code, for people."""
    return wording.commit_text(commit.of_code())


def unseen(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str | None:
    """Of a file system whose locks other hosts do not see, what it is; None for any other, and
    where the system does not say (it is Linux that does)."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return None
    real, found = folder.resolve(), None
    for line in lines:                  # proc(5): ... place, options ... - type, source, options
        before, _, after = line.partition(" - ")
        place = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
        if real.is_relative_to(place) and (found is None or len(place) >= len(found[0])):
            kind, _, options = after.split(maxsplit=2)
            found = place, kind, options.split(",")
    if found is None:
        return None
    place, kind, options = found
    if kind in LOCAL_LOCKS:
        return f"{kind} ({place}), whose locks other hosts do not see"
    if kind in ("nfs", "nfs4") and {"nolock", "local_lock=flock", "local_lock=all"} & {*options}:
        return f"{kind} ({place}), mounted with locks of this host alone (nolock or local_lock)"
    if kind == "lustre" and "flock" not in options:
        return f"lustre ({place}), mounted without the option flock"
    if kind in ("cifs", "smb3") and "nobrl" in options:
        return f"{kind} ({place}), mounted with nobrl"
    return None
