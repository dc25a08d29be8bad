"""Data sets of photographs by name. They are decoded once, into data/decoded/, and memory-mapped.

    pets            Oxford-IIIT Pet as torchvision has it: 3,680 images for training, 3,669 for
                    testing, 37 breeds. The shorter side is resized to 8/7 of `size` (256 for 224)
                    and the centre cropped, as Unlearnable Clusters' code does.
    imagenet100     ILSVRC-2012's classes that `classes` names, or the first 100 synset ids in
                    sorted order, which D-VAE's release takes (code yuyi-sd/D-VAE, dataset.py): at
                    most 130,000 images and 5,000. This is not the random "ImageNet-100" of CMC,
                    and no number of one is one of the other. Training images are squashed to
                    `size`, as before D-VAE adds a perturbation; test images have their shorter side
                    resized to 8/7 of it, and the centre cropped. `class_fraction=0.2` reads the
                    first fifth of every class, as the release's loader of a part does.

`root` of imagenet100 is the folder that holds train/ and val/, each with a folder a class.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core import outlines, pictures
from core.artefact import read_meta
from core.decoding import How, Listing, decode, job_of
from core.errors import UserError
from core.imageset import ImageSet

SETS = ("pets", "imagenet100")
SIZE = 224                              # unless `size` says another
DECODED = Path("data", "decoded")
CLASSES = 100
FIRST, LAST = "n01440764", "n01855672"  # tench and goose: of the first 100 synset ids


def pets(found: Any) -> Listing:
    """The pictures of torchvision's OxfordIIITPet."""
    files = [Path(file) for file in found._images]
    return Listing(Path(found.root), list(found.classes), files, np.array(found._labels, np.int64))


def imagenet100(split: str, root: Path, classes: tuple[str, ...], fraction: float,
                notes: bool = True) -> Listing:
    """The pictures of ILSVRC-2012's train/ or val/; with `notes`, what is left out is said. Raises
    UserError if they are not there, or if the first hundred classes are not ILSVRC's."""
    top = root / ("val" if split == "test" else "train")
    if not top.is_dir():
        raise UserError(f"imagenet100: {top}: no such folder; root= names the folder that holds "
                        "ILSVRC-2012's train/ and val/")
    if len(set(classes)) < len(classes):
        raise UserError("classes: a class is named twice")
    names, files, labels = pictures.list_classes(top, sorted(classes) or first_hundred(top),
                                                 notes=notes)
    if split == "train" and fraction < 1:
        kept = np.concatenate([rows[: max(1, int(len(rows) * fraction))] for rows in (
            np.flatnonzero(labels == label) for label in range(len(names)))])
        files, labels = [files[row] for row in kept], labels[kept]
    return Listing(top, names, files, labels)


def first_hundred(top: Path) -> list[str]:
    """The first hundred classes of a folder, if they are ILSVRC-2012's."""
    found = sorted(pictures.class_folders(top))[:CLASSES]
    if len(found) < CLASSES or (found[0], found[-1]) != (FIRST, LAST):
        raise UserError(f"imagenet100: the first classes of {top} are {found[0]} to {found[-1]}, "
                        f"{len(found)} of them, and ILSVRC-2012's first {CLASSES} are {FIRST} to "
                        f"{LAST}: put all of it there, or name others with classes=")
    return found


def load(source: str, split: str, listing: Listing, size: int, *, root: dict, test: dict,
         again: Callable[[], Listing] | None = None) -> ImageSet:
    """The decoded set, made now if it is not there yet; `again` lists its files once more. For a
    plan, which must not take so long, its outline."""
    squash = source == "imagenet100" and split == "train"
    how = How(size, "squash" if squash else "centre")
    job = job_of(listing, how, f"{source}-{split}")
    out = DECODED / f"{job.name}-{job.fingerprint[:8]}"
    if not (out / "meta.json").exists():
        if outlines.are_allowed():
            return outlines.black(source, listing.labels, listing.classes, size, root, test)
        decode(listing, how, job, out, name=source, root=root, test=test, again=again)
    digest = read_meta(out, "imageset")["root_digest"]
    stored = ImageSet.load(out)
    return ImageSet(stored.images, stored.labels, {
        "fingerprint": digest, "name": source, "classes": listing.classes, "root": root,
        "root_digest": digest, "test": test, "lineage": []})
