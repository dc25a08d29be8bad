"""Brings what a foreign file holds (`core.foreign`) to the rows of its base set, as uint8 images.

Rows are found by number, by order or by the nearest image of the base, never by the order of a
listing; labels, where the file has some, are checked against the base's.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from core.errors import UserError
from core.foreign import Foreign
from core.imageset import SLICE_ROWS, ImageSet

Units = Literal["auto", "noise", "noise255", "images", "images255", "wrapped"]
UNITS = get_args(Units)
MOST_NOISE = 0.3            # of [0, 1]: the largest published L-inf budget is 32/255
LIKE = 0.5                  # outlines of an image and its poison are at least so alike ...
STRANGE = 0.01              # ... and for this share another's may be more alike (blurs, one colour)
CANDIDATES, EQUAL = 5, 0.01     # nearest outlines that pixels decide between; as good as equal
PIXELS_AT_ONCE = 1 << 22    # whose candidates are in memory together


@dataclass(frozen=True)
class Options:
    """How to read what the file itself does not say."""

    units: Units = "auto"
    rounding: Literal["round", "floor"] = "round"
    positive_only: bool = False         # drop negative noise, as EM's released loaders do
    candidate: int = 0                  # of several noises an image (5-D tensors)


@dataclass(frozen=True)
class Aligned:
    """A poison on its base: `images` (N, H, W, 3) uint8, and what was done, for people."""

    images: np.ndarray
    how: str
    rows: np.ndarray                    # of the base


def align(found: Foreign, base: ImageSet, options: Options, where: str) -> Aligned:
    """The poisoned images of the base's rows. Raises UserError where they do not fit."""
    values = layout(found, base, options, where)
    units = recognise(values, where) if options.units == "auto" else options.units
    if units == "wrapped":
        values, units = values.astype(np.uint8).view(np.int8).astype(np.float32), "noise255"
    if units.startswith("noise"):
        scale = 255.0 if units == "noise255" else 1.0
        noise, kind = noise_of_rows(found, values, base, where)
        height, width = base.image_shape
        if values.shape[1] > height or values.shape[2] > width:
            raise UserError(f"{where}: noise of {values.shape[1]}x{values.shape[2]}, larger than "
                            f"the base set's images of {height}x{width}")
        how = f"{found.form}: {kind} in units of " + ("grey levels" if scale > 1 else "[0, 1]")
        if values.shape[1:3] != (height, width):
            how += f", {values.shape[1]}x{values.shape[2]} in the middle"
        if found.values.ndim == 5:
            how += f", number {options.candidate} of {len(found.values)}"
        return Aligned(add(noise, scale, base, options), how, np.arange(len(base)))
    images = pixels(values, units, options)
    return place_images(found, images, base, where)


def layout(found: Foreign, base: ImageSet, options: Options, where: str) -> np.ndarray:
    """(n, h, w, 3), whatever the axes were; NaN is refused."""
    values, (height, width) = found.values, base.image_shape
    if values.ndim == 5:
        if not 0 <= options.candidate < len(values):
            raise UserError(f"{where}: {len(values)} noises an image, there is no number "
                            f"{options.candidate}")
        values = values[options.candidate]
    elif options.candidate:
        raise UserError(f"{where}: one noise an image, there is no number {options.candidate}")
    if values.ndim == 2 and values.shape[1] == 3 * height * width and values.dtype == np.uint8:
        flat = (3, height, width) if found.planes else (height, width, 3)
        values = values.reshape(-1, *flat)
    if values.ndim == 3:
        values = values[None]
    if values.ndim != 4 or 3 not in (values.shape[1], values.shape[3]):
        raise UserError(f"{where}: an array of shape {values.shape}; expected (n, 3, height, width)"
                        " or (n, height, width, 3)")
    if values.shape[3] != 3:
        values = values.transpose(0, 2, 3, 1)
    if values.dtype.kind == "f":
        finite = np.isfinite(values).reshape(len(values), -1).all(1)
        if not finite.all():
            raise UserError(f"{where}: row {np.flatnonzero(~finite)[0]} is not finite")
    if values.dtype.kind not in "iuf":
        raise UserError(f"{where}: {values.dtype} is no dtype of images or noise")
    return values


