"""What the numbers of a foreign file mean: noise or images, and in which units.

Dtype and range tell most of it. Whole images that a transform scaled are told from noise by the
base set: they follow its images, and noise does not. What could be several things is asked about
(`--units`), never guessed.
"""

from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F

from core.errors import UserError
from core.imageset import ImageSet

# noise and images in [0, 1], for images in [-1, 1] or there, in grey levels; noise in wrapped bytes
Units = Literal["auto", "noise", "noise2", "noise255", "images", "images2", "images255", "wrapped"]
UNITS = get_args(Units)
LENGTH = {"noise": 1, "images": 1, "noise2": 2, "images2": 2, "noise255": 255, "images255": 255}
RANGES = {"images": (0, 1), "images2": (-1, 1), "images255": (0, 255)}
MOST_NOISE = 0.3            # of [0, 1]: the largest published L-inf budget is 32/255
DOUBLED = (15.5 / 255, 16.05 / 255)     # 16/255: that budget, or the usual 8/255 in [-1, 1]
# (mean, standard deviation) of red, green and blue, as the field's transforms write them
NORMALIZED = {
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10 (as many codes have it)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
    "MNIST": ((0.1307,) * 3, (0.3081,) * 3),
    "REM": ((0.5,) * 3, (1.0,) * 3)}
ALIKE = 0.02                # means and deviations as near are these
PROBE_ROWS, SIDE = 256, 8   # images compared, as means over 8x8 blocks
VALUES_AT_ONCE = 1 << 24    # in memory as floats
FOLLOWS, SURE = 0.5, 0.9    # correlation of an image with its own row, and with a row that is found
EXPLAINED = 0.8             # of the values' variance, by one scale and offset for all images
# values for each unit of [0, 1]: any Normalize's (its deviations are 0.08 to 1.1), and grey levels'
SLOPES = ((0.9, 12.0), (230.0, 280.0))


def units_of(values: np.ndarray, base: ImageSet, asked: Units, bounded: bool, where: str) -> Units:
    """The units of `values` (n, h, w, 3). `bounded`: a norm is checked afterwards. Raises UserError
    where they are ambiguous, or where what is said to be noise are whole images."""
    low, high = float(values.min()), float(values.max())
    if -1e-3 < low < 0 and high > MOST_NOISE:           # a rounding error of images from 0 on
        low = 0.0
    if asked.startswith("noise") or (asked == "auto" and low < 0):
        refuse_images(values, base, where)
    units = recognise(values, low, high, where) if asked == "auto" else asked
    if asked == "auto" and units == "noise" and low < 0:
        ask_about_scale(values, bounded, where)
    if units == "wrapped" and values.dtype != np.uint8:
        raise UserError(f"{where}: {values.dtype} cannot be noise that wrapped in bytes")
    if units in RANGES and values.dtype != np.uint8:
        bottom, top = RANGES[units]
        beyond = MOST_NOISE * (top - bottom)            # an image and its noise, not clipped
        if low < bottom - beyond or high > top + beyond:
            raise UserError(f"{where}: values from {low:.4g} to {high:.4g} are no {units}, which "
                            f"lie in [{bottom}, {top}]")
    return units


def recognise(values: np.ndarray, low: float, high: float, where: str) -> Units:
    """Units by dtype and range."""
    most = max(-low, high)
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
        if low < 0 and 1 < most <= 64:
            return "noise255"
        if low >= 0 and 64 < high <= 255:
            return "images255"
    elif low < 0 and most <= MOST_NOISE:
        return "noise"
    elif low < 0 and 2 <= most <= 64:
        return "noise255"
    elif low >= 0 and 1.5 < high <= 255 and values.mean() > 16:
        return "images255"
    elif low >= 0 and high <= 1.001 and values.mean() > MOST_NOISE / 3:
        return "images"
    elif low >= 0 and high <= MOST_NOISE:
        return "noise"
    raise UserError(f"{where}: values from {low:.4g} to {high:.4g} could be several things; say "
                    f"which with --units ({', '.join(UNITS[1:])}; 2: of images in [-1, 1], 255: in "
                    "grey levels)")


def ask_about_scale(values: np.ndarray, bounded: bool, where: str) -> None:
    """Refuse noise that is in [0, 1] by its range and by its budget more likely in other units."""
    peaks = np.maximum(values.max((0, 1, 2)), -values.min((0, 1, 2))).astype(np.float64)
    for name, (_, deviations) in NORMALIZED.items():
        budgets = peaks * deviations
        if np.ptp(budgets) < 2e-3 * budgets.max() and np.ptp(peaks) > 5e-3 * peaks.max():
            raise UserError(f"{where}: noise as after Normalize with {name}'s std {deviations}, "
                            "whose budget differs by channel; save values * std, or write --units "
                            "noise if it is none")
    if not bounded and DOUBLED[0] <= peaks.max() <= DOUBLED[1]:
        raise UserError(f"{where}: noise up to {peaks.max() * 255:.3g}/255, which is a budget of "
                        "16/255, or of 8/255 for images in [-1, 1]; write --units noise or noise2, "
                        "or --norm and --radius")


