"""Every change on disk goes through here, so that a file is whole or absent, whenever we die.

`operation` is called before each change. It does nothing; the crash tests replace it by a
counter that kills the process at the k-th call.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from core import reading


def operation(kind: str, path: Path) -> None:
    """A seam for tests: `kind` is write, fsync, rename, mkdir, unlink or truncate."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole: to a temporary name beside it, synced, then renamed over `path`."""
    temporary = path.with_name(path.name + ".tmp")
    operation("write", temporary)
    try:
        with named_errors(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            operation("fsync", temporary)
            os.fsync(file.fileno())
        rename(temporary, path)
    except OSError:                 # a full disk, a folder in the way
        with contextlib.suppress(OSError):
            unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read, with a final newline. Rejects NaN."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def append(path: Path, data: bytes) -> None:
    """Append to a log. A torn last line is the reader's to drop (Run does)."""
    operation("write", path)
    with named_errors(path), open(path, "ab") as file:
        file.write(data)


def append_or_skip(path: Path, line: bytes) -> None:
    """Add a line to a side file, which helps and which no work needs: whole, or not at all. A torn
    last line of an earlier process gets its end first."""
    operation("write", path)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                line = b"\n" + line
            if file.write(line) < len(line):        # a full disk
                file.truncate(size)


def rename(old: Path, new: Path) -> None:
    """Rename and sync the folder, so that the new name survives a power cut."""
    operation("rename", new)
    with named_errors(new):
        os.rename(old, new)
    fsync(new.parent)


def fsync(path: Path) -> None:
    """Sync a file, or the names in a folder."""
    operation("fsync", path)
    with named_errors(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def mkdir(path: Path) -> None:
    operation("mkdir", path)
    with named_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def unlink(path: Path) -> None:
    operation("unlink", path)
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    operation("unlink", path)
    shutil.rmtree(path, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes. Raises UserError for what is none."""
    with reading.regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """A failed write (ENOSPC, EROFS) names no file by itself: add it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


class RowFile:
    """A `.npy` file of known shape that grows by rows, in any order and from several processes.

    Rows are written with `pwrite`: unlike a memory map, a full disk is then an ENOSPC error and
    not a bus error.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype | type) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        header = self._header()
        self._offset = len(header)
        self._row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * self.dtype.itemsize
        size = self._offset + shape[0] * self._row_bytes
        operation("write", path)
        with named_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            if os.fstat(self._file).st_size != size:
                os.pwrite(self._file, header, 0)    # first: full size then says "has a header"
                os.ftruncate(self._file, size)

    def _header(self) -> bytes:
        import io

        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer,
            {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False,
             "shape": self.shape},
        )
        return buffer.getvalue()

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows `start`, `start + 1`, ... in the file's dtype."""
        if rows.dtype != self.dtype or rows.shape[1:] != self.shape[1:]:
            raise TypeError(f"{self.path}: rows are {rows.dtype}{rows.shape[1:]}, "
                            f"not {self.dtype}{self.shape[1:]}")
        operation("write", self.path)
        data = memoryview(np.ascontiguousarray(rows)).cast("B")
        position = self._offset + start * self._row_bytes
        with named_errors(self.path):
            while data:                       # pwrite may write less than it was given
                written = os.pwrite(self._file, data, position)
                data, position = data[written:], position + written

    def read(self, rows: slice) -> np.ndarray:
        """Rows `rows` (a slice with start and stop), zeros where none were written."""
        count = rows.stop - rows.start
        data = bytearray(count * self._row_bytes)
        os.preadv(self._file, [data], self._offset + rows.start * self._row_bytes)
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def sync(self) -> None:
        operation("fsync", self.path)
        with named_errors(self.path):
            os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)