def recognise(values: np.ndarray, where: str) -> Units:
    """Units by dtype and range (attack notes, section 13). Raises UserError where they are
    ambiguous."""
    low, high = float(values.min()), float(values.max())
    if values.dtype == np.uint8:
        if high <= 64:
            raise UserError(f"{where}: uint8 from {low:g} to {high:g} could be noise or dark "
                            "images; say which with --units noise255 or images255")
        middle = ((values > 64) & (values < 192)).mean()
        if middle < 1e-3 and low < 64 and high >= 192:
            raise UserError(f"{where}: uint8 close to 0 and 255 alone: noise that wrapped? Then "
                            "write --units wrapped, else --units images255")
        return "images255"
    if values.dtype.kind in "iu":
        if low < 0 and max(-low, high) <= 64:
            return "noise255"
        if low >= 0 and 64 < high <= 255:
            return "images255"
    elif low < 0 and max(-low, high) <= MOST_NOISE:
        return "noise"
    elif low < 0 and 1 < max(-low, high) <= 64:
        return "noise255"
    elif low >= 0 and 1.5 < high <= 255 and values.mean() > 16:
        return "images255"
    elif low >= 0 and high <= 1 and values.mean() > MOST_NOISE / 3:
        return "images"
    elif low >= 0 and high <= MOST_NOISE:
        return "noise"
    raise UserError(f"{where}: values from {low:.4g} to {high:.4g} could be several things; say "
                    f"which with --units ({', '.join(UNITS[1:])})")


def noise_of_rows(found: Foreign, values: np.ndarray, base: ImageSet, where: str):
    """(function from rows to noise, how), for noise an image, a class or for all."""
    labels, count = base.labels, len(base)
    if found.by_label:
        order = np.empty(count, np.int64)
        for label in np.unique(labels):
            pool = np.flatnonzero(found.labels[: len(values)] == label)
            mine = np.flatnonzero(labels == label)
            if len(pool) < len(mine):
                raise UserError(f"{where}: {len(pool)} noises of label {label} for {len(mine)} "
                                "images")
            order[mine] = pool[: len(mine)]
        return (lambda rows: values[order[rows]]), "noise by label, in order"
    if len(values) == count:
        check_labels(found.labels, labels, np.arange(count), where)
        return (lambda rows: values[rows]), "noise an image"
    if len(values) == base.num_classes:
        return (lambda rows: values[labels[rows]]), "noise a class"
    if len(values) == 1:
        return (lambda rows: np.repeat(values, rows.stop - rows.start, 0)), "one noise for all"
    raise UserError(f"{where}: noise for {len(values)} images, but the base set has {count} images "
                    f"of {base.num_classes} classes; name the base it was made for")


def add(noise, scale: float, base: ImageSet, options: Options) -> np.ndarray:
    """Base plus noise, centred where it is smaller, as uint8."""
    images = np.empty(base.images.shape, np.uint8)
    height, width = base.image_shape
    for start in range(0, len(base), SLICE_ROWS):
        rows = slice(start, min(start + SLICE_ROWS, len(base)))
        delta = noise(rows).astype(np.float64) * (255 / scale)
        if options.positive_only:
            delta = np.maximum(delta, 0)
        top, left = (height - delta.shape[1]) // 2, (width - delta.shape[2]) // 2
        levels = base.images[rows].astype(np.float64)
        levels[:, top : top + delta.shape[1], left : left + delta.shape[2]] += delta
        images[rows] = whole(levels, options)
    return images


def pixels(values: np.ndarray, units: str, options: Options) -> np.ndarray:
    """Images as uint8."""
    if values.dtype == np.uint8:
        return values
    images = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), SLICE_ROWS):
        part = values[start : start + SLICE_ROWS].astype(np.float64)
        images[start : start + SLICE_ROWS] = whole(part * (255 if units == "images" else 1),
                                                   options)
    return images


