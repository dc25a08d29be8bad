"""Poisons in other people's files: recognise the form and read it (aligning.py goes on).

    .pt, .pth       a tensor of noise or images; (images, labels); {data, labels}
    .pkl            int8 noise; [(bytes, label), ...]; CIFAR's batches
    .npy, .npz      noise or images, labels beside them or inside
    a folder        <index>.png; <class>/<name>.png; CIFAR's data_batch_*; *.npy parts

as the attacks' own code and APBench's loaders write and read them (docs/importing.md). Noise is
(N, ...), one row an image, (K, ...), one a class, or (1, ...); in units of [0, 1] or of grey
levels. Nothing here runs a pickle.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core import pickles, reading, torchfile
from core.errors import UserError
from core.pictures import is_picture, opened, to_rgb, visible

LABEL_FILES = ("{stem}_labels.npy", "{stem}_label.npy", "{stem}_target.npy", "{stem}_targets.npy")
LABEL_NAMES = {"data": ("target", "targets", "label", "labels")}    # x_data.npy -> x_target.npy
IMAGE_KEYS = ("data", "images", "x", "x_train", "arr_0")      # the last: of np.savez without a name
LABEL_KEYS = ("targets", "labels", "fine_labels", "y", "y_train", "arr_1")
NONE_FREE = 0   # one array referred to many times is no poison, however small (reading.unfolds)


@dataclass(frozen=True)
class Foreign:
    """What a file holds, as it is there."""

    form: str                           # for people
    values: np.ndarray                  # noise or images, (n, ...)
    labels: np.ndarray | None = None
    rows: np.ndarray | None = None      # row of the base set of each; None: in order
    by_label: bool = False              # a pool: row i of label c goes to the i-th image of c
    planes: bool = False                # flat rows are three planes, as CIFAR's; else pixels
    folders: tuple[str, ...] = ()       # names that the labels count


def read(path: Path) -> Foreign:
    """Recognise and read a file or folder. Raises UserError for what is none of these."""
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    cifars = path.name == "train" or path.name.startswith("data_batch_")
    kind = path.suffix.lower()
    if kind not in READERS and not cifars:
        raise UserError(f"{path}: a poison comes as .pt, .pkl, .npy, .npz or a folder of images")
    found = READERS.get(kind, read_pickle)(path)
    if found.values.size == 0:
        raise UserError(f"{path}: an empty array")
    return found


# --- files -----------------------------------------------------------------------------------


def read_torch(path: Path) -> Foreign:
    return of_object(torchfile.load(path), path, "torch")


def read_pickle(path: Path) -> Foreign:
    return of_object(pickles.read(path), path, "pickle")


def read_npz(path: Path) -> Foreign:
    return of_object(reading.npz(path), path, ".npz")


def read_npy(path: Path) -> Foreign:
    """With the labels of a file beside it, where that has a name people give it."""
    values = reading.npy(path)
    labels = next((as_labels(reading.npy(file), path) for file in labels_beside(path)), None)
    found = Foreign(".npy", values, labels)
    pool = labels is not None and path.stem == "simple_data"    # LSP's; others are in order
    return replace(found, form="a pool of noise by label", by_label=True) if pool else found


READERS = {".pt": read_torch, ".pth": read_torch, ".pkl": read_pickle, ".pickle": read_pickle,
           ".npy": read_npy, ".npz": read_npz,
           **{f".p{number}": read_torch for number in range(1, 6)}}     # HYPO's P1 to P5


def labels_beside(path: Path) -> list[Path]:
    """Files of labels that exist for this .npy, under the names that people give them; the first
    one counts."""
    if path.suffix != ".npy":
        return []
    names = [name.format(stem=path.stem) for name in LABEL_FILES]
    for word, others in LABEL_NAMES.items():
        if path.stem.endswith(word):
            names += [path.stem.removesuffix(word) + other + ".npy" for other in others]
    if path.stem.startswith("x_"):
        names += [f"y_{path.stem[2:]}.npy", re.sub(r"^(x_\w+?_\w+?)_.*", r"\1", path.stem)
                  .replace("x_", "y_", 1) + ".npy"]
    return [path.with_name(name) for name in names if path.with_name(name).exists()]


def of_object(found: Any, path: Path, source: str) -> Foreign:
    """What a deserialised object holds."""
    if isinstance(found, torch.Tensor):
        found = as_array(found, path)
    if isinstance(found, np.ndarray):
        return Foreign(f"{source}, one array", found)
    if isinstance(found, dict):
        found = {key.decode(errors="replace") if isinstance(key, bytes) else key: value
                 for key, value in found.items()}
        values = next((found[key] for key in IMAGE_KEYS if key in found), None)
        labels = next((found[key] for key in LABEL_KEYS if key in found), None)
        if values is not None:
            return Foreign(f"{source}, arrays by name", as_array(values, path),
                           as_labels(labels, path), planes=True)
    if isinstance(found, (list, tuple)) and len(found) == 2 and are_labels(*found):
        return Foreign(f"{source}, images and labels", as_array(found[0], path),
                       as_labels(found[1], path))
    if isinstance(found, list) and found and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in found):
        rows = [as_row(pair[0], path) for pair in found]
        reading.unfolds(sum(row.nbytes for row in rows), path.stat().st_size, path, free=NONE_FREE)
        if len({row.shape for row in rows}) == 1:
            return Foreign(f"{source}, a list of images and labels", np.stack(rows),
                           as_labels([pair[1] for pair in found], path))
    if isinstance(found, list) and found and all(isinstance(t, torch.Tensor) for t in found) \
            and len({t.shape for t in found}) == 1:
        reading.unfolds(sum(tensor.nbytes for tensor in found), path.stat().st_size, path,
                        free=NONE_FREE)
        return Foreign(f"{source}, a list of tensors", as_array(torch.stack(found), path))
    raise UserError(f"{path}: holds {describe(found)}, which is no poison that is known here: an "
                    "array, (images, labels), or arrays by name, images or noise as "
                    f"{', '.join(IMAGE_KEYS)} and labels as {', '.join(LABEL_KEYS)}")


def describe(found: Any) -> str:
    if isinstance(found, dict):
        return "a dict of " + ", ".join(map(str, list(found)[:5]))
    return f"a {type(found).__name__}"


def are_labels(images: Any, labels: Any) -> bool:
    """Whether the second of a pair is labels of the first: a number or a one-hot row for each."""
    if not isinstance(images, (np.ndarray, torch.Tensor)) or images.ndim != 4:
        return False
    rows = isinstance(labels, (list, tuple)) or getattr(labels, "ndim", 0) in (1, 2)
    return rows and len(labels) == len(images)


def as_row(value: Any, path: Path) -> np.ndarray:
    if isinstance(value, bytes):
        return np.frombuffer(value, np.uint8)
    if isinstance(value, (np.ndarray, torch.Tensor)):       # lists may unfold
        return as_array(value, path)
    raise UserError(f"{path}: its images are no arrays of numbers")


def as_array(value: Any, path: Path) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise UserError(f"{path}: a sparse or quantised tensor is no poison")
        reading.unfolds(value.nbytes, value.untyped_storage().nbytes(), path, free=NONE_FREE)
        value = value.detach()
        return (value.float() if value.is_floating_point() else value).numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iuf":
        raise UserError(f"{path}: its images are no array of numbers")
    return value


def as_labels(value: Any, path: Path) -> np.ndarray | None:
    """int64 (N,), also from one-hot rows."""
    if value is None:
        return None
    try:
        if isinstance(value, (list, tuple)):
            value = [number(item) for item in value]
        found = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
        if found.ndim == 2 and found.shape[1] > 1:
            found = found.argmax(1)
        found = found.reshape(-1)
        with np.errstate(invalid="raise"):
            numbers = found.astype(np.int64)
        if (numbers != found).any():
            raise ValueError("fractions")
        return numbers
    except (TypeError, ValueError, OverflowError, FloatingPointError):
        raise UserError(f"{path}: its labels are no numbers") from None


def number(item: Any) -> float:
    """One label of a list. Raises TypeError for what is no number: nested lists may unfold."""
    if isinstance(item, (torch.Tensor, np.ndarray)) and item.ndim == 0:
        return item.item()
    if isinstance(item, (int, float, np.number)):
        return item
    raise TypeError(type(item))


# --- folders ---------------------------------------------------------------------------------


def read_folder(path: Path) -> Foreign:
    batches = sorted(path.glob("data_batch_*"), key=natural)
    if batches:
        return joined([read_pickle(batch) for batch in batches], "CIFAR's batches")
    if (path / "meta.json").exists() and (path / "images.npy").exists():
        raise UserError(f"{path} is an image set of this project already: use it as it is")
    parts = sorted(path.glob("*.npy"), key=natural)
    if parts:
        beside = {found for part in parts for found in labels_beside(part)}
        return joined([read_npy(part) for part in parts if part not in beside],
                      f"{path.name}/, parts as .npy")
    inside = path / "data" if (path / "data").is_dir() else path
    pictures = [file for file in inside.iterdir()
                if is_picture(file) and visible(file)]
    if pictures:
        return indexed_pictures(pictures, inside)
    classes = sorted((folder for folder in path.iterdir() if folder.is_dir() and visible(folder)),
                     key=natural)
    files = [(label, file) for label, folder in enumerate(classes)
             for file in sorted(folder.iterdir(), key=natural)
             if is_picture(file) and visible(file)]
    if not files:
        inside = [str(folder.relative_to(path)) for folder in poisons_below(path)]
        raise UserError(f"{path}: neither <index>.png, nor a folder a class, nor data_batch_1 is "
                        "here" + (f"; name {' or '.join(inside[:5])} in it" if inside else ""))
    return class_pictures(files, [folder.name for folder in classes], path)


def poisons_below(path: Path) -> list[Path]:
    """What in a folder could be meant, as in the root of TAP's releases: files, or folders that
    hold pictures, parts or batches, perhaps one deeper."""
    for depth in ("*", "*/*"):
        found = [file for file in sorted(path.glob(depth), key=natural) if visible(file) and (
                     file.suffix.lower() in READERS or (file.is_dir() and holds_poison(file)))]
        if found:
            return found
    return []


def holds_poison(folder: Path) -> bool:
    return any(is_picture(file) or file.suffix.lower() == ".npy"
               or file.name.startswith("data_batch_")
               for pattern in ("*", "*/*") for file in folder.glob(pattern) if visible(file))


def natural(path: Path) -> list:
    """'2' before '10'."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part)
            for part in re.split(r"(\d+)", path.name) if part]


