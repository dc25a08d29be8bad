"""Splits of a set by its rows, and which of them share images."""

import numpy as np
import pytest
from conftest import write_imageset

from core.datasets import DataSettings, load
from core.errors import UserError
from core.splits import share_images


def test_protected_and_reference_part_the_rows_80_20(digits):
    protected = load(DataSettings("digits", split="protected"))
    reference = load(DataSettings("digits", split="reference"))
    assert len(reference) == round(0.2 * 1437)
    assert len(protected) + len(reference) == 1437
    rows = [image.tobytes() for image in digits.images]
    place = {row: i for i, row in enumerate(rows)}
    assert len(place) == 1437
    ours, theirs = ([place[image.tobytes()] for image in part.images]
                    for part in (protected, reference))
    assert sorted(ours + theirs) == list(range(1437))
    assert ours == sorted(ours)                         # in the order of the set
    assert theirs == sorted(theirs)
    np.testing.assert_array_equal(protected.labels, digits.labels[ours])
    assert 0.3 < np.mean(theirs) / 1437 < 0.7           # drawn from all over, not a block
    assert len({protected.fingerprint, reference.fingerprint, digits.fingerprint}) == 3


def test_first_and_after_part_the_rows_at_n(digits):
    first = load(DataSettings("digits", split="first:1000"))
    after = load(DataSettings("digits", split="after:1000"))
    np.testing.assert_array_equal(first.images, digits.images[:1000])
    np.testing.assert_array_equal(after.images, digits.images[1000:])
    np.testing.assert_array_equal(after.labels, digits.labels[1000:])
    assert first.meta["root"]["split"] == "first:1000"
    assert load(DataSettings("digits", split="first:9999")).fingerprint == digits.fingerprint


def test_spread_takes_rows_evenly(digits):
    part = load(DataSettings("digits", split="spread:100"))
    rows = [i * 1437 // 100 for i in range(100)]
    np.testing.assert_array_equal(part.images, digits.images[rows])
    assert part.meta["root"]["split"] == "spread:100"
    assert load(DataSettings("digits", split="spread:1437")).fingerprint == digits.fingerprint


@pytest.mark.parametrize("split", ["tset", "first", "first:", "first:x", "first:-1", "first:0",
                                   "after:1437", "last:0", "first:1.5", "first:²", "", "spread:",
                                   "spread:0", "spread:-3"])
def test_a_wrong_split_is_refused(split):
    with pytest.raises(UserError, match="split: "):
        load(DataSettings("digits", split=split))


def test_a_split_of_an_imageset_keeps_its_lineage(tmp_path, images, labels):
    path = write_imageset(tmp_path / "set", images, labels, lineage=[{"method": "lsp"}])
    part = load(DataSettings(str(path), split="first:7"))
    np.testing.assert_array_equal(part.images, images[:7])
    assert part.meta["lineage"] == [{"method": "lsp"}]


def test_a_split_of_a_split_is_refused(tmp_path, digits, images, labels):
    """root and one split are all that a set remembers: they must lead back to the clean rows."""
    for split in ("first:40", "protected", "test"):
        path = write_imageset(tmp_path / split, images, labels,
                              root={"data": "digits", "split": split})
        with pytest.raises(UserError, match=rf"split: after:7 of a set that is already '{split}'"):
            load(DataSettings(str(path), split="after:7"))
        assert len(load(DataSettings(str(path), split="first:60"))) == 60       # all of it
    whole = write_imageset(tmp_path / "train", digits.images, digits.labels,
                           root={"data": "digits", "split": "train"})
    part = load(DataSettings(str(whole), split="protected"))
    np.testing.assert_array_equal(part.images, load(DataSettings(**part.meta["root"])).images)


@pytest.mark.parametrize(("one", "other", "shared"), [
    ("train", "train", True), ("train", "test", False), ("test", "first:10", False),
    ("reference", "protected", False), ("reference", "train", True),
    ("first:10", "after:10", False),
    ("first:10", "after:9", True), ("first:10", "first:20", True), ("train", "after:5", True),
    ("protected", "first:10", True), ("spread:9", "after:10", True), ("test", "spread:9", False)])
def test_which_splits_share_images(one, other, shared):
    roots = [{"data": "cifar10", "split": split} for split in (one, other)]
    assert share_images(*roots) == share_images(*roots[::-1]) == shared
    assert not share_images(roots[0], {"data": "cifar100", "split": other})


def test_no_split_of_a_limited_set(few, tmp_path):
    """Its rows are not those of the whole set's split."""
    path = write_imageset(tmp_path / "limited", few.images, few.labels,
                          lineage=[{"method": "lsp", "settings": {"limit": 320}}])
    with pytest.raises(UserError, match="split: protected of a set made with --limit"):
        load(DataSettings(str(path), split="protected"))
    assert len(load(DataSettings(str(path)))) == 320


def test_only_named_sets_have_a_test_split(few_path):
    with pytest.raises(UserError, match="has no test split"):
        load(DataSettings(str(few_path), split="test"))
