"""Uniform noise on the training images, drawn once: the network sees the same in every epoch.

Test images are left as they are. Source: EM, Huang et al., ICLR 2021, and its code
HanxunH/Unlearnable-Examples: U(0, 8) grey levels, so that images become brighter, down to whole
ones. `once: false` draws anew at each step, after crop and flip, and keeps fractions.

Deviations: the noise is added to the stored image; EM's code adds it to image and perturbation
before these are rounded, on CIFAR-100 in the place of the perturbation. The noisy set is a file in
the run's folder while it trains.
"""

import dataclasses
from dataclasses import dataclass

import torch

from core.imageset import ImageSet
from core.ranges import LinfRadius
from core.run import Run
from core.streams import BLOCK, by_block
from core.training import Result
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

    if config.once:
        return standard.fit(noisy(train, config.amount, run), test, config, run)
    return standard.fit(train, test, config, run, transform=transform)


def noisy(train: ImageSet, amount: float, run: Run) -> ImageSet:
    """The set with its noise, in the run's state folder: it does not outlive the run."""

    def add(images: torch.Tensor, rows: slice) -> torch.Tensor:
        return images.add_(amount * by_block(rows, lambda block: torch.rand(
            BLOCK, *images.shape[1:], generator=run.stream("noise", block))))

    noisy = train.map_rows(add, run, rounding="floor", file="state/noisy.npy")
    return dataclasses.replace(train, images=noisy.images)