def joined(parts: list[Foreign], form: str) -> Foreign:
    shapes = {part.values.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise UserError(f"{form}: parts of different shapes, {sorted(map(str, shapes))}")
    labels = [part.labels for part in parts]
    pool = parts[0].by_label
    if any(part.by_label != pool for part in parts):
        raise UserError(f"{form}: a pool of noise by label beside other arrays; name the file")
    return Foreign(form + ", a pool of noise by label" * pool,
                   np.concatenate([part.values for part in parts]),
                   None if any(found is None for found in labels) else np.concatenate(labels),
                   by_label=pool, planes=parts[0].planes)


def indexed_pictures(files: list[Path], folder: Path) -> Foreign:
    """The number in a name is the row, whatever the order of the listing."""
    numbers = {}
    for file in files:
        if not file.stem.isdecimal():
            raise UserError(f"{file}: the name should be the image's number in the base set")
        if int(file.stem) in numbers:
            raise UserError(f"{file} and {numbers[int(file.stem)].name} have one number")
        numbers[int(file.stem)] = file
    rows = np.array(sorted(numbers))
    return Foreign(f"pictures by index in {folder.name}/",
                   decoded([numbers[row] for row in rows]), rows=rows)


def class_pictures(files: list[tuple[int, Path]], names: list[str], path: Path) -> Foreign:
    """A folder a class: rows by the numbers in the names where all have one of their own."""
    used, labels = np.unique([label for label, _ in files], return_inverse=True)
    folders = tuple(names[label] for label in used)
    stems = [file.stem for _, file in files]
    values = decoded([file for _, file in files])
    if all(stem.isdecimal() for stem in stems) and len(set(map(int, stems))) == len(stems):
        order = np.argsort([int(stem) for stem in stems])
        rows = np.array([int(stems[i]) for i in order])
        return Foreign(f"pictures by class and index in {path.name}/", values[order],
                       labels[order], rows, folders=folders)
    return Foreign(f"pictures by class in {path.name}/", values, labels, folders=folders,
                   rows=np.full(len(files), -1))       # to be found by their nearest image


def decoded(files: list[Path]) -> np.ndarray:
    with opened(files[0]) as first:
        width, height = first.size
    held = sum(file.stat().st_size for file in files)
    reading.unfolds(len(files) * height * width * 3, held, files[0].parent)
    images = np.empty((len(files), height, width, 3), np.uint8)
    for i, file in enumerate(files):
        with opened(file) as picture:
            if picture.size != (width, height):     # before decoding: it may be huge
                raise UserError(f"{file} is {picture.size[0]}x{picture.size[1]}, but "
                                f"{files[0].name} is {width}x{height}")
            images[i] = np.asarray(to_rgb(picture, file))
    return images
