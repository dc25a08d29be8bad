"""Clean data sets as ImageSets: torchvision's, embedded digits, folders, `.npz` files, ImageSets.

    cifar10, cifar100, svhn     torchvision, downloaded into `root`
    pets                        Oxford-IIIT Pet, 37 breeds, the same way; `size`, by default 224
    imagenet100                 100 classes of ILSVRC-2012, whose train/ and val/ lie in `root`
                                (`core.large`); `size`, by default 224, `classes`, `class_fraction`
    digits                      scikit-learn's 1,797 handwritten digits, no download; size 16 or 32
    photos                      520 tiles of scikit-learn's two photographs, no download: another
                                distribution for a small diffusion model; size 16 or 32
    photographs                 crops of eight photographs of scikit-image and scikit-learn, a class
                                each, no download (`core.embedded`); size 64 or 224
    folder:PATH                 one folder of images per class, resized to `size` (`core.pictures`)
    FILE.npz                    arrays `images` uint8 (N, H, W, 3) and `labels`; also called `data`
                                and `targets`, as scripts/export.py writes them
    PATH                        an ImageSet folder

Of each, `split` takes rows (`core.splits`). Folders, .npz files and ImageSets have no test set of
their own: `test=` names one. The images behind a set that was made are found by `core.origins`.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core import config, large, memory, outlines, pictures, reading
from core.artefact import partial_of, read_meta, unfinished
from core.config import Place
from core.distributed import note
from core.embedded import digits, photographs, photos
from core.errors import UserError
from core.imageset import ImageSet, check_arrays, content_digest, from_arrays
from core.names import name_at
from core.ranges import Count, Keys, Share
from core.remembered import NAMED, place
from core.splits import split_of

TORCHVISION = {
    "cifar10": ("CIFAR10", "the folder cifar-10-batches-py or cifar-10-python.tar.gz"),
    "cifar100": ("CIFAR100", "the folder cifar-100-python or cifar-100-python.tar.gz"),
    "svhn": ("SVHN", "train_32x32.mat and test_32x32.mat"),
    "pets": ("OxfordIIITPet", "the folder oxford-iiit-pet with images/ and annotations/"),
}
EMBEDDED = {"digits": digits, "photos": photos, "photographs": photographs}
USUAL_SIZES = {"digits": 16, "photos": 16, "photographs": 64,
               **dict.fromkeys(large.SETS, large.SIZE)}
MOST_CLASSES = 100_000          # in an .npz, whose labels say how many there are


@dataclass(frozen=True)
class DataSettings(Keys):
    """Which images: keys at the top level of every command's YAML."""

    # what to read: a data set's name, folder:PATH, an .npz, or a folder made here
    data: Place | None = None
    # train, test, protected, reference, first:N, after:N, last:N, spread:N or rows:CODE
    split: str = "train"
    size: Count | None = None           # side in pixels: embedded sets, folders, pets, imagenet100
    test: Place | None = None           # a test set, where `data` has none of its own
    root: Place = "data"                # where torchvision looks and downloads to
    # imagenet100: its synset ids; none: the first 100 in sorted order, as D-VAE's release
    classes: tuple[str, ...] = ()
    # imagenet100: share of every class's training images that is read, its first files
    class_fraction: Share = 1.0
    like: str | None = None             # whose values of a YAML (`for:`) images from elsewhere take


def root_of(data: str | None) -> str | None:
    """The named data set that images come from, through what was made of it; None for others."""
    if data in NAMED:
        return data
    try:
        root = read_meta(config.as_path(data or ""), "imageset")["root"].get("data")
    except UserError:                   # no set of ours: loading it says what is wrong
        return None
    return root if root in NAMED else None


def load(settings: DataSettings, key: str = "data", digest: str | None = None) -> ImageSet:
    """The ImageSet that the settings name. Raises UserError that says what is missing where, and
    blames `key`, if it is not empty, for a name or path of nothing; with a `digest` also if the
    whole set, before its split is taken, is another one."""
    if not settings.data:
        raise UserError("no data: write data=cifar10, data=digits, or data=PATH of an ImageSet")
    source, split = settings.data, settings.split
    if split == "test" and settings.test and source not in NAMED:
        spec = test_spec(settings.test, settings.size)
        return load(DataSettings(**spec, root=settings.root), "test")
    base = "test" if split == "test" else "train"
    if source != "imagenet100" and (settings.classes or settings.class_fraction < 1):
        raise UserError(f"classes, class_fraction: {source} takes none; they are imagenet100's")
    if (whole := outlines.outline(source, base, settings.root, digest, settings.size)) is not None:
        if source not in large.SETS:
            reject_size(settings)
    elif source in NAMED:
        whole = load_named(source, base, settings)
    else:
        check_there(source, key)
        whole = load_path(source, settings)
    whole = with_test(whole, settings)
    if split == "test" and source not in NAMED:
        raise UserError(f"split: {source} has no test split; name the test set with test=")
    if digest is not None and digest != digest_of(whole):
        raise UserError(f"{source} holds other images or labels than it did when the set was made")
    return split_of(whole, split)


