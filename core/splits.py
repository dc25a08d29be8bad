"""Splits: rows of a set, named in words, and which data a set's `root` in meta.json says it is of.

    train, test             a set's own
    protected, reference    seeded 80/20 parts of train
    first:N, after:N        BridgePure protects first:40000 and keeps the rest
    last:N
    spread:N                N rows evenly over the set, for one ordered by class
    rows:CODE               any (`rows_split`)
"""

import base64
import zlib

import numpy as np

from core import streams
from core.errors import UserError
from core.imageset import ImageSet

REFERENCE_SHARE = 0.2
WHICH = ("data", "size", "classes", "class_fraction")   # settings that say which set, not its split


def split_of(whole: ImageSet, split: str) -> ImageSet:
    """The rows of a split, in order."""
    if split in ("train", "test"):
        return whole
    rows = split_rows(split, len(whole))
    if len(rows) == len(whole):
        return whole
    earlier = whole.meta["root"].get("split", "train")
    if earlier != "train":      # root and one split must lead back to the clean rows
        raise UserError(f"split: {short(split)} of a set that is already '{short(earlier)}' of "
                        f"{whole.meta['root']['data']}; choose the split where that set is made")
    if any("limit" in step.get("settings", {}) for step in whole.meta["lineage"]):
        raise UserError(f"split: {short(split)} of a set made with --limit; choose the split where "
                        "that set is made")
    return whole.subset(rows, split, root={**whole.meta["root"], "split": split})


def split_rows(split: str, total: int) -> np.ndarray:
    """Ascending row numbers of a split of `total` rows. Raises UserError if there are none."""
    if split in ("protected", "reference"):
        order = streams.rng(0, "split").permutation(total)      # one split for every seed
        reference = round(total * REFERENCE_SHARE)
        return np.sort(order[:reference] if split == "reference" else order[reference:])
    word, _, number = split.partition(":")
    counts = number.isdecimal() and len(number) < 19        # Python reads no number of 5,000 digits
    if word == "rows":
        rows = read_rows(number, total)
    elif word == "spread" and counts:
        wanted = min(int(number), total)
        rows = np.arange(wanted) * total // max(wanted, 1)
    elif word in ("first", "after", "last") and counts:
        rows, count = np.arange(total), int(number)
        rows = {"first": rows[:count], "after": rows[count:],
                "last": rows[max(total - count, 0):]}[word]
    else:
        raise UserError(f"split: '{short(split)}' is not train, test, protected, reference, "
                        "first:N, after:N, last:N, spread:N or rows:CODE")
    if not len(rows):
        raise UserError(f"split: '{short(split)}' leaves none of the {total} rows")
    return rows


def rows_split(rows: np.ndarray, total: int) -> str:
    """The split that is these rows (ascending) of `total`: `rows:` and a bit a row, compressed."""
    chosen = np.zeros(total, bool)
    chosen[rows] = True
    return "rows:" + base64.urlsafe_b64encode(zlib.compress(np.packbits(chosen))).decode()


def read_rows(code: str, total: int) -> np.ndarray:
    try:
        bits = zlib.decompressobj().decompress(base64.urlsafe_b64decode(code), -(-total // 8) + 1)
    except (ValueError, zlib.error):
        bits = b""
    if len(bits) != -(-total // 8):
        raise UserError(f"split: '{short('rows:' + code)}' is no choice of rows from {total}")
    return np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), count=total))


def short(split: str) -> str:
    """For people: the code of chosen rows may be long."""
    return split if len(split) <= 24 else split[:21] + "..."


def identified(meta: dict) -> dict:
    """The root of a set, or of what is told of one, with its digest."""
    return {**meta["root"], "digest": meta.get("root_digest")}


def same_data(one: dict, other: dict) -> bool:
    """Whether two roots are of the same data, by name or by `digest` where both have one."""
    return one.get("digest") == other.get("digest") is not None or all(
        one.get(key) == other.get(key) for key in WHICH)


def share_images(one: dict, other: dict) -> bool:
    """Whether two roots may hold an image in common: the same data, or another choice of its
    classes, and splits that overlap."""
    if not same_data(one, other) and any(one.get(key) != other.get(key)
                                         for key in ("data", "size")):
        return False
    a, b = sorted(root.get("split", "train") for root in (one, other))
    if a == b:
        return True
    if a.startswith("after:") and b.startswith("first:"):
        return int(a[6:]) < int(b[6:])
    return "test" not in (a, b) and (a, b) != ("protected", "reference")
