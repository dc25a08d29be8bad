"""OPS: one pixel per class.

Every image of a class gets the same pixel set to the same saturated colour: the place and colour
that differ most, and most evenly, from the images of the class. Source: Wu et al., ICLR 2023; code
cychomatica/One-Pixel-Shotcut.

Deviations: any number of classes and any image shape (the release: 10 and square).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from core.errors import UserError
from core.imageset import ImageSet
from core.ranges import Count, Keys
from core.run import Run

VERSION = 1
SMOKE: dict = {}
COLOURS = np.array([[v >> 2 & 1, v >> 1 & 1, v & 1] for v in range(8)])     # {0, 1}^3


@dataclass(frozen=True)
class Config(Keys):
    sparsity: Count = 1             # pixels a class; paper: 1
    # of the pixel. code: mean / sd of |v - x| over images and channels, which made the published
    # sets, and whose colours of one place overwrite each other; paper: equation 2, mean / variance
    # over images of the sum over channels, a place once a class
    formula: Literal["code", "paper"] = "code"


def bound(config: Config) -> tuple[str, float]:
    return "l0", config.sparsity


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` with the pixels of its class."""
    pairs = 8 * clean.image_shape[0] * clean.image_shape[1]
    if clean.num_classes * config.sparsity > pairs:
        raise UserError(f"ops.sparsity: {clean.num_classes} classes of {config.sparsity} pixels "
                        f"each, but there are {pairs} pairs of place and colour")
    if config.formula == "paper" and config.sparsity > pairs // 8:
        raise UserError(f"ops.sparsity: {config.sparsity} pixels a class, but an image has "
                        f"{pairs // 8}: write at most so many")
    places = search(clean, config)

    def pixels(images: torch.Tensor, rows: slice) -> torch.Tensor:
        labels = clean.labels_at(rows)
        for label in labels.unique().tolist():
            mine = (labels == label).nonzero()[:, 0]
            for row, column, colour in places[label]:
                images[mine, row, column] = torch.from_numpy(255 * COLOURS[colour]).byte()
        return images

    return clean.map_pixels(pixels, run)


def search(clean: ImageSet, config: Config) -> dict[int, list[tuple[int, int, int]]]:
    """label -> (row, column, index of COLOURS) of its pixels. A pair of place and colour that an
    earlier class took is not taken again, and with `paper` no place twice by one class."""
    height, width = clean.image_shape
    means, moments = class_moments(clean)
    taken, places = np.zeros(height * width * 8, bool), {}
    for label in np.unique(clean.labels).tolist():
        scores = score(means[label], moments[label], config.formula)        # (H, W, 8)
        scores = np.where(taken, 0, scores.reshape(-1))
        best = np.argsort(scores, kind="stable")[::-1]
        if config.formula == "paper":       # the best colour of a place; of the release's, the last
            best = best[np.sort(np.unique(best // 8, return_index=True)[1])]
        best = best[: config.sparsity]
        taken[best] = True
        places[label] = [(pair // 8 // width, pair // 8 % width, pair % 8)
                         for pair in best.tolist()]
    return places


def class_moments(clean: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """E[x] (K, H, W, 3) and E[x x^T] (K, H, W, 3, 3) over the images of each class, x in [0, 1]:
    sums of integers, exact."""
    shape = (clean.num_classes, *clean.images.shape[1:])
    first, second = torch.zeros(shape, dtype=torch.float64), torch.zeros(
        *shape, 3, dtype=torch.float64)
    for rows in clean.slices():
        images, labels = torch.from_numpy(np.array(clean.images[rows])), clean.labels[rows]
        for label in np.unique(labels).tolist():
            x = images[torch.from_numpy(labels == label)].double().permute(1, 2, 3, 0)
            first[label] += x.sum(3)
            second[label] += x @ x.mT
    counts = np.bincount(clean.labels, minlength=clean.num_classes).clip(1)
    return (first.numpy() / (255 * counts)[:, None, None, None],
            second.numpy() / (255**2 * counts)[:, None, None, None, None])


def score(mean: np.ndarray, moment: np.ndarray, formula: str) -> np.ndarray:
    """How much and how evenly each place (H, W) differs from each of the 8 colours: (H, W, 8).

    |v - x| is x or 1 - x, so that the moments of x give those of all colours.
    """
    sign = 1 - 2 * COLOURS                              # |v - x| = v + sign * x
    of_channel = COLOURS + sign * mean[..., None, :]    # E|v - x|: (H, W, 8, 3)
    if formula == "code":
        square = np.diagonal(moment, axis1=-2, axis2=-1)[..., None, :]
        square = COLOURS + 2 * COLOURS * sign * mean[..., None, :] + square     # E|v - x|^2
        numerator = of_channel.mean(-1)
        spread = np.sqrt(np.maximum(square.mean(-1) - numerator**2, 0))
    else:
        covariance = moment - mean[..., :, None] * mean[..., None, :]
        numerator = of_channel.sum(-1)
        spread = np.maximum(np.einsum("vc,hwcd,vd->hwv", sign, covariance, sign), 0)
    spread[spread < 1e-9] = 0                           # rounding: all its images are equal there
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(numerator / spread, nan=0.0, posinf=np.inf)
