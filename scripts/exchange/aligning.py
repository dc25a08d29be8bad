"""Brings what a foreign file holds (see foreign.py) to the rows of its base set, as uint8 images.

Rows are found by number, by order or by the nearest image of the base, never by the order of a
listing; labels, where the file has some, are checked against the base's.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from core.errors import UserError
from core.imageset import SLICE_ROWS, ImageSet
from core.perturbation import block_means
from scripts.exchange.foreign import Foreign
from scripts.exchange.units import (
    LENGTH,
    PROBE_ROWS,
    SURE,
    Units,
    centred,
    directions,
    spread,
    thumbnails,
    units_of,
)

LIKE = 0.5                  # outlines of an image and its poison are at least so alike ...
STRANGE = 0.01              # ... and for this share another's may be more alike (blurs, one colour)
CANDIDATES, EQUAL = 5, 0.01     # nearest outlines that pixels decide between; as good as equal
PIXELS_AT_ONCE = 1 << 22    # whose candidates are in memory together
COLOUR, COLOUR_ROWS = 4, 50     # grey levels that a class is shifted by; its rows that tell it


@dataclass(frozen=True)
class Options:
    """How to read what the file itself does not say. `floor` is the arithmetic of the releases:
    EM's loader for noise, LSP's for its pool, HYPO's and SEP's for images; others' is within one
    grey level of it."""

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
    units: Units = "images255"


def align(found: Foreign, base: ImageSet, options: Options, where: str, *, bounded: bool = False
          ) -> Aligned:
    """The poisoned images of the base's rows. `bounded`: their norm is checked afterwards. Raises
    UserError where they do not fit."""
    found = replace(found, labels=labels_of(found, base, where))
    values = layout(found, base, options, where)
    units = units_of(values, base, options.units, bounded, where)
    if units == "wrapped":
        values, units = values.view(np.int8), "noise255"
    if not units.startswith("noise"):
        return place_images(found, pixels(values, units, options), base, where)
    noise, kind = noise_of_rows(found, values, base, where)
    height, width = base.image_shape
    if values.shape[1] > height or values.shape[2] > width:
        raise UserError(f"{where}: noise of {values.shape[1]}x{values.shape[2]}, larger than "
                        f"the base set's images of {height}x{width}")
    how = f"{found.form}: {kind} in units of {UNITS_FOR_PEOPLE[units]}"
    if values.shape[1:3] != (height, width):
        how += f", {values.shape[1]}x{values.shape[2]} in the middle"
    if found.values.ndim == 5:
        how += f", number {options.candidate} of {len(found.values)}"
    images = add(noise, units, base, options, pool=found.by_label)
    return Aligned(images, how, np.arange(len(base)), units)


UNITS_FOR_PEOPLE = {"noise": "[0, 1]", "noise2": "[-1, 1]", "noise255": "grey levels"}


def labels_of(found: Foreign, base: ImageSet, where: str) -> np.ndarray | None:
    """The file's labels as the base set counts them: folders go by their names where these are the
    base's classes, or their numbers, else by their order."""
    if not found.folders:
        return found.labels
    classes, folders = base.meta["classes"], found.folders
    if set(folders) <= set(classes):
        numbers = [classes.index(name) for name in folders]
    elif all(name.isdecimal() and int(name) < len(classes) for name in folders):
        numbers = [int(name) for name in folders]
    elif len(folders) == len(classes):
        numbers = range(len(classes))
    else:
        few = ", ".join(folders[:4]) + (", ..." if len(folders) > 4 else "")
        raise UserError(f"{where}: {len(folders)} folders of images ({few}), but the base set has "
                        f"{len(classes)} classes; name the one folder that holds the poison")
    return np.array(numbers)[found.labels]


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
        values = unflattened(values, base, found.planes)
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


