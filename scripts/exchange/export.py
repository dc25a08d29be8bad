"""Write an image set in a form that other people's code reads.

    python scripts/export.py SET --as png --out DIR         DIR/<index>.png and DIR/labels.csv
    python scripts/export.py SET --as npy --out FILE.npy    uint8 (N, H, W, 3), FILE_labels.npy
    python scripts/export.py SET --as npz --out FILE.npz    arrays `data` and `targets`, which
                                                            data=FILE.npz reads, too
    python scripts/export.py SET --as pt --out FILE.pt      poison less clean, float32 (N, 3, H, W)
                                                            in units of [0, 1], as EM's release

Each is whole or absent, and scripts/import_poison.py reads it back to the same images (a `.pt` of
large changes, such as OPS's and CUDA's, with --units noise).
"""

import argparse
import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from core import files, lock
from core.command import Parser, command
from core.config import as_path, expand
from core.errors import UserError
from core.imageset import ImageSet
from core.origins import clean_of

SUFFIX = {"npy": ".npy", "npz": ".npz", "pt": ".pt", "png": ""}


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/export.py", __doc__)
    parser.add_argument("set", type=expand, metavar="SET", help="an image set's folder")
    parser.add_argument("--as", dest="form", choices=tuple(SUFFIX), required=True)
    parser.add_argument("--out", type=as_path, required=True)
    parser.add_argument("--root", type=expand, default="data",
                        help="where torchvision's data sets are")
    arguments = parser.parse_args(argv)
    out, images = arguments.out, ImageSet.load(arguments.set)
    suffix = SUFFIX[arguments.form]
    if not out.name or (suffix and out.suffix != suffix):
        raise UserError(f"--out: '{out}' is no name for --as {arguments.form}"
                        + (f", which ends in '{suffix}'" if suffix else ""))
    export(images, out, arguments)
    print(out)


def export(images: ImageSet, out: Path, arguments: argparse.Namespace) -> None:
    """Write OUT whole. Of two that do so at once, the second is told."""
    labels, its_labels = out.with_name(f"{out.stem}_labels.npy"), None
    if arguments.form == "npy":
        its_labels = bytes_of(np.save, np.asarray(images.labels))
    with work_beside(out) as work:
        for path in (out, labels) if arguments.form == "npy" else (out,):
            if os.path.lexists(path) and not (
                    path == labels and path.is_file() and path.read_bytes() == its_labels):
                raise UserError(f"--out: {path} exists; remove it or choose another name")
        if arguments.form == "png":
            write_png(images, out, work)
        elif arguments.form == "npy":
            files.write_bytes(labels, its_labels)
            with renamed_to(out, work) as path:
                np.save(path, images.images)
        elif arguments.form == "npz":
            with renamed_to(out, work) as path:
                np.savez(path, data=images.images, targets=np.asarray(images.labels))
        else:
            clean = clean_of(images, arguments.root)
            with renamed_to(out, work) as path:
                torch.save(perturbation(images, clean, work / "delta.npy"), path)


@contextlib.contextmanager
def work_beside(out: Path) -> Iterator[Path]:
    """OUT.export, ours alone while it is there (.partial is an unfinished run's). Raises UserError
    if another process works in it, or if it is somebody's own."""
    work = out.with_name(out.name + ".export")
    files.mkdir(out.parent)
    try:
        descriptor = lock.take(work)
    except lock.Held as holder:
        raise UserError(f"--out: {holder} is writing {out} right now; wait for it, or choose "
                        "another name") from None
    try:
        yield work
    finally:
        with contextlib.suppress(OSError):
            files.remove_tree(work)
        os.close(descriptor)


@contextlib.contextmanager
def renamed_to(out: Path, work: Path) -> Iterator[Path]:
    """Where to write a file, which is renamed to OUT afterwards: it may be larger than memory."""
    path = work / out.name
    with files.named_errors(path):
        yield path
    files.fsync(path)
    files.rename(path, out)


def bytes_of(save, array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, array)
    return buffer.getvalue()


def write_png(images: ImageSet, out: Path, work: Path) -> None:
    from PIL import Image
    from tqdm import tqdm

    work = work / "png"
    files.remove_tree(work)             # of one that was killed
    files.mkdir(work)
    for row in tqdm(range(len(images)), desc="png", disable=None, leave=False):
        path = work / f"{row}.png"
        with files.named_errors(path):
            Image.fromarray(np.asarray(images.images[row])).save(path)
    lines = ["index,label", *(f"{row},{label}" for row, label in enumerate(images.labels))]
    files.write_bytes(work / "labels.csv", ("\n".join(lines) + "\n").encode())
    os.sync()
    files.rename(work, out)


def perturbation(images: ImageSet, clean: ImageSet, path: Path) -> torch.Tensor:
    """(poison - clean) / 255, float32 (N, 3, H, W), in a memory map at `path`."""
    height, width = images.image_shape
    delta = np.lib.format.open_memmap(path, "w+", np.float32, (len(images), 3, height, width))
    for rows in images.slices():
        part = images.images[rows].astype(np.float32) - clean.images[rows]
        delta[rows] = (part / 255).transpose(0, 3, 1, 2)
    return torch.from_numpy(delta)
