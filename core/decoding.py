"""Folders of pictures decoded once, into an ImageSet on the disk: for sets larger than memory, and
for those that every command would decode anew.

A picture is damaged where its decoder says so: one that ends too early, or is no picture. Of JPEGs
damaged in their middle most are found (by Pillow, 57 of 60 with 4 KB of random bytes in them); in
one with zeros or a changed bit there, libjpeg makes up what it cannot read and merely warns, which
neither Pillow nor torchvision passes on.

It shows its progress and resumes like any work. Its rows are those of the listing that it began
with; of a folder that grows while it is read it makes nothing.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core import files, memory
from core.device import DeviceSettings
from core.distributed import World, note
from core.errors import UserError
from core.imageset import SLICE_ROWS, ImageSet, content_digest, rows_at_once
from core.job import Job
from core.pictures import Fit, read_square
from core.run import Run

VERSION = 1
NAMED_DAMAGED = 10      # damaged files that a note names; damaged.txt has all


@dataclass(frozen=True)
class Listing:
    """Pictures in the order of the rows that they become."""

    folder: Path                    # that the files lie below
    classes: list[str]
    files: list[Path]
    labels: np.ndarray              # int64 (N,)

    @property
    def names(self) -> list[str]:
        """The files, as seen from the folder."""
        return [os.path.relpath(file, self.folder) for file in self.files]

    def digest(self) -> str:
        """SHA-256 of names, sizes and labels. Raises UserError for a file that is missing."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for name, file, label in zip(self.names, self.files, self.labels, strict=True):
            try:
                size = file.stat().st_size
            except OSError:
                raise UserError(f"{file}: no such file, though it is one of the set's; restore "
                                "it") from None
            digest.update(f"{name} {size} {label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True)
class How:
    """What becomes of a picture: its side in pixels, how it gets it, and whether one that is
    damaged is left out (None: who asks has no such choice)."""

    size: int
    fit: Fit
    skip_damaged: bool | None = None

    @property
    def decides(self) -> dict:
        """What decides the pixels of a picture that is not damaged."""
        return {"size": self.size, "fit": self.fit}


def job_of(listing: Listing, how: How, name: str) -> Job:
    """What identifies a decoded set: the names and sizes of its files, and what becomes of them."""
    return Job("sets", f"{name}-{how.size}", "decode", VERSION, how.decides, 0,
               {"pictures": listing.digest()})


def decode(listing: Listing, how: How, job: Job, out: Path, *, name: str, root: dict,
           test: dict | None, again: Callable[[], Listing] | None = None, force: bool = False,
           option: str = "out=") -> None:
    """Make OUT, an ImageSet whose `meta` holds `decoded`: how, and the files that were left out.
    Beside it files.txt has the name of every row. `again` lists the files once more.

    Raises UserError if a picture is damaged and not to be skipped, if the disk is too small, and if
    the folder changes meanwhile.
    """
    settings = {"method": "decode", "folder": str(listing.folder), **how.decides}
    with Run(job, out=out, settings=settings, device=DeviceSettings(device="cpu"), force=force,
             wait=True, option=option,
             world=World()) as run:     # whoever comes first decodes; the others find it
        if run.done:
            return
        shape = (len(listing.files), how.size, how.size, 3)
        memory.require_disk(run.work / "images.npy", int(np.prod(shape, dtype=np.int64)),
                            f"{shape[0]:,} images of {how.size}x{how.size}")
        kept = write(listing, how, shape, run, again)
        if not len(kept):
            raise UserError(f"{listing.folder}: none of its {shape[0]} pictures can be read")
        images, labels = np.load(run.work / "images.npy", mmap_mode="r"), listing.labels[kept]
        digest = content_digest(images, labels, len(listing.classes))
        names, left_out = listing.names, np.setdiff1d(np.arange(shape[0]), kept)
        write_lines(run.work / "files.txt", [names[row] for row in kept])
        if len(left_out):
            write_lines(run.work / "damaged.txt", [names[row] for row in left_out])
            first = ", ".join(names[row] for row in left_out[:NAMED_DAMAGED])
            more = len(left_out) - NAMED_DAMAGED
            note(f"{listing.folder}: damaged and left out: {len(left_out)} of {shape[0]:,} pictures"
                 f": {first}" + (f" and {more} more (damaged.txt)" if more > 0 else ""))
        ImageSet(images, labels, {
            "name": name, "classes": listing.classes, "root": root, "root_digest": digest,
            "test": test, "lineage": [],
            "decoded": {**how.decides, "files": shape[0], "left_out": len(left_out)}}).save(run)
    run.stop_if_interrupted()                   # who wanted the set would go on


def write(listing: Listing, how: How, shape: tuple[int, ...], run: Run,
          again: Callable[[], Listing] | None) -> np.ndarray:
    """Decode into images.npy, by threads; the numbers of the listing's rows that are in it."""
    watch = Watch(listing, again, run)
    step = min(SLICE_ROWS, rows_at_once(shape[1:3]))
    with contextlib.closing(files.RowFile(run.work / "images.npy", shape, np.uint8)) as images, \
            contextlib.closing(files.RowFile(run.work / "state" / "damaged.npy", shape[:1],
                                             np.uint8)) as damaged, \
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as readers:

        def read(file: Path) -> np.ndarray | None:
            try:
                return read_square(file, how.size, how.fit)
            except UserError as error:
                if how.skip_damaged:
                    return None
                hint = "" if how.skip_damaged is None else ", or leave it out by --skip-damaged"
                raise UserError(f"{error}{hint}") from None

        for start, stop in run.sweep("images", shape[0], step, images, damaged):
            found = list(readers.map(read, listing.files[start:stop]))
            watch.look()
            bad = np.array([one is None for one in found])
            blank = np.zeros(shape[1:], np.uint8)
            images.write(start, np.stack([blank if one is None else one for one in found]))
            damaged.write(start, bad.astype(np.uint8))
        kept = np.flatnonzero(damaged.read(slice(0, shape[0])) == 0)
        if len(kept) < shape[0]:
            close_up(images, kept, step)
    return kept


def close_up(images: files.RowFile, kept: np.ndarray, step: int) -> None:
    """Move the rows that are kept to the file's beginning and cut it. Killed in the middle, the
    sweep finds rows that are not as they were written, and makes them again."""
    for start in range(0, len(kept), step):
        rows = kept[start : start + step].tolist()
        if rows[-1] >= start + len(rows):       # one before them is left out
            images.write(start, np.concatenate([images.read(slice(row, row + 1)) for row in rows]))
    images.shorten(len(kept))


class Watch:
    """Whether a folder still holds the pictures that were listed."""

    def __init__(self, listing: Listing, again: Callable[[], Listing] | None, run: Run) -> None:
        self.listing, self.again, self.run = listing, again, run
        self.folders = sorted({listing.folder, *(file.parent for file in listing.files)})
        self.times: list[int] | None = None

    def _times(self) -> list[int]:
        """When a name in each folder last came or went."""
        return [folder.stat().st_mtime_ns if folder.exists() else 0 for folder in self.folders]

    def look(self) -> None:
        """Raise UserError if pictures came or went."""
        if self.again is None or (now := self._times()) == self.times:
            return
        self.times, found = now, set(self.again().files)
        changed = sorted(found ^ set(self.listing.files))
        if changed:
            for state in self.run.work.glob("state/*"):     # rows of another listing
                files.unlink(state)
            verb = "came" if changed[0] in found else "went"
            raise UserError(f"{changed[0]} {verb} while the folder was read"
                            + (f", and {len(changed) - 1} more" if changed[1:] else "")
                            + "; repeat the line once nothing writes to it")


def write_lines(path: Path, lines: list[str]) -> None:
    """Names of files, one a line: a line feed in a name is written as \\n."""
    text = "".join(line.replace("\n", "\\n") + "\n" for line in lines)
    files.write_bytes(path, text.encode(errors="surrogateescape"))
