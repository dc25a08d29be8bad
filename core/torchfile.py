"""Files of torch.save without torch's unpickler: tensors, containers, text and numbers, on the CPU.

Both forms are read, the zip archive and what was written before torch 1.6, by the interpreter of
`core.pickles`. A storage is as large as what the file holds of it, each of these bytes is given out
once, and nothing in an archive is compressed. torch.load with `weights_only` runs no code either,
but makes what a file asks for, such as `bytearray(6e9)`, inflates storages, and overflows the stack
on deep tuples.
"""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from core import reading
from core.errors import UserError
from core.pickles import CALLS, Global, Unsafe, interpret, key_of, own, resolve

MOST_DEPTH = 16         # of containers: an optimiser's state in a dict in a list
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001      # of the older form (torch/serialization.py)
STORAGES = {
    "torch.DoubleStorage": torch.float64, "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16, "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8, "torch.BoolStorage": torch.bool,
}


def load(path: Path) -> Any:
    """What torch.save wrote. Raises UserError for anything but plain data and tensors."""
    with reading.regular(path) as file:
        return parse(file, file.size, path)


def parse(file: BinaryIO, size: int, path: Path) -> Any:
    """The same from an open file, or from its bytes in memory, of `size` bytes."""
    try:
        start = file.read(4)
        file.seek(0)
        if start == b"PK\3\4":
            with reading.members(file) as archive:
                return from_archive(archive, size)
        return from_stream(file, size)
    except (UserError, MemoryError):
        raise
    except Unsafe as error:
        raise UserError(f"{path} is not a torch file of plain tensors: it asks for {error}; "
                        "nothing else is read, for it would have to be run") from None
    except Exception:       # of pickletools, zipfile and torch
        raise UserError(f"{path} is not a torch file of plain tensors; nothing else is read, "
                        "for it would have to be run") from None


def from_archive(archive: zipfile.ZipFile, size: int) -> Any:
    """NAME/data.pkl, and NAME/data/KEY for each storage."""
    infos = {info.filename: info for info in archive.infolist()}
    inside = next(name for name in infos if name.endswith("/data.pkl")).removesuffix("data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
        raise Unsafe("compressed storages")
    if f"{inside}byteorder" in infos \
            and archive.read(f"{inside}byteorder").decode() != sys.byteorder:
        raise Unsafe("another byte order")
    storages = Storages(size)

    def stored(identity: Any) -> torch.Tensor:
        key, data, new = storages.of(identity)
        if new:
            info = infos[f"{inside}data/{key}"]
            if info.file_size != data.nbytes:
                raise ValueError("a storage of another size than its tensors say")
            with archive.open(info) as stream:
                reading.fill(stream, bytes_of(data))
        return data

    with archive.open(f"{inside}data.pkl") as stream:
        return unpickled(stream, size, stored)


def from_stream(file: BinaryIO, size: int) -> Any:
    """Five pickles (magic number, protocol, machine, object, keys), then length and bytes of each
    storage."""
    if (interpret(file, 0), interpret(file, 0)) != (MAGIC, PROTOCOL):
        raise ValueError("no torch file")
    if interpret(file, 0).get("little_endian") is not (sys.byteorder == "little"):
        raise Unsafe("another byte order")
    storages = Storages(size)
    found = unpickled(file, size, lambda identity: storages.of(identity)[1])
    for key in own(interpret(file, 0), list):
        data = storages.data[key]
        if int.from_bytes(file.read(8), sys.byteorder) != data.numel():
            raise ValueError("a storage of another size than its tensors say")
        reading.fill(file, bytes_of(data))
        storages.data.pop(key)
    if storages.data:
        raise ValueError("a storage is missing")
    return found


class Storages:
    """The storages of a file by key, each a flat tensor, together no larger than the file."""

    def __init__(self, most: int) -> None:
        self.data: dict[str, torch.Tensor] = {}
        self.left = most

    def of(self, identity: Any) -> tuple[str, torch.Tensor, bool]:
        """(key, tensor, whether it is new and its bytes are still to be read) of a persistent id:
        ('storage', type, key, device, length[, view of another storage])."""
        word, kind, key, _, length, *view = own(identity, tuple)
        own(length, int)
        if word != "storage" or type(kind) is not Global or kind not in STORAGES \
                or any(part is not None for part in view):
            raise Unsafe("a storage of another kind")
        dtype = STORAGES[kind]
        new = own(key, str) not in self.data
        if new:
            self.left -= max(length, 0) * dtype.itemsize
            if length < 0 or self.left < 0:
                raise Unsafe("more bytes than it could hold")
            self.data[key] = torch.empty(length, dtype=dtype)
        if self.data[key].dtype != dtype or len(self.data[key]) != length:
            raise ValueError("one storage, two kinds")
        return key, self.data[key], new


def bytes_of(data: torch.Tensor):
    return data.view(torch.uint8).numpy()


def unpickled(stream: Any, size: int, stored: Callable[[Any], torch.Tensor]) -> Any:
    """The object of a file's pickle. Tensors are views of storages: what they claim together is
    bounded for the sake of those who copy them."""
    return resolve(interpret(stream, max(reading.UNFOLDED * size, reading.FREE), TORCH, stored),
                   MOST_DEPTH)


def tensor_of(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    """A view, which torch holds against the storage."""
    if not isinstance(storage, torch.Tensor):
        raise ValueError("no storage")
    size, stride = own(size, tuple), own(stride, tuple)
    if len(size) > 32 or any(not 0 <= own(number, int) < 2**40 for number in (*size, *stride)):
        raise ValueError("no shape")
    return storage.as_strided(size, stride, own(offset, int))


TORCH: dict[str, Any] = {
    **CALLS, **dict.fromkeys(STORAGES),         # storages' types are parts of persistent ids only
    "torch._utils._rebuild_tensor": tensor_of,
    "torch._utils._rebuild_tensor_v2": tensor_of,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": lambda sides: own(sides, tuple),
    "collections.OrderedDict": lambda items=(): {key_of(key): value for key, value in items},
}
