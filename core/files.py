"""Every change on disk goes through here, so that a file is whole or absent, whenever we die.

`operation` is called before each change. It does nothing; the crash tests replace it by a
counter that kills the process at the k-th call.
"""

import contextlib
import errno
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from core import reading
from core.errors import UserError


def operation(kind: str, path: Path) -> None:
    """A seam for tests: `kind` is write, fsync, rename, mkdir, unlink or truncate."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole: to a new name beside it, synced, then renamed over `path`."""
    temporary, descriptor = _create_beside(path)
    try:
        with named_errors(path), open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            operation("fsync", temporary)
            os.fsync(file.fileno())
        rename(temporary, path)
    except BaseException:           # a full disk, a folder in the way, Ctrl-C
        with contextlib.suppress(OSError):
            unlink(temporary)
        raise


def _create_beside(path: Path) -> tuple[Path, int]:
    """A file of a name that nothing has: neither another process's nor somebody's own."""
    for number in itertools.count():
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{number}.tmp")
        operation("write", temporary)
        with named_errors(path), contextlib.suppress(FileExistsError):
            return temporary, os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def replaceable(path: Path, start: bytes) -> Path:
    """Where a file that somebody named is written: a link is followed, and an earlier file of its
    kind, which has this start, replaced. Raises UserError for anything else in the way."""
    found = Path(os.path.realpath(path))
    if not os.path.lexists(found):
        return found
    if not found.is_file():             # a folder, a device, a link that leads in a circle
        raise UserError(f"{path} is no regular file and is not written over; choose another name")
    with reading.regular(found) as file:
        if file.read(len(start)) not in (b"", start):
            raise UserError(f"{path} is a file of another kind and is not written over; remove it "
                            "or choose another name")
    return found


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a small `.npy` whole."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read, with a final newline. Rejects NaN."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_sealed(path: Path, value: dict) -> None:
    """Write JSON whose first key, `sha256`, is the digest of the file without its own digits."""
    value = {key: entry for key, entry in value.items() if key != "sha256"}
    text = json.dumps({"sha256": "", **value}, indent=1, allow_nan=False) + "\n"
    seal = hashlib.sha256(text.encode()).hexdigest()
    write_bytes(path, text.replace('"sha256": ""', f'"sha256": "{seal}"', 1).encode())


def read_json(path: Path) -> Any:
    """What write_json or write_sealed wrote. Raises ValueError if it is damaged: no JSON, or not
    what its seal says."""
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    data = reading.text(path).encode()
    value = reading.parse_json(data, strict=True)
    if not isinstance(value, dict):
        return value
    if "sha256" in value:
        seal = str(value["sha256"])
        if hashlib.sha256(data.replace(seal.encode(), b"", 1)).hexdigest() != seal:
            raise ValueError(f"{path} does not match its own SHA-256")
    # Else a flipped bit in the seal's own key would make it a file of before there were seals.
    elif any(_is_digest(entry) and key not in ("fingerprint", "commit") and
             not key.endswith(("_sha256", "_digest")) for key, entry in value.items()):
        raise ValueError(f"{path} has lost the name of its SHA-256")
    return value


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def append(path: Path, data: bytes) -> None:
    """Append to a log. A torn last line is the reader's to drop (`log.Log` does)."""
    operation("write", path)
    new = not path.exists()
    with named_errors(path), open(path, "ab") as file:
        file.write(data)
    if new:
        fsync(path.parent)


def put(descriptor: int, data: bytes | memoryview, position: int) -> None:
    """Write all of it: pwrite may write less than it was given."""
    data = memoryview(data)
    while data:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written


def rename(old: Path, new: Path) -> None:
    """Rename and sync the folder, so that the new name survives a power cut."""
    operation("rename", new)
    with named_errors(new):
        os.rename(old, new)
    fsync(new.parent)


def fsync(path: Path) -> None:
    """Sync a file, or the names in a folder (where the file system can)."""
    operation("fsync", path)
    with named_errors(path):
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def mkdir(path: Path) -> None:
    """Make a folder and those above it; each new name survives a power cut."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    operation("mkdir", path)
    with named_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        operation("fsync", folder)
        # Another process may have moved it; and names can be made in a folder that cannot be read.
        with named_errors(path), contextlib.suppress(FileNotFoundError, PermissionError):
            _sync(folder.parent)


def unlink(path: Path) -> None:
    operation("unlink", path)
    path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it; nothing, if it is not there."""
    operation("unlink", path)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes. Raises UserError for what is none."""
    with reading.regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """A failed read or write (EIO, ENOSPC, EROFS) names no file by itself: add it."""
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
        self._new = not path.exists()       # its name is not synced yet
        with named_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            # Always: after a power cut a file may have its size and none of its bytes.
            put(self._file, header, 0)
            if os.fstat(self._file).st_size != size:
                os.ftruncate(self._file, size)

    def _header(self) -> bytes:
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
        with named_errors(self.path):
            put(self._file, data, self._offset + start * self._row_bytes)

    def read(self, rows: slice) -> np.ndarray:
        """Rows `rows` (a slice with start and stop), zeros where none were written."""
        count = rows.stop - rows.start
        data = self._bytes(rows.start, rows.stop)
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def digest(self, start: int, stop: int) -> str:
        """SHA-256 of rows `start` to `stop`, read back."""
        return hashlib.sha256(self._bytes(start, stop)).hexdigest()

    def _bytes(self, start: int, stop: int) -> bytearray:
        data = bytearray((stop - start) * self._row_bytes)
        view, position = memoryview(data), self._offset + start * self._row_bytes
        with named_errors(self.path):
            while view and (got := os.preadv(self._file, [view], position)):
                view, position = view[got:], position + got
        return data

    def shorten(self, rows: int) -> None:
        """Keep the first rows alone."""
        self.shape = (rows, *self.shape[1:])
        header = self._header()
        if len(header) != self._offset:         # NumPy leaves room for the number of rows
            raise RuntimeError(f"{self.path}: the header has another length")
        operation("truncate", self.path)
        with named_errors(self.path):
            put(self._file, header, 0)
            os.ftruncate(self._file, self._offset + rows * self._row_bytes)

    def clear(self) -> None:
        """Make every row zeros."""
        operation("truncate", self.path)
        with named_errors(self.path):
            os.ftruncate(self._file, self._offset)
            os.ftruncate(self._file, self._offset + self.shape[0] * self._row_bytes)

    def sync(self) -> None:
        operation("fsync", self.path)
        with named_errors(self.path):
            os.fsync(self._file)
        if self._new:
            fsync(self.path.parent)
            self._new = False

    def close(self) -> None:
        with named_errors(self.path):
            os.close(self._file)