def unflattened(values: np.ndarray, base: ImageSet, planes: bool) -> np.ndarray:
    """Flat rows as (n, h, w, 3): three planes or pixels, whichever has neighbours clearly more like
    the base set's, else as the format has it."""
    height, width = base.image_shape
    ways = [values.reshape(-1, 3, height, width).transpose(0, 2, 3, 1),
            values.reshape(-1, height, width, 3)]
    expected, other = ways if planes else ways[::-1]
    near = [np.abs(roughness(way) - roughness(base.images)).sum() for way in (expected, other)]
    return other if 2 * near[1] < near[0] else expected


def roughness(images: np.ndarray) -> np.ndarray:
    """How much neighbours differ down, across and between channels, on average (3,)."""
    part = images[:PROBE_ROWS].astype(np.int16)
    return np.array([np.abs(np.diff(part, axis=axis)).mean() for axis in (1, 2, 3)])


def noise_of_rows(found: Foreign, values: np.ndarray, base: ImageSet, where: str):
    """(function from rows to noise, how), for noise an image, a class or for all."""
    labels, count = base.labels, len(base)
    if found.by_label:
        order = np.empty(count, np.int64)
        if len(found.labels) != len(values):
            raise UserError(f"{where}: {len(found.labels)} labels for {len(values)} noises")
        if found.labels.min() == 1 and found.labels.max() == base.num_classes:
            raise UserError(f"{where}: its labels count from 1; save labels - 1")
        for label in np.unique(labels):
            pool = np.flatnonzero(found.labels == label)
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
        order, kind = order_of_classes(found.labels, base.num_classes, where)
        return (lambda rows: values[order[labels[rows]]]), kind
    if len(values) == 1:
        return (lambda rows: np.repeat(values, rows.stop - rows.start, 0)), "one noise for all"
    raise UserError(f"{where}: noise for {len(values)} images, but the base set has {count} images "
                    f"of {base.num_classes} classes; name the base it was made for")


def order_of_classes(labels: np.ndarray | None, count: int, where: str
                     ) -> tuple[np.ndarray, str]:
    """Which noise each class has, of one a class, and that in words; without labels, the i-th."""
    order = np.arange(count)
    if labels is None or np.array_equal(labels, order):
        return order, "noise a class"
    if np.array_equal(np.sort(labels), order + 1):
        raise UserError(f"{where}: its labels count from 1; save labels - 1")
    if not np.array_equal(np.sort(labels), order):
        raise UserError(f"{where}: noise of {count} classes whose labels are not 0 to {count - 1}, "
                        "each once")
    return np.argsort(labels), "noise a class, each by its label"


def add(noise: Callable, units: Units, base: ImageSet, options: Options, pool: bool) -> np.ndarray:
    """Base plus noise, centred where it is smaller, as uint8."""
    images = np.empty(base.images.shape, np.uint8)
    height, width = base.image_shape
    exact = options.rounding == "round"
    for start in range(0, len(base), SLICE_ROWS):
        rows = slice(start, min(start + SLICE_ROWS, len(base)))
        delta = noise(rows)
        if exact or (pool and units == "noise") or delta.dtype.kind != "f":
            delta = delta.astype(np.float64)
        if options.positive_only:
            delta = np.maximum(delta, 0)
        top, left = (height - delta.shape[1]) // 2, (width - delta.shape[2]) // 2
        part = np.s_[:, top : top + delta.shape[1], left : left + delta.shape[2]]
        levels = base.images[rows].astype(np.float64 if exact or pool else np.float32)
        if pool and units == "noise" and not exact:     # LSP's loader adds in [0, 1], in float64
            levels[part] = (levels[part] / 255 + delta) * 255
        else:                                           # EM's in grey levels, in float32
            levels[part] += delta * (255 / LENGTH[units])
        images[rows] = as_uint8(levels, options)
    return images


def pixels(values: np.ndarray, units: Units, options: Options) -> np.ndarray:
    """Images as uint8. Flooring, in the file's own precision (HYPO's loader: float32 times 255)."""
    if values.dtype == np.uint8:
        return values
    images = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), SLICE_ROWS):
        part = values[start : start + SLICE_ROWS]
        if options.rounding == "round" or part.dtype.kind != "f":
            part = part.astype(np.float64)
        if units == "images2":
            part = (part + 1) / 2
        images[start : start + SLICE_ROWS] = as_uint8(part * (1 if units == "images255" else 255),
                                                   options)
    return images