def whole(levels: np.ndarray, options: Options) -> np.ndarray:
    """Clipped to grey levels and rounded. Float32 files hold 8/255 a hair below 8."""
    levels = np.clip(levels, 0, 255)
    return (np.floor(levels + 1e-4) if options.rounding == "floor" else np.rint(levels)
            ).astype(np.uint8)


def place_images(found: Foreign, images: np.ndarray, base: ImageSet, where: str) -> Aligned:
    """Whole images to their rows: by number, in order, or by the nearest image of the base."""
    if images.shape[1:] != base.images.shape[1:]:
        raise UserError(f"{where}: images of {images.shape[1]}x{images.shape[2]}, but those of the "
                        f"base set are {base.image_shape[0]}x{base.image_shape[1]}")
    if len(images) > len(base):
        raise UserError(f"{where}: {len(images)} images, but the base set has {len(base)}")
    numbered = found.rows is not None and found.rows[0] >= 0
    whole_set = numbered and np.array_equal(found.rows, np.arange(len(base)))
    if whole_set or (numbered and found.labels is None):
        check_numbers(found.rows, len(base), where)
        how = "by number"
    elif found.rows is None and len(images) == len(base):
        how = "in order"
    else:
        return match(found, images, base, where)
    rows = np.arange(len(base))
    nearest, own = nearest_rows(images, base)
    strange = np.flatnonzero((nearest != rows) & (own < LIKE))
    if len(strange) == 0 and (nearest != rows).mean() > STRANGE:
        strange = np.flatnonzero(nearest != rows)
    if len(strange) and found.labels is not None and not numbered:
        return match(found, images, base, where)        # ECLIPSE's are shuffled
    if len(strange):
        raise UserError(f"{where}: the order is not the base set's: image {strange[0]} is nearer "
                        f"to row {nearest[strange[0]]} than to its own, and so {len(strange)} of "
                        f"{len(images)}")
    check_labels(found.labels, base.labels, rows, where)
    return Aligned(images, f"{found.form}, {how}", rows)


def match(found: Foreign, images: np.ndarray, base: ImageSet, where: str) -> Aligned:
    """Each image to the row of its nearest image: NTGA's own order, pictures without a number."""
    if found.labels is not None and len(found.labels) != len(images):
        raise UserError(f"{where}: {len(found.labels)} labels for {len(images)} images")
    nearest, likeness = one_to_one(images, base, found.labels)
    lost = np.flatnonzero(nearest < 0)
    if (likeness < LIKE).mean() > STRANGE or len(lost):
        raise UserError(f"{where}: {len(images)} images that do not match images of the base set "
                        "one to one" + (f"; image {lost[0]} is left over" if len(lost) else ""))
    order = np.argsort(nearest)
    rows = nearest[order]
    labels = found.labels[order] if found.labels is not None else None
    check_labels(labels, base.labels[rows], rows, where)
    return Aligned(images[order], f"{found.form}, each to its nearest image", rows)


def check_numbers(rows: np.ndarray, count: int, where: str) -> None:
    if rows[-1] >= count:
        raise UserError(f"{where}: number {rows[-1]}, but the base set has {count} images")
    missing = np.setdiff1d(np.arange(count), rows)
    if len(missing):
        raise UserError(f"{where}: {len(missing)} of {count} images are missing, the first is "
                        f"{missing[0]}")


def check_labels(labels: np.ndarray | None, own: np.ndarray, rows: np.ndarray, where: str) -> None:
    if labels is None:
        return
    if len(labels) != len(own):
        raise UserError(f"{where}: {len(labels)} labels for {len(own)} images")
    wrong = np.flatnonzero(labels != own)
    if len(wrong):
        raise UserError(f"{where}: {len(wrong)} labels disagree with the base set; row "
                        f"{rows[wrong[0]]} has {labels[wrong[0]]} here and {own[wrong[0]]} there")


