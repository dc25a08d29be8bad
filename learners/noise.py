"""Uniform noise on the training images, drawn once: the network sees the same in every epoch.

Test images are left as they are. Source: EM, Huang et al., ICLR 2021, and its code
HanxunH/Unlearnable-Examples: U(0, 8) grey levels, so that images become brighter, down to whole
ones. `once: false` draws anew at each step, after crop and flip, and keeps fractions.

Deviations: the noise is added to the stored image; EM's code adds it to image and perturbation
before these are rounded, on CIFAR-100 in the place of the perturbation. The noisy set is kept in
memory.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from core.imageset import ImageSet, quantize
from core.ranges import LinfRadius
from core.run import Run
from core.streams import BLOCK
from core.training import Result, train_classifier
from learners import standard

VERSION = 1
SMOKE = standard.SMOKE


@dataclass(frozen=True)
class Config(standard.Config):
    amount: LinfRadius = 8 / 255    # the most that is added, in [0, 1] units; EM's code: 8 levels
    once: bool = True               # to the stored set, as EM's code; or anew at each step


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on noisy images of `train` and score it on the clean `test`."""

    def transform(images, labels, step):
        drawn = torch.empty_like(images).uniform_(
            generator=run.stream("noise", step, images.device))
        return drawn.mul_(config.amount).add_(images).clamp_(0, 1), labels

    network = standard.build(train, config, run)
    if config.once:
        train, transform = noisy(train, config.amount, run), None
    _, result = train_classifier(network, train, test, config, run, transform=transform)
    return result


def noisy(train: ImageSet, amount: float, run: Run) -> ImageSet:
    """The set with its noise: uint8, in memory."""
    images = np.empty(train.images.shape, np.uint8)
    for number, start in enumerate(range(0, len(images), BLOCK)):
        rows = slice(start, start + BLOCK)
        floats = torch.from_numpy(train.images[rows] / np.float32(255))
        drawn = torch.rand(floats.shape, generator=run.stream("noise", number))
        images[rows] = quantize(floats + amount * drawn, "floor")
    return dataclasses.replace(train, images=images)