# --- whole images ----------------------------------------------------------------------------


def refuse_images(values: np.ndarray, base: ImageSet, where: str) -> None:
    """Raise UserError if these are the base's images, scaled, and say how to get them back."""
    bytes_ = values.dtype == np.int8 and (values.min() < -64 or values.max() > 64)
    found = scaling(values.view(np.uint8) if bytes_ else values, base)
    if found is None:
        return
    mean, deviation = found
    if bytes_:
        does = "wrapped to int8; save them as uint8"
    elif near(mean, 0) and near(deviation, 1):
        does = "in [0, 1], some beyond; write --units images"
    elif near(mean, 0.5) and near(deviation, 0.5):
        does = "in [-1, 1]; write --units images2"
    elif deviation.max() < 0.01:
        does = "in grey levels; write --units images255" if near(mean, 0) else (
            f"in grey levels less a mean of {shown(mean * 255, 0)}; add it and save them again")
    else:
        close = [name for name, (means, deviations) in NORMALIZED.items()
                 if near(mean, means) and near(deviation, deviations)]
        name = min(close, key=lambda name: distance(found, NORMALIZED[name]), default=None)
        mean, deviation = map(shown, NORMALIZED[name]) if name else (
            shown(numbers, 2) for numbers in found)
        does = (f"after Normalize(mean={mean}, std={deviation}), "
                + (f"{name}'s" if name else "or about that")
                + "; save values * std + mean, which are images in [0, 1]")
    raise UserError(f"{where}: no noise, but whole images of the base set {does}")


def scaling(values: np.ndarray, base: ImageSet) -> tuple[np.ndarray, np.ndarray] | None:
    """(mean, deviation), (3,) each, for which values * deviation + mean are the base's images in
    [0, 1], in its order or in another; None if they do not follow them."""
    rows = spread(len(values), PROBE_ROWS)
    ours, theirs = thumbnails(values[rows]), None
    if len(values) == len(base):
        own = thumbnails(base.images[rows])
        if np.median((directions(ours) * directions(own)).sum(1)) > FOLLOWS:
            theirs = own
    if theirs is None:
        every = thumbnails(base.images)
        alike = directions(ours) @ directions(every).T
        nearest, sure = alike.argmax(1), alike.max(1) > SURE
        if sure.mean() < FOLLOWS or len(np.unique(nearest[sure])) < SURE * sure.sum():
            return None
        ours, theirs = ours[sure], every[nearest[sure]]
    x, y = theirs.reshape(-1, 3).astype(np.float64) / 255, ours.reshape(-1, 3).astype(np.float64)
    together = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
    if (x.var(0) == 0).any() or (together**2 < EXPLAINED * x.var(0) * y.var(0)).any():
        return None                     # more contrast in each image is noise that follows it, too
    slope = together / x.var(0)
    if not any(((slope >= least) & (slope <= most)).all() for least, most in SLOPES):
        return None
    return x.mean(0) - y.mean(0) / slope, 1 / slope


def spread(count: int, most: int) -> np.ndarray:
    """At most so many of `count` rows, evenly over them, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, most).astype(int))


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Means over 8x8 blocks, whatever the size: float32 (n, 8, 8, 3). Where 8 divides no side,
    blocks overlap, so that none of the image is left out as `block_means` would."""
    found = np.empty((len(images), SIDE, SIDE, 3), np.float32)
    size = max(1, VALUES_AT_ONCE // images[0].size)
    for start in range(0, len(images), size):
        part = torch.from_numpy(images[start : start + size].astype(np.float32))
        found[start : start + size] = F.adaptive_avg_pool2d(
            part.permute(0, 3, 1, 2), SIDE).permute(0, 2, 3, 1).numpy()
    return found


def directions(images: np.ndarray) -> np.ndarray:
    """Images as vectors of length 1 without the mean of each channel: no brightness, contrast or
    colour of the whole."""
    return centred(images - images.mean((1, 2), keepdims=True))


def centred(images: np.ndarray) -> np.ndarray:
    """Images (..., H, W, 3) as vectors without their mean, of length 1."""
    flat = images.reshape(*images.shape[:-3], -1).astype(np.float32)
    flat -= flat.mean(-1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6)


def near(found: np.ndarray, expected: object) -> bool:
    return bool((np.abs(found - np.asarray(expected)) <= ALIKE).all())


def distance(one: tuple, other: tuple) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def shown(numbers: object, digits: int = 4) -> str:
    return f"({', '.join(f'{round(float(number), digits):g}' for number in numbers)})"
