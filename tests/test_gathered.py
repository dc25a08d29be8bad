"""Rows of arrays that are not copied, against NumPy's copies."""

import mmap

import numpy as np
import pytest
from conftest import as_set

from core import gathered
from core.gathered import Gathered
from core.imageset import joined


@pytest.fixture
def mapped(tmp_path, images):
    """The images as a memory map."""
    np.save(tmp_path / "images.npy", images)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


@pytest.fixture
def nothing_copied(monkeypatch):
    monkeypatch.setattr(gathered, "COPIED", 0)


ROWS = np.array([3, 1, 4, 1, 59, 9, 2, 6])


@pytest.mark.parametrize("key", [0, -1, slice(2, 5), slice(None, None, 3), slice(7, 2),
                                 np.array([5, 0, 0]), np.array([], np.int64)])
def test_rows_are_those_of_a_copy(mapped, images, key):
    found, copy = Gathered([mapped], ROWS), images[ROWS]
    assert (found.shape, found.dtype, found.ndim, found.nbytes, len(found)) == (
        copy.shape, copy.dtype, copy.ndim, copy.nbytes, len(copy))
    np.testing.assert_array_equal(found[key], copy[key])
    assert type(found[key]) is np.ndarray
    np.testing.assert_array_equal(np.asarray(found), copy)


@pytest.mark.parametrize("key", [60, slice(50, 70), np.array([99, 0, 60, 59])])
def test_arrays_laid_end_to_end(mapped, images, key):
    more = images[:40, ::-1]
    found, copy = Gathered([mapped, more], np.arange(100)), np.concatenate([images, more])
    np.testing.assert_array_equal(found[key], copy[key])
    again = gathered.rows_of(found, ROWS + 40)
    np.testing.assert_array_equal(again[:], copy[ROWS + 40])


def test_rows_that_follow_each_other_are_a_view(mapped):
    assert gathered.rows_of(mapped, np.arange(5, 9)).base is not None
    assert np.shares_memory(gathered.rows_of(mapped, np.arange(5, 9)), mapped)
    assert type(gathered.rows_of(mapped, ROWS)) is np.ndarray
    assert type(gathered.rows_of(mapped, np.array([2, 3, 5]))) is np.ndarray


def test_a_large_choice_of_rows_is_no_copy(nothing_copied, mapped, images, labels):
    data = as_set(mapped, labels)
    part = data.subset(ROWS, "rows")
    assert isinstance(part.images, Gathered)
    np.testing.assert_array_equal(part.images[:], images[ROWS])
    np.testing.assert_array_equal(part.labels, labels[ROWS])
    assert isinstance(part.first(3).images, Gathered)
    np.testing.assert_array_equal(part.first(3).images[:], images[ROWS[:3]])
    both = joined(part, data)
    assert isinstance(both.images, Gathered)
    np.testing.assert_array_equal(both.images[:], np.concatenate([images[ROWS], images]))
    np.testing.assert_array_equal(both.labels, np.concatenate([labels[ROWS], labels]))


class Told(mmap.mmap):
    """A memory map that notes what it is advised about."""

    def madvise(self, advice, start, length):
        assert advice == mmap.MADV_WILLNEED
        super().madvise(advice, start, length)
        self.pages.append(self[start : start + length])


def test_what_comes_next_is_announced_by_its_pages(tmp_path, images):
    """Of a map, of a view of it, of chosen rows: the pages that are named hold the row's bytes."""
    np.save(tmp_path / "images.npy", images)
    with open(tmp_path / "images.npy", "rb") as file:
        told = Told(file.fileno(), 0, access=mmap.ACCESS_READ)
    whole = np.frombuffer(told, np.uint8, offset=128).reshape(images.shape).view(np.memmap)
    whole._mmap = told
    for given, rows in ((whole, [3, 7]), (whole[10:], [0, 49]),
                        (Gathered([whole, images], np.arange(120)), [0, 59, 100])):
        told.pages = []
        gathered.announce(given, np.array(rows))
        wanted = [row for row in rows if row < 60]
        assert len(told.pages) == len(wanted)
        for pages, row in zip(told.pages, wanted, strict=True):
            assert given[row].tobytes() in pages