def as_uint8(levels: np.ndarray, options: Options) -> np.ndarray:
    """Clipped to grey levels and rounded."""
    levels = np.clip(levels, 0, 255)
    return (np.floor(levels) if options.rounding == "floor" else np.rint(levels)).astype(np.uint8)


def place_images(found: Foreign, images: np.ndarray, base: ImageSet, where: str) -> Aligned:
    """Whole images to their rows: by number, in order, or by the nearest image of the base."""
    if images.shape[1:] != base.images.shape[1:]:
        raise UserError(f"{where}: images of {images.shape[1]}x{images.shape[2]}, but those of the "
                        f"base set are {base.image_shape[0]}x{base.image_shape[1]}")
    if len(images) > len(base):
        raise UserError(f"{where}: {len(images)} images, but the base set has {len(base)}")
    if found.labels is not None and len(found.labels) != len(images):
        raise UserError(f"{where}: {len(found.labels)} labels for {len(images)} images")
    numbered = found.rows is not None and found.rows[0] >= 0
    whole_set = numbered and np.array_equal(found.rows, np.arange(len(base)))
    if whole_set or (numbered and found.labels is None):
        check_numbers(found.rows, len(base), where)
        how = "by number"
    elif found.rows is None and len(images) == len(base):
        how = "in order"
    else:
        return match(found, images, base, where)
    check_axes(images, base, where)
    rows = np.arange(len(base))
    nearest, own = nearest_rows(less_class_colour(images, base, base.labels), base)
    strange = np.flatnonzero((nearest != rows) & (own < LIKE))
    if len(strange) == 0 and (nearest != rows).mean() > STRANGE:
        strange = np.flatnonzero(nearest != rows)
    if len(strange) and found.labels is not None:   # ECLIPSE's are shuffled, DUNE's go by class,
        return match(found, images, base, where)    # APBench's numbers are those of its part
    if len(strange):
        raise UserError(f"{where}: the order is not the base set's: image {strange[0]} is nearer "
                        f"to row {nearest[strange[0]]} than to its own, and so {len(strange)} of "
                        f"{len(images)}")
    unlike = np.flatnonzero(own < LIKE)
    if 2 * len(unlike) > len(images):               # one colour is as near to every row
        raise UserError(f"{where}: {len(unlike)} of {len(images)} images are unlike the base "
                        f"set's, the first is {unlike[0]}; name the base that it was made for")
    check_labels(found.labels, base.labels, rows, where)
    check_wrapped(images, base.images, where)
    return Aligned(images, f"{found.form}, {how}", rows)


def match(found: Foreign, images: np.ndarray, base: ImageSet, where: str) -> Aligned:
    """Each image to the row of its nearest image: NTGA's own order, pictures without a number."""
    groups = np.arange(len(images)) if found.labels is None else found.labels
    nearest, likeness = one_to_one(less_class_colour(images, base, groups), base, found.labels)
    lost = np.flatnonzero(nearest < 0)
    if (likeness < LIKE).mean() > STRANGE or len(lost):
        raise UserError(f"{where}: {len(images)} images that do not match images of the base set "
                        "one to one" + (f"; image {lost[0]} is left over" if len(lost) else ""))
    order = np.argsort(nearest)
    rows = nearest[order]
    labels = found.labels[order] if found.labels is not None else None
    check_labels(labels, base.labels[rows], rows, where)
    check_wrapped(images[order], base.images[rows], where)
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
    if len(wrong) and np.array_equal(labels - 1, own):
        raise UserError(f"{where}: its labels count from 1; save labels - 1")
    if len(wrong):
        raise UserError(f"{where}: {len(wrong)} labels disagree with the base set; row "
                        f"{rows[wrong[0]]} has {labels[wrong[0]]} here and {own[wrong[0]]} there")


