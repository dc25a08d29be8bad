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
their own: `test=` names one.

What a set remembers as its origin and its test set is found again from where the set lies, and
is checked by digest (`recall`).
"""

import contextlib
import dataclasses
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core import config, large, memory, outlines, pictures, reading
from core.artefact import partial_of, read_meta, unfinished
from core.config import Place
from core.distributed import note, world
from core.embedded import digits, photographs, photos
from core.errors import UserError
from core.imageset import ImageSet, check_arrays, content_digest, from_arrays
from core.methods import is_method
from core.ranges import Count, Keys, Share
from core.remembered import NAMED, place
from core.splits import WHICH, identified, same_data, share_images, short, split_of, split_rows

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
    # train, test, protected, reference, first:N, after:N, last:N or spread:N
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
        whole = with_test(whole, settings)
    elif source in NAMED:
        whole = load_named(source, base, settings)
    else:
        check_there(source, key)
        whole = load_path(source, settings)
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
    return with_test(ImageSet.load(source), settings)


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


def load_test(train: ImageSet, settings: DataSettings) -> ImageSet:
    """The clean test set of a (perhaps poisoned or purified) training set.

    `test=` wins over what the set's meta.json remembers. Raises UserError if there is none, if it
    does not fit, or if it is not the one that was remembered.
    """
    if settings.test:
        spec = test_spec(settings.test, settings.size or train.image_shape[0])
        test = load(DataSettings(**spec, root=settings.root), "test")
    else:
        spec = train.meta["test"]
        if spec is None:
            raise UserError(f"{settings.data} has no test set of its own: name one with test=")
        whose, digest = f"the test set of {settings.data}", train.meta.get("test_digest")
        test = recall(spec, digest, settings.root, whose, "name one with test=")
        if digest is None and train.meta["lineage"] and spec["data"] not in NAMED:
            note(f"{whose} is taken from {spec['data']} unchecked: the set has no digest of it")
    check_alike(f"the test set {spec['data']}", test, train, settings.data)
    return test


def note_doubts(train: ImageSet, test: ImageSet) -> None:
    """Say of a test set what keeps accuracy on it from being on clean, unseen images."""
    if made := [step["method"] for step in test.meta["lineage"]]:
        note(f"the test images went through {' and '.join(made)}: accuracy on them is not clean "
             "test accuracy")
    if share_images(identified(train.meta), identified(test.meta)):
        note(f"test images are among those that {train.meta['name']} was made from: accuracy on "
             "them is not of unseen images")


def check_alike(what: str, images: ImageSet, train: ImageSet, source: str | None) -> None:
    """Raise UserError unless images have size and classes of those that are trained on."""
    if images.num_classes > train.num_classes or images.image_shape != train.image_shape:
        raise UserError(f"{what} has {describe(images)}, but {source} has {describe(train)}")
    names = zip(train.meta["classes"], images.meta["classes"], strict=False)
    both_named = all(one.meta["root"].get("data") in NAMED for one in (train, images))
    for label, (expected, found) in enumerate(names):
        # an .npz has numbers alone; the digits' names are numbers too
        unknown = str(label) in (expected, found) and not both_named
        if found != expected and not unknown:
            raise UserError(f"{what} has '{found}' as class {label}, but {source} has "
                            f"'{expected}': classes must be the same, in one order")


def load_clean(train: ImageSet, test: ImageSet, clean: str | None, split: str,
               settings: DataSettings) -> ImageSet:
    """Clean labelled images for a learner that needs them: the `split` of what `clean` names, or,
    if that is null, of the data set behind `train`. `meta` then also holds `rows` (their numbers
    there, in words) and `originals` (how many are originals of rows of `train`).

    Raises UserError if there are none, if they do not fit, or if they are not clean or are those
    that measure.
    """
    root, digest = train.meta["root"], train.meta.get("root_digest")
    if split == "test":
        raise UserError("clean_split: the test images measure, so no learner sees them; name rows "
                        "of train, such as last:5000")
    if clean is not None:
        spec = test_spec(clean, train.image_shape[0])
        spec.pop("split", None)
        whole = load(DataSettings(**spec, root=settings.root), "clean")
    elif "data" in root:
        spec = {key: root[key] for key in WHICH if key in root}
        whole = recall(spec, digest if root.get("split") != "test" else None, settings.root,
                       f"the clean images of {settings.data}", "name others with clean=")
    else:
        raise UserError(f"{settings.data} does not say which images it was made from: name clean "
                        "ones with clean=")
    if whole.meta["lineage"]:
        raise UserError(f"clean: {clean} is not clean (it was made by "
                        f"{' + '.join(whole.made_by)}); name untouched images")
    found = split_of(whole, split)
    what = f"clean: {clean or root['data']}"
    check_alike(what, found, train, settings.data)
    roots = {name: identified(images.meta)
             for name, images in (("clean", found), ("train", train), ("test", test))}
    rows, told = np.arange(len(found)), whole.meta["root"].get("split", "train") == "train"
    if told:    # else it is a part of a set whose whole is not here
        rows = original_rows(found, len(whole))

    def in_common(name: str, images: ImageSet) -> int:
        """How many of the clean images a set holds too, or is made from; all, if that is open."""
        if told and same_data(roots["clean"], roots[name]) and roots[name].get("split") != "test":
            return len(np.intersect1d(rows, original_rows(images, len(whole))))
        return len(found) * share_images(roots["clean"], roots[name])

    if in_common("test", test):
        raise UserError(f"{what} is the test set, which measures: no learner sees it")
    originals = in_common("train", train)
    return dataclasses.replace(found, meta={
        **found.meta, "rows": rows_in_words(rows, split), "originals": originals})


def poisoned_here(images: ImageSet) -> bool:
    """Whether a set went through anything but purifiers."""
    return not all(is_method("purifiers", step["method"]) for step in images.meta["lineage"])


def note_own(images: ImageSet, remedy: str) -> None:
    """Say where the clean images behind a set are its own, and nothing here tells that they are
    clean: a set from outside that neither an attack of ours nor an import made."""
    source = images.meta["root"].get("data")
    if source not in NAMED and not poisoned_here(images):
        note(f"the images of {source} count as clean, and nothing here says that nobody poisoned "
             f"them; if somebody did, {remedy}")


def original_rows(images: ImageSet, total: int) -> np.ndarray:
    """The row numbers of a set in the whole that it is a split of, whose rows are `total`."""
    split = images.meta["root"].get("split", "train")
    rows = np.arange(total) if split in ("train", "test") else split_rows(split, total)
    return rows[:len(images)]           # of --limit


def rows_in_words(rows: np.ndarray, split: str) -> str:
    """'45000 to 49999'"""
    words = f"{rows[0]} to {rows[-1]}"
    return words if rows[-1] - rows[0] == len(rows) - 1 else f"{words}, {short(split)}"


def clean_of(images: ImageSet, root: str) -> ImageSet:
    """The untouched set that a set was made from, row for row. Raises UserError if it is gone, or
    no longer the same."""
    spec, digest = images.meta["root"], images.meta.get("root_digest")
    whose = f"the clean images that '{images.meta['name']}' was made from"
    note_own(images, "import the set beside its clean images (scripts/import_poison.py)")
    found = recall(spec, digest, root, whose, "put them back")
    clean = found.first(len(images))
    if (clean.images.shape != images.images.shape
            or not np.array_equal(clean.labels, images.labels)):
        raise UserError(f"{whose}: {spec['data']} holds {len(found)} {describe(found)}, whose rows "
                        f"are not those of the set's {len(images)} {describe(images)}")
    made_from = images.meta["lineage"][0].get("inputs", {}) if images.meta["lineage"] else {}
    if digest is None and made_from.get("data") != found.fingerprint:
        note(f"{whose} are taken from {spec['data']} unchecked: the set has no digest of them")
    return clean


def recall(spec: dict, digest: str | None, root: str, whose: str, remedy: str) -> ImageSet:
    """Load again what a set remembers, checked by digest where it has one (sets that were made
    before there were digests have none). `whose` and `remedy` are for people."""
    types = {"data": str, "split": str, "size": int | None, "classes": list | tuple,
             "class_fraction": int | float}
    if not isinstance(spec, dict) or not all(
            isinstance(value, types.get(key, ())) for key, value in spec.items()):
        raise UserError(f"{whose}: {spec} in its meta.json names no data; {remedy}")
    try:
        spec = {key: tuple(value) if key == "classes" else value for key, value in spec.items()}
        return load(DataSettings(**spec, root=root), key="", digest=digest)
    except UserError as error:
        raise UserError(f"{whose}: {error}; {remedy}") from None


def remember_test(images: ImageSet, settings: DataSettings) -> ImageSet:
    """A set that is about to become an artefact, with the digest of its test set, if that was named
    just now. Raises UserError if it was typed and cannot be read or does not fit."""
    known = "test_digest" in images.meta or (images.meta["lineage"] and not settings.test)
    if known or images.meta["test"] is None:
        return images
    try:
        with world().leader_first():
            test = load_test(images, dataclasses.replace(settings, test=None))
    except UserError:
        if settings.test:
            raise
        return images               # evaluate.py will ask for it
    return dataclasses.replace(images, meta={**images.meta, "test_digest": digest_of(test)})


def note_other_test(made: ImageSet, settings: DataSettings) -> None:
    """Say where finished work remembers another test set than the one that was typed, which is no
    part of what it is known by."""
    typed = settings.test and test_spec(settings.test, made.image_shape[0])
    if typed and typed != made.meta["test"]:
        remembered = (made.meta["test"] or {}).get("data", "none")
        note(f"{made.meta['name']} was made before, and the test set that it remembers is "
             f"{remembered}: name the other one where it is evaluated (test={settings.test}), or "
             "make it anew with another out=")


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
    test = {**spec, "split": "test"}
    if settings.test:
        test = test_spec(settings.test, images.shape[1])
    return from_arrays(images, labels, name=source, classes=classes,
                       root={**spec, "split": split}, test=test)


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
    test = test_spec(settings.test, size) if settings.test else {**spec, "split": "test"}
    return large.load(source, split, listing, size, root={**spec, "split": split}, test=test,
                      again=again)


def from_torchvision(source: str, split: str, root: Path):
    """(images, labels, class names). Raises UserError if the set is neither there nor downloads."""
    which = {"split": split} if source == "svhn" else {"train": split == "train"}
    found = by_torchvision(source, root, **which)
    if source == "svhn":
        return (np.ascontiguousarray(found.data.transpose(0, 2, 3, 1)),
                found.labels.astype(np.int64), [str(i) for i in range(10)])
    return found.data, np.array(found.targets, np.int64), list(found.classes)


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
    if settings.size is None or settings.size < 1:
        raise UserError(f"size: folder:{path} needs a size in pixels, such as size=224")
    classes, files, labels = pictures.list_classes(path)
    memory.require_memory(
        len(files) * settings.size**2 * 3,
        f"folder:{path}: {len(files):,} images of {settings.size}x{settings.size}",
        f"decode them once: python scripts/import_folder.py {path} --size {settings.size} "
        "--fit crop")
    spec = {"data": f"folder:{place(path)}", "size": settings.size}
    test = test_spec(settings.test, settings.size) if settings.test else None
    return from_arrays(pictures.read_squares(files, settings.size, str(path)), labels,
                       name=path.name or path.resolve().name, classes=classes, root=spec, test=test)


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
    size = images.shape[1] if images.ndim > 1 else None
    test = test_spec(settings.test, size) if settings.test else None
    check_arrays(images, labels, len(classes), str(path))
    return from_arrays(images, labels, name=path.stem, classes=classes,
                       root={"data": place(path)}, test=test)


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