def check_there(source: str, key: str) -> None:
    """Raise UserError that blames `key`, if there is one, for no path at which something is."""
    path = Path(source.removeprefix("folder:"))
    kind = "file" if source.lower().endswith(".npz") else "folder"
    blame = f"{key}: " if key else ""
    if path.exists():
        return
    if kind == "file" or ":" in source or "/" in source or partial_of(path).exists():
        raise UserError(f"{blame}{path}: no such {kind}{unfinished(path)}")
    raise UserError(f"{blame}'{source}' is neither a path nor a known data set" + config.suggest(
        source, [*NAMED, "folder:PATH", "FILE.npz"], "known data sets"))


def load_path(source: str, settings: DataSettings) -> ImageSet:
    """What lies at folder:PATH, FILE.npz or PATH, an ImageSet."""
    if source.startswith("folder:"):
        return load_folder(Path(source.removeprefix("folder:")), settings)
    if source.lower().endswith(".npz"):
        return load_npz(Path(source), settings)
    reject_size(settings)
    return ImageSet.load(source)


def with_test(whole: ImageSet, settings: DataSettings) -> ImageSet:
    """With the test set that was typed, if one was, which wins over what the set remembers."""
    if not settings.test:
        return whole
    meta = {key: value for key, value in whole.meta.items() if key != "test_digest"}
    meta["test"] = test_spec(settings.test, whole.image_shape[0])
    return dataclasses.replace(whole, meta=meta)


def digest_of(whole: ImageSet) -> str:
    """Of the content of a set of which no part was taken: the fingerprint, if it is from outside
    (`from_arrays` just read it all); an artefact's is its job's."""
    if not whole.digests:
        return whole.fingerprint
    if "decoded" in whole.meta and not whole.meta["lineage"]:
        return whole.meta["root_digest"]        # taken when it was decoded
    return content_digest(whole.images, whole.labels, whole.num_classes)


def note_missing_classes(images: ImageSet, source: str | None, hint: bool = False) -> None:
    """Say which classes a training set lacks: accuracy on a test set that has them is then low as
    if it were poisoned. `hint`: the rows are the first ones of more."""
    there = np.bincount(images.labels, minlength=images.num_classes) > 0
    if there.all():
        return
    lacking = [str(images.meta["classes"][label]) for label in np.flatnonzero(~there)]
    shown = ", ".join(lacking[:10]) + (f" and {len(lacking) - 10} more" if lacking[10:] else "")
    remedy = f"; split=spread:{len(images)} takes rows evenly" if hint else ""
    note(f"the {len(images)} rows of {source} hold {there.sum()} of {images.num_classes} classes, "
         f"and a model trained on them cannot know {shown}{remedy}")


def describe(images: ImageSet) -> str:
    """Size and classes, for people."""
    height, width = images.image_shape
    return f"{height}x{width} images of {images.num_classes} classes"


# --- sources ---------------------------------------------------------------------------------


def load_named(source: str, split: str, settings: DataSettings) -> ImageSet:
    """The train or test split of one of NAMED."""
    if source in EMBEDDED:
        size = USUAL_SIZES[source] if settings.size is None else settings.size
        images, labels, classes = EMBEDDED[source](split, size)
        spec = {"data": source, "size": size}
    elif source in large.SETS:
        return load_large(source, split, settings)
    else:
        reject_size(settings)
        images, labels, classes = from_torchvision(source, split, Path(settings.root))
        spec = {"data": source}
    return from_arrays(images, labels, name=source, classes=classes,
                       root={**spec, "split": split}, test={**spec, "split": "test"})


