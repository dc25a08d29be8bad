"""Rows of arrays that are too large to copy: some of a memory map's, or one array's and another's.

A choice of rows (a split, a part of the classes) and a set joined to another would be copies in
memory. Up to COPIED bytes they are; above, only the numbers of the rows are kept, and the rows are
read where they are asked for.
"""

import contextlib
import mmap
from collections.abc import Iterator, Sequence

import numpy as np

COPIED = 1 << 30        # bytes: of 32x32, 349,525 images; of 224x224, 7,133


class Gathered:
    """Rows of arrays (n, ...) of one dtype, by their numbers in the arrays laid end to end.

    Read-only. Indexed like an array by a row, a slice of rows or an array of row numbers, it reads
    these rows, and gives them as an array in memory.
    """

    def __init__(self, arrays: Sequence, rows: np.ndarray) -> None:
        self.arrays, self.rows = tuple(arrays), rows
        self._ends = np.cumsum([len(array) for array in arrays])
        self.dtype = arrays[0].dtype
        self.shape = (len(rows), *arrays[0].shape[1:])
        self.ndim = len(self.shape)
        self.size = int(np.prod(self.shape, dtype=np.int64))
        self.nbytes = self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray:
        rows = self.rows[key]
        if np.ndim(rows) == 0:
            return self._read(rows[None])[0]
        return self._read(rows)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        if len(self.arrays) == 1:
            return np.asarray(self.arrays[0][rows])
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for array, mine, its_rows in self._located(rows):
            found[mine] = array[its_rows]
        return found

    def _located(self, rows: np.ndarray) -> Iterator[tuple]:
        """Each array, which of the rows are its, and their numbers in it."""
        whose = np.searchsorted(self._ends, rows, side="right")
        for number, array in enumerate(self.arrays):
            mine = np.flatnonzero(whose == number)
            if len(mine):
                yield array, mine, rows[mine] - (self._ends[number] - len(array))

    def announce(self, rows: np.ndarray) -> None:
        """`announce` for rows of this."""
        for array, _, its_rows in self._located(self.rows[rows]):
            announce(array, its_rows)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        whole = self._read(self.rows)
        return whole if dtype is None else whole.astype(dtype, copy=False)


def announce(images: np.ndarray | Gathered, rows: np.ndarray) -> None:
    """Tell the kernel which rows of a memory map come next: it reads them from the disk together,
    and not each when its first byte is asked for."""
    if isinstance(images, Gathered):
        return images.announce(rows)
    mapped = getattr(images, "_mmap", None)
    if mapped is None or not hasattr(mmap, "MADV_WILLNEED"):
        return
    first = images.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    size = images.strides[0]
    for row in np.sort(rows).tolist():
        start = (first + row * size) // mmap.PAGESIZE * mmap.PAGESIZE
        with contextlib.suppress(OSError):
            mapped.madvise(mmap.MADV_WILLNEED, start, first + (row + 1) * size - start)


def rows_of(images: np.ndarray | Gathered, rows: np.ndarray) -> np.ndarray | Gathered:
    """These rows: a view where they follow each other in one array, else a copy, unless that would
    be too large."""
    if isinstance(images, Gathered):
        return either(images.arrays, images.rows[rows])
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return images[int(rows[0]) : int(rows[-1]) + 1]
    return either([images], rows)


def joined(one: np.ndarray | Gathered, other: np.ndarray | Gathered) -> np.ndarray | Gathered:
    """The rows of `one`, then those of `other`."""
    return either([one, other], np.arange(len(one) + len(other)))


def either(arrays: Sequence, rows: np.ndarray) -> np.ndarray | Gathered:
    """In memory if they are few."""
    found = Gathered(arrays, rows)
    return found[:] if found.nbytes <= COPIED else found
