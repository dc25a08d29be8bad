"""`list.py runs`: the work on a disk with what needs it; and removing what nothing does."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from core import ROOT, files, lock, records
from core.artefact import partial_of
from core.errors import UserError
from core.imageset import title
from core.names import printable
from core.workfolder import UNHASHED
from scripts.finding.disk import Disk, Work, scan, work_at
from scripts.tables import noted, wording
from scripts.tables.estimates import about

WORDS = {"imageset": "set", "checkpoint": "checkpoint"}


def show(folder: Path, *, clean: bool = False, yes: bool = False) -> None:
    """Print what is there, and with `clean` remove what nothing needs, unless the answer is no."""
    disk = scan(folder)
    if clean:
        check_known(disk)
    unused = removable(disk)
    for work in unused if clean else disk.works:
        kept = why_kept(disk, work) or "nothing needs it"
        print(printable(f"{in_units(work.size):>8}  {date_of(work.path)}  {work.path}: "
                        f"{described(work)}; {kept}"))
    for line in summary(disk, unused):
        print(printable(line))
    if clean and unused:
        remove(disk, unused, yes)


# --- what is kept ----------------------------------------------------------------------------


def removable(disk: Disk) -> list[Work]:
    """What nothing needs, is nobody else's and holds nothing else; what was made of another before
    that."""
    found = [work for work in disk.works if not why_kept(disk, work)]
    return sorted(found, key=lambda work: (-len(disk.needs_of(work)), str(work.path)))


def why_kept(disk: Disk, work: Work) -> str:
    """Why --clean leaves a work; '' if it does not."""
    if not work.path.is_dir():
        return "gone since"
    if work.damage:
        return work.damage
    if work.kind == "record":
        return "a result"
    if not work.finished:
        if (who := holder(work.path)) is not None:
            return f"being made by {who}"
        if not work.barely_begun and not disk.left_over(work):
            return "its line resumes it"
    if work in disk.needed:
        users = disk.users[work]
        begun = [user for user in users if not user.finished]
        if begun:
            return f"needed by {begun[0].path}"
        if work in disk.needed_by_unfinished:
            return "needed by a table that was begun"
        return (f"behind {len(users)} finished artefact{'s' * (len(users) > 1)}" if users
                else "behind a record in results/")
    return why_not_ours(work)


def why_not_ours(work: Work) -> str:
    """What is in a folder beside the work itself, or whose it is, if it is not ours to remove."""
    if os.getuid() not in (0, work.path.stat().st_uid):
        return "another user's"
    beside = partial_of(work.path)
    if work.finished and os.path.lexists(beside):
        return f"{beside.name} is beside it"
    known = {*UNHASHED, *work.meta.get("digests", {})}
    strange = sorted(set(os.listdir(work.path)) - known) if work.finished else []
    return f"{strange[0]} is not of it" if strange else ""


def holder(path: Path) -> str | None:
    """Who holds a lock; also where we may not look."""
    try:
        return lock.holder(path)
    except PermissionError:
        return "another user"


# --- saying ----------------------------------------------------------------------------------


def described(work: Work) -> str:
    """'set, cifar10 > em > jpeg, made in 40 s'."""
    if not work.finished:
        return "damaged" if work.damage else "unfinished"
    meta, seconds = work.meta, None
    if work.kind == "record":
        return (f"record, {records.lineage_text(meta)}, {wording.protocol_text(meta)}: "
                f"{100 * meta['accuracy_last']:.1f} %")
    steps = meta.get("lineage") or []
    text = " > ".join([meta.get("name") or meta["trained_on"]["name"], *map(title, steps)])
    if work.kind == "checkpoint":
        seconds = meta["trained_on"].get("seconds")
    elif steps:
        seconds = steps[-1].get("seconds")
    return f"{WORDS[work.kind]}, {text}" + (f", made in {about(seconds)}"
                                            if seconds and seconds >= 1 else "")


def summary(disk: Disk, unused: list[Work]) -> Iterator[str]:
    """What all of it takes, which tables are unfinished, and what could go."""
    idle = [work for work in disk.needed - disk.needed_by_unfinished if work.kind != "record"]
    yield (f"{disk.folder}: {len(disk.works)} artefacts, {total_size(disk.works)}; logs and the "
           f"like {in_units(disk.tables_bytes)}")
    for table in disk.unfinished_tables:
        yield (f"begun, with records to make: {table.line}; its sets are kept (removing "
               f"{table.path} forgets it)")
    if disk.strange_files:
        yield (f"{len(disk.strange_files)} files and links that no command here made, such as "
               f"{disk.strange_files[0]}: left alone")
    if idle:
        yield (f"{len(idle)} sets and checkpoints ({total_size(idle)}) stand behind finished "
               "records alone: pictures and distances read them; the same lines make them again")
    yield (f"nothing needs {len(unused)} of them ({total_size(unused)})"
           + ("; --clean removes these" if unused else ""))


def total_size(works: Iterable[Work]) -> str:
    return in_units(sum(work.size for work in works))


def in_units(number: int) -> str:
    """'1.2 GB', in powers of 1000 as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.{0 if unit == 'B' else 1}f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def date_of(path: Path) -> str:
    with contextlib.suppress(OSError):
        return time.strftime("%Y-%m-%d", time.localtime(path.stat().st_mtime))
    return "-"


# --- removing --------------------------------------------------------------------------------


def check_known(disk: Disk) -> None:
    """Raise UserError for a folder that is not one of work."""
    folder, real = disk.folder, disk.folder.resolve()
    if folder.is_symlink():
        raise UserError(f"{folder} is a link to {real}: others may work there; name that folder "
                        "itself if it is yours to clean")
    if any(place.is_relative_to(real) for place in (ROOT, Path.cwd())) or \
            real.is_relative_to((Path.cwd() / records.COMMITTED).resolve()):
        raise UserError(f"{folder} is no folder of work alone; name one such as runs")
    if not disk.works and not (folder / noted.PLANS.name).is_dir():
        raise UserError(f"{folder} holds nothing that these commands made; name a folder such as "
                        "runs")


def remove(disk: Disk, asked: list[Work], yes: bool) -> None:
    """Remove what nothing needs, after asking, and only what nothing needs then either."""
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("--clean asks before it removes anything; add --yes where nobody can "
                            "answer")
        print(f"remove these {len(asked)} ({total_size(asked)})? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return
        still = {(work.path, work.fingerprint) for work in removable(scan(disk.folder))}
        asked = [work for work in asked if (work.path, work.fingerprint) in still]
    for work in asked:
        gone = remove_one(work)
        print(printable(f"removed {work.path}" if gone else f"left {work.path}: it is in use"))


def remove_one(work: Work) -> bool:
    """Remove a work under its lock; False if another process has that, or made something else of it
    meanwhile. A finished one is first moved into its OUT.partial, so that OUT is there whole or not
    at all, and what a death leaves is nobody's work."""
    partial = partial_of(work.path) if work.finished else work.path
    try:
        held = lock.take(partial)
    except (lock.Held, UserError):
        return False
    try:
        now, alone = work_at(work.path, work.path.parent), os.listdir(partial) == [lock.NAME]
        same = now is not None and now.fingerprint == work.fingerprint
        if not (alone if work.finished else same):
            return False
        if work.finished and same:
            files.rename(work.path, partial / work.path.name)
        files.remove_tree(partial)
        return same
    finally:
        os.close(held)
