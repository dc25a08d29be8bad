"""How much memory and disk there is, asked before work that would fill it."""

import contextlib
import resource
import shutil
from pathlib import Path

from core.errors import UserError

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")      # the groups that this process is in
NO_LIMIT = 1 << 62


def left() -> int:
    """Bytes of memory that this process can still take: of the machine, and of the limits that a
    container, a batch system (cgroups) or `ulimit -v` sets; NO_LIMIT where nothing is said."""
    found = [NO_LIMIT, *of_groups()]
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) << 10)
    with contextlib.suppress(OSError, ValueError):
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            found.append(max(limit - pages * resource.getpagesize(), 0))
    return min(found)


def of_groups() -> list[int]:
    """Of each control group that limits this process, and of those that these lie in: its limit
    less what it cannot give back."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in MEMBERSHIP.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds == "":                             # version 2
                top, limit, usage = GROUPS, "memory.max", "memory.current"
            elif "memory" in kinds.split(","):
                top, limit, usage = GROUPS / "memory", "memory.limit_in_bytes", \
                    "memory.usage_in_bytes"
            else:
                continue
            # A batch system limits a job, and puts processes into groups of it without a limit; a
            # container sees its own group at the top, though its path names where the host has it.
            folder = top / path.lstrip("/")
            for group in (folder, *folder.parents[: len(folder.parts) - len(top.parts)]):
                with contextlib.suppress(OSError, ValueError):
                    found.append(left_in(group, limit, usage))
    return found


def left_in(group: Path, limit: str, usage: str) -> int:
    """Bytes that the processes of one control group can still take. Raises OSError or ValueError if
    it has no limit."""
    most = int((group / limit).read_text())             # "max" is no number
    pages = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    # of files, which can be given back; version 1 has those of the groups below apart, as total_
    files = sum(int(pages.get(f"total_{kind}", pages.get(kind, 0)))
                for kind in ("inactive_file", "active_file"))
    return max(most - int((group / usage).read_text()) + files, 0)


def require_disk(file: Path, size: int, what: str) -> None:
    """Raise UserError unless a file of so many bytes, a part of which may be there, fits on its
    disk. `what` is its content, for people."""
    folder = next(place for place in file.absolute().parents if place.exists())
    held = file.stat().st_blocks * 512 if file.exists() else 0
    free = shutil.disk_usage(folder).free
    if size - held > free:
        raise UserError(f"{file}: {what} are {in_words(size)}, and its disk has "
                        f"{in_words(free)} left; make room or name another folder")


def require_memory(size: int, what: str, remedy: str) -> None:
    """Raise UserError unless so many bytes are left. `what` they are and `remedy` are for people.
    """
    if size > left():
        raise UserError(f"{what} are {in_words(size)}, and {in_words(left())} of memory are left; "
                        f"{remedy}")


def in_words(size: int) -> str:
    """Bytes for people: '19.6 GB'."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
