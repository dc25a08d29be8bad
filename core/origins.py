"""The images behind a set: its clean originals, its test set, and clean ones beside it.

What a set remembers of them is found again from where the set lies, and is checked by digest
(`recall`).
"""

import dataclasses

import numpy as np

from core.datasets import DataSettings, describe, digest_of, load, test_spec
from core.distributed import note, world
from core.errors import UserError
from core.imageset import ImageSet
from core.methods import is_method
from core.remembered import NAMED
from core.splits import WHICH, identified, same_data, share_images, short, split_of, split_rows


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


def original_rows(images: ImageSet, total: int) -> np.ndarray:
    """The row numbers of a set in the whole that it is a split of, whose rows are `total`."""
    split = images.meta["root"].get("split", "train")
    rows = np.arange(total) if split in ("train", "test") else split_rows(split, total)
    return rows[:len(images)]           # of --limit


def rows_in_words(rows: np.ndarray, split: str) -> str:
    """'45000 to 49999'"""
    words = f"{rows[0]} to {rows[-1]}"
    return words if rows[-1] - rows[0] == len(rows) - 1 else f"{words}, {short(split)}"


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
