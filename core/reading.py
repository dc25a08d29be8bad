"""Files that somebody else may have made, read with bounded memory and time.

Only regular files are opened: a FIFO would wait for ever, a device has no end. What a file declares
is held against what lies on disk before anything is allocated or unfolded. Every function raises a
UserError that names the file.
"""

import contextlib
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from core.errors import UserError

UNFOLDED = 64               # times the bytes on disk: more is a bomb ...
FREE = 1 << 30              # ... unless it is no more than this: black images compress well
MOST_TEXT = 16 << 20        # bytes of JSON; Python's objects take some 25 times as many
MOST_HEADER = 10_000        # bytes of a .npy header, NumPy's own limit
MOST_MEMBERS = 16 << 20     # bytes of a zip's list of members: 200,000 of them
WEIGHTS = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL")     # dtypes of safetensors


# --- files -----------------------------------------------------------------------------------


class Regular(io.BufferedReader):
    """A file whose reads ask for no more than it has: Python allocates what is asked for."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__(file, 1 << 16)
        status = os.fstat(file.fileno())
        self.size = status.st_size
        # A file may have holes. Some file systems count no blocks: 0 is no answer.
        self.held = min(self.size, status.st_blocks * 512) if status.st_blocks else self.size

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0 or size > 1 << 16:
            left = max(self.size - self.tell(), 0)
            size = left if size is None or size < 0 else min(size, left)
        return super().read(size)


@contextlib.contextmanager
def regular(path: Path) -> Iterator[Regular]:
    """Open a regular file to read its bytes; no other kind is waited for."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):         # a device may act on being opened
            raise UserError(f"{path} is no regular file: folders, pipes and devices are not read")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or 'cannot be opened').lower()}") from None
    with Regular(io.FileIO(descriptor)) as file:
        unfolds(file.size, file.held, path)
        yield file


def unfolds(claimed: int, held: int, path: Path, *, free: int = FREE) -> None:
    """Refuse what claims so much more than it holds that it would fill the memory, unless it is no
    more than `free` bytes."""
    if claimed > max(UNFOLDED * held, free):
        raise UserError(f"{path}: claims {claimed:,} bytes but holds {held:,}")


# --- text ------------------------------------------------------------------------------------


def text(path: Path, most: int = MOST_TEXT) -> str:
    """A text file in UTF-8."""
    with regular(path) as file:
        if file.size > most:
            raise UserError(f"{path}: {file.size:,} bytes are too many for a text of this kind "
                            f"(at most {most:,})")
        try:
            return file.read().decode()
        except UnicodeDecodeError:
            raise UserError(f"{path}: not a text file") from None


def parse_json(data: str | bytes, *, strict: bool = False) -> Any:
    """JSON. Raises ValueError, also for too many brackets inside each other and for a key that is
    there twice; if `strict`, also for NaN and infinity, which other languages cannot read."""
    try:
        return json.loads(data, object_pairs_hook=once,
                          parse_constant=no_number if strict else None)
    except RecursionError:
        raise ValueError("too many brackets inside each other") from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of keys that are each there once: readers disagree about which of two counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


# --- NumPy -----------------------------------------------------------------------------------


def npy(path: Path, *, mapped: bool = False) -> np.ndarray:
    """The array of plain numbers in a `.npy` file, or a read-only memory map of it."""
    with regular(path) as file:
        try:
            dtype, shape, fortran = header(file, file.size)
            order = "F" if fortran else "C"
            if mapped and 0 not in shape:
                return np.memmap(file, dtype, "r", file.tell(), shape, order)
            values = np.empty(shape, dtype, order)
            fill(file, values)
        except ValueError:
            raise UserError(f"{path} is not a readable .npy of plain numbers; arrays of objects "
                            "would have to be run") from None
    return values


def npz(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The arrays of plain numbers in a `.npz` file; with `names`, those of them that are there."""
    with regular(path) as file:
        try:
            with members(file) as archive:
                found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                if len(found) < len(archive.infolist()):
                    raise UserError(f"{path} holds two arrays of one name")
                chosen = {name: info for name, info in found.items() if not names or name in names}
                unfolds(sum(info.file_size for info in chosen.values()), file.held, path)
                return {name: member(archive, info) for name, info in chosen.items()}
        except UserError:
            raise
        except Exception:       # zipfile and zlib have many ways to fail
            raise UserError(f"{path} is not a readable .npz of plain arrays") from None


@contextlib.contextmanager
def members(file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    """A zip archive. Raises ValueError or BadZipFile if it is none, or has far too many members."""
    end = zipfile._EndRecData(file)         # the only way to its length before it is read
    if not end or end[zipfile._ECD_SIZE] > MOST_MEMBERS:
        raise ValueError("no zip archive of so few members")
    with zipfile.ZipFile(file) as archive:
        yield archive


def member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compressed in another way")
    with archive.open(info) as stream:
        dtype, shape, fortran = header(stream, info.file_size)
        values = np.empty(shape, dtype, "F" if fortran else "C")
        fill(stream, values)
    return values


def header(stream: Any, size: int) -> tuple[np.dtype, tuple[int, ...], bool]:
    """(dtype, shape, Fortran order) of a .npy of `size` bytes, all of which must be there. Raises
    ValueError for anything but plain numbers or text."""
    start = stream.read(10)
    if start[:6] != np.lib.format.MAGIC_PREFIX or start[6:8] not in (b"\1\0", b"\2\0"):
        raise ValueError("no .npy of a known version")
    old = start[6] == 1
    start += b"" if old else stream.read(2)
    length = int.from_bytes(start[8:], "little")
    if length > MOST_HEADER:
        raise ValueError("the header is too long")
    rest = io.BytesIO(start[8:] + stream.read(length))
    read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(rest)
    except Exception:           # of ast and tokenize
        raise ValueError("no header") from None
    if dtype.kind not in "biufSU" or dtype.itemsize < 1 or len(shape) > 32:
        raise ValueError("no array of plain numbers")
    if any(type(side) is not int or not 0 <= side < 2**40 for side in shape) \
            or math.prod(shape) * dtype.itemsize > size - len(start) - length:
        raise ValueError("another size than the file's")
    return dtype, shape, fortran


def fill(stream: Any, values: np.ndarray) -> None:
    """Read an array's bytes into it."""
    if values.size == 0:
        return
    target = memoryview(values.reshape(-1, order="A").view(np.uint8))
    while target:
        count = stream.readinto(target[:1 << 24])
        if not count:
            raise ValueError("the file ends in its array")
        target = target[count:]


# --- weights ---------------------------------------------------------------------------------


def safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a .safetensors file by name, on the CPU, finite. The library holds the offsets
    against the shapes and the file's size."""
    from safetensors.torch import load_file

    with regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_TEXT:
            raise UserError(f"{path} is not a readable .safetensors file: a header of {length:,} "
                            "bytes")
        try:
            entries = parse_json(file.read(length))
            dtypes = {entry["dtype"] for name, entry in entries.items() if name != "__metadata__"}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{path} is not a readable .safetensors file") from None
    odd = sorted(str(dtype) for dtype in dtypes if dtype not in WEIGHTS)
    if odd:
        raise UserError(f"{path}: tensors of {odd[0]} are no weights; known are "
                        f"{', '.join(WEIGHTS)}")
    try:
        found = load_file(path)
    except Exception:
        raise UserError(f"{path} is not a readable .safetensors file") from None
    finite(found, path)
    return found


def finite(weights: dict[str, Any], path: Path) -> None:
    """Raise UserError for NaN and infinity in a state dict: a network of them says nothing."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds NaN or infinity")
