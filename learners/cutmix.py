"""Cutmix: a box of every image is filled from another, whose label gets the box's share.

After crop and flip; test images are not mixed. Source: Yun et al., ICCV 2019; as a countermeasure,
code HanxunH/Unlearnable-Examples (EM), and the same in those of ISS and AVATAR: a second box is
taken to cover what the first left and what it brought alike. kornia's, in APBench and BridgePure,
is the preset `kornia`; that of psandovalsegura/learn-from-unlearnable, drawn once for a batch, is
`batch`.

Deviations: partners come from the minibatch, a new order each round, not from the whole set.
kornia 0.6, which APBench pins, puts the boxes of a batch at one relative place and never covers the
last row and column; as in its 0.9 each has a place of its own here.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.boxes import inside
from core.device import to_device
from core.imageset import ImageSet
from core.run import Run
from core.training import Result
from learners import mixing, standard

VERSION = 1
SMOKE = standard.SMOKE


@dataclass(frozen=True)
class Config(mixing.Config):
    # clipped: about any pixel, and the rim cuts it off, as EM's release; inside: whole, as kornia
    box: Literal["clipped", "inside"] = "clipped"


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on images with foreign boxes and score it on the clean `test`."""

    def mix(images, partners, kept, rng):
        shape = images.shape[2:]
        drawn = draw(kept, shape, config.box, rng)
        foreign = inside(*(to_device(box, images.device) for box in drawn), shape)
        return partners.where(foreign, images), 1 - foreign.float().mean((2, 3))

    return mixing.fit(mix, train, test, config, run)


def draw(kept: np.ndarray, shape: tuple[int, int], box: str, rng: np.random.Generator
         ) -> tuple[np.ndarray, np.ndarray]:
    """Corners and sides (n, 2) of boxes that leave about the shares `kept` (n,) of images of this
    shape: the side is a whole number, in EM's release an even one."""
    sides = (np.sqrt(1 - kept)[:, None] * shape).astype(np.int64)
    if box == "inside":
        return rng.integers(shape - sides + 1), sides
    return rng.integers(shape, size=sides.shape) - sides // 2, sides // 2 * 2