def nearest_rows(images: np.ndarray, base: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """For images said to be the base's, in order: the row whose outline is most like each, which is
    its own where that is as like, and how like its own is (1: the same up to brightness and
    contrast)."""
    ours, theirs = outlines(images), outlines(base.images)
    nearest, own = np.empty(len(images), np.int64), np.empty(len(images), np.float32)
    for start in range(0, len(ours), SLICE_ROWS):
        rows = np.arange(start, min(start + SLICE_ROWS, len(ours)))
        alike = ours[rows] @ theirs.T
        own[rows] = alike[rows - start, rows]
        nearest[rows] = np.where(own[rows] >= alike.max(1) - 1e-3, rows, alike.argmax(1))
    return nearest, own


def one_to_one(images: np.ndarray, base: ImageSet, labels: np.ndarray | None
               ) -> tuple[np.ndarray, np.ndarray]:
    """A row of the base for each image, no row twice (-1: none is left), and how alike the nearest
    outlines are. Among outlines as near as the nearest the pixels decide, for some images of
    CIFAR-10 are nearly there twice; among equally alike ones the label does."""
    ours, theirs = outlines(images), outlines(base.images)
    count = min(CANDIDATES, len(base))
    rows, alike = np.empty((len(images), count), np.int64), np.empty((len(images), count))
    likeness = np.empty(len(images), np.float32)
    size = max(1, min(SLICE_ROWS, PIXELS_AT_ONCE // images[0].size))
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        near, nearest = torch.from_numpy(ours[part] @ theirs.T).topk(count)
        near, rows[part] = near.numpy(), nearest.numpy()
        likeness[part] = near[:, 0]
        own, candidates = centred(images[part]), centred(base.images[rows[part]])
        alike[part] = np.einsum("bp,bkp->bk", own, candidates)
        alike[part][near < near[:, :1] - EQUAL] = -np.inf
    if labels is not None:
        alike += EQUAL * (base.labels[rows] == labels[:, None])
    best = alike.max(1)
    order = np.argsort(-alike, 1, kind="stable")
    good = (alike >= best[:, None] - EQUAL).sum(1)
    choices = [rows[i, order[i, : good[i]]].tolist() for i in range(len(images))]
    return assign(choices, np.argsort(-best, kind="stable")), likeness


def assign(choices: list[list[int]], order: np.ndarray) -> np.ndarray:
    """One of its choices for each, best first and in this order, none twice; -1 where none is left.
    Who finds all taken may send one of the takers to another choice."""
    taken = {}                              # row -> who has it
    for one in order.tolist():
        for row in choices[one]:
            if row not in taken:
                taken[row] = one
                break
        else:
            moves = ((row, other) for row in choices[one] for other in choices[taken[row]]
                     if other not in taken)
            for row, other in moves:
                taken[other], taken[row] = taken[row], one
                break
    found = np.full(len(choices), -1)
    found[list(taken.values())] = list(taken)
    return found


def centred(images: np.ndarray) -> np.ndarray:
    """Images (..., H, W, 3) as vectors without their mean, of length 1."""
    flat = images.reshape(*images.shape[:-3], -1).astype(np.float32)
    flat -= flat.mean(-1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6)


def outlines(images: np.ndarray) -> np.ndarray:
    """Each image as means over a grid of about 8x8 blocks (small ones: its pixels), less their
    mean, of length 1: float32 (n, features)."""
    n, height, width, _ = images.shape
    size = min(height, width) // 8 if min(height, width) >= 32 else 1
    found = np.empty((n, height // size, width // size, 3), np.float32)
    for start in range(0, n, SLICE_ROWS):
        part = images[start : start + SLICE_ROWS, : height // size * size, : width // size * size]
        found[start : start + SLICE_ROWS] = part.astype(np.float32).reshape(
            len(part), height // size, size, width // size, size, 3).mean((2, 4))
    return centred(found)