def load_large(source: str, split: str, settings: DataSettings) -> ImageSet:
    """One of `core.large`'s, from where it was decoded to."""
    size, root, again = settings.size or USUAL_SIZES[source], Path(settings.root), None
    spec = {"data": source, "size": size}
    if source == "pets":
        which = "test" if split == "test" else "trainval"
        listing = large.pets(by_torchvision("pets", root, split=which))
    else:
        find = functools.partial(large.imagenet100, split, root, settings.classes,
                                 settings.class_fraction)
        listing, again = find(), functools.partial(find, notes=False)
        if settings.classes:
            spec["classes"] = sorted(settings.classes)
        if settings.class_fraction < 1:
            spec["class_fraction"] = settings.class_fraction
    return large.load(source, split, listing, size, root={**spec, "split": split},
                      test={**spec, "split": "test"}, again=again)


def from_torchvision(source: str, split: str, root: Path):
    """(images, labels, class names). Raises UserError if the set is neither there nor downloads."""
    which = {"split": split} if source == "svhn" else {"train": split == "train"}
    found = by_torchvision(source, root, **which)
    if source == "svhn":
        return (np.ascontiguousarray(found.data.transpose(0, 2, 3, 1)),
                found.labels.astype(np.int64), [str(i) for i in range(10)])
    # torchvision's are a view of planes: a minibatch of rows of it takes 25 times as long to copy
    return (np.ascontiguousarray(found.data), np.array(found.targets, np.int64),
            list(found.classes))


def by_torchvision(source: str, root: Path, **which):
    """torchvision's data set. Raises UserError if it is neither there nor downloads."""
    from torchvision import datasets

    name, files = TORCHVISION[source]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return getattr(datasets, name)(str(root), download=not outlines.are_allowed(), **which)
    except (OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source} is not in '{root}' and could not be downloaded ({reason}): put "
                        f"{files} there, or set root=") from None


def load_folder(path: Path, settings: DataSettings) -> ImageSet:
    """One folder per class (`core.pictures`). Every image's shorter side is resized to `size`, and
    its centre cropped."""
    if settings.size is None:
        raise UserError(f"size: folder:{path} needs a size in pixels, such as size=32 or size=224: "
                        "every image is brought to it")
    classes, files, labels = pictures.list_classes(path)
    memory.require_memory(
        len(files) * settings.size**2 * 3,
        f"folder:{path}: {len(files):,} images of {settings.size}x{settings.size}",
        f"decode them once: python scripts/import_folder.py {path} --size {settings.size} "
        "--fit crop")
    spec = {"data": f"folder:{place(path)}", "size": settings.size}
    return from_arrays(pictures.read_squares(files, settings.size, str(path)), labels,
                       name=name_at(os.path.abspath(path)), classes=classes, root=spec, test=None)


def load_npz(path: Path, settings: DataSettings) -> ImageSet:
    """Arrays `images`, uint8, and `labels` of any integer type, or `data` and `targets` as
    scripts/export.py names them; classes are numbered up to the largest."""
    reject_size(settings)
    for pair in (("images", "labels"), ("data", "targets")):
        found = reading.npz(path, *pair)
        if len(found) == 2:
            break
    else:
        raise UserError(f"{path}: it needs arrays `images` and `labels`, or `data` and `targets`")
    images, labels = (found[name] for name in pair)
    largest = 0
    if labels.ndim == 1 and labels.dtype.kind in "iu" and labels.size:
        labels = labels.astype(np.int64)
        largest = int(labels.max())
        if largest >= MOST_CLASSES:
            raise UserError(f"{path}: row {labels.argmax()} has label {largest}; labels must count "
                            "the classes from 0")
    classes = [str(i) for i in range(max(largest, 0) + 1)]
    check_arrays(images, labels, len(classes), str(path))
    return from_arrays(images, labels, name=path.stem, classes=classes,
                       root={"data": place(path)}, test=None)


def test_spec(test: str, size: int | None) -> dict:
    """How to load a test set again later."""
    if test in NAMED:
        sized = {"size": size or USUAL_SIZES[test]} if test in USUAL_SIZES else {}
        return {"data": test, "split": "test", **sized}
    if test.startswith("folder:"):
        return {"data": f"folder:{place(Path(test.removeprefix('folder:')))}", "size": size}
    return {"data": place(Path(test))}


def reject_size(settings: DataSettings) -> None:
    if settings.size is not None:
        raise UserError(f"size: {settings.data} has a size of its own; size= is for digits, "
                        "photos, photographs, pets, imagenet100 and folder:PATH")