def check_axes(images: np.ndarray, base: ImageSet, where: str) -> None:
    """Refuse the base's images in another order of the numbers in each: these then fit much better.
    """
    rows = spread(len(images), PROBE_ROWS)
    ours, theirs = images[rows].astype(np.int16), base.images[rows]
    n, height, width, _ = ours.shape
    ways = {"the channels are blue, green, red": ours[..., ::-1],
            "the planes were reshaped as if they were pixels; reshape(-1, 3, height, width) first":
                ours.reshape(n, 3, height, width).transpose(0, 2, 3, 1)}
    if height == width:
        ways["rows and columns are swapped"] = ours.swapaxes(1, 2)
    apart = np.abs(ours - theirs).mean()
    for what, way in ways.items():
        if 2 * np.abs(way - theirs).mean() < apart:
            raise UserError(f"{where}: {what}; save its images as the base set has them")


def check_wrapped(images: np.ndarray, originals: np.ndarray, where: str) -> None:
    """Refuse images whose bytes ran over: next to many small differences some of nearly 256, none
    between."""
    small = large = 0
    for start in range(0, len(images), SLICE_ROWS):
        rows = slice(start, start + SLICE_ROWS)
        apart = np.abs(images[rows].astype(np.int16) - originals[rows])
        if ((apart > 64) & (apart < 192)).any():
            return
        small, large = small + ((apart > 0) & (apart <= 64)).sum(), large + (apart >= 192).sum()
    if 0 < large < small:
        raise UserError(f"{where}: {large} values are off by nearly 256, the others by little: "
                        "sums that ran over in bytes; clip them to 0..255 before they become uint8")


def less_class_colour(images: np.ndarray, base: ImageSet, groups: np.ndarray) -> np.ndarray:
    """The images without a colour that all of a group share (DUNE shifts each class by up to 0.1),
    to compare: int16. Told by rows that match without the mean of their channels."""
    members = split_by(groups)
    picked = [rows[spread(len(rows), COLOUR_ROWS)] for rows in members]
    shifts, sure = shifts_of(images, np.concatenate(picked), base)
    moved, start = images, 0
    for rows, probed in zip(members, picked, strict=True):
        part = slice(start, start + len(probed))
        start = part.stop
        if not sure[part].any():
            continue
        colour = np.rint(np.median(shifts[part][sure[part]], 0)).astype(np.int16)
        if np.abs(colour).max() >= COLOUR:
            moved = moved.astype(np.int16) if moved is images else moved
            moved[rows] -= colour
    return moved


def shifts_of(images: np.ndarray, rows: np.ndarray, base: ImageSet
              ) -> tuple[np.ndarray, np.ndarray]:
    """By how many grey levels the channels of these rows are off those of the nearest image but for
    colour, (n, 3), and where that is surely the right one."""
    every = thumbnails(base.images)
    known, shifts, likeness = directions(every).T, np.empty((len(rows), 3)), np.empty(len(rows))
    for start in range(0, len(rows), SLICE_ROWS):
        part = slice(start, start + SLICE_ROWS)
        ours = thumbnails(images[rows[part]])
        alike = directions(ours) @ known
        shifts[part] = (ours - every[alike.argmax(1)]).mean((1, 2))
        likeness[part] = alike.max(1)
    return shifts, likeness > SURE


def split_by(groups: np.ndarray) -> list[np.ndarray]:
    """The rows of each group."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def nearest_rows(images: np.ndarray, base: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """For images said to be the base's, in order: the row whose outline is most like each, which is
    its own where that is as like, and how like its own is (1: the same up to brightness and
    contrast)."""
    ours, theirs = shapes_of(images), shapes_of(base.images)
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
    ours, theirs = shapes_of(images), shapes_of(base.images)
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


def shapes_of(images: np.ndarray) -> np.ndarray:
    """Each image as means over a grid of about 8x8 blocks (small ones: its pixels), less their
    mean, of length 1: float32 (n, features)."""
    n, height, width, _ = images.shape
    size = min(height, width) // 8 if min(height, width) >= 32 else 1
    found = np.empty((n, height // size, width // size, 3), np.float32)
    for start in range(0, n, SLICE_ROWS):
        part = slice(start, start + SLICE_ROWS)
        found[part] = block_means(images[part], size)
    return centred(found)
