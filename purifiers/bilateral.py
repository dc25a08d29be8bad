"""Bilateral filter: a mean of each pixel's neighbourhood that counts similar colours most.

One of the low-pass filters that REM was tried against: OpenCV's with a diameter of 9 and both
sigmas 75, so that the distance hardly counts. A pixel's weight falls as a Gaussian of its distance
and as one of its colour's (the sum over the channels of the differences); borders are mirrored.
Source: Fu et al., ICLR 2022; code fshp971/robust-unlearnable-examples; written from the formula.

Deviations: none known.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F

from core.filters import check_mirrored
from core.imageset import ImageSet
from core.ranges import Keys, Positive, Range, StepSize
from core.run import Run

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config(Keys):
    # pixels across the round neighbourhood; REM: 9
    diameter: Annotated[int, Range(at_least=1, in_steps_of=2)] = 9
    sigma_colour: StepSize = 75 / 255       # in [0, 1] units, of the channels' sum; REM: 75/255
    sigma_space: Positive = 75.0            # in pixels; REM: 75

    def check_images(self, shape: tuple[int, int]) -> None:
        check_mirrored("diameter", self.diameter, shape)


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Replace every pixel by the weighted mean around it. Deterministic, label-free."""
    config.check_images(poisoned.image_shape)
    (height, width), radius = poisoned.image_shape, config.diameter // 2
    steps = range(-radius, radius + 1)
    around = [(down, right) for down in steps for right in steps
              if down**2 + right**2 <= radius**2]

    def rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        images = images.permute(0, 3, 1, 2)
        padded = F.pad(images, [radius] * 4, mode="reflect")
        total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
        for down, right in around:
            moved = padded[:, :, radius + down :, radius + right :][:, :, :height, :width]
            colour = (moved - images).abs().sum(1, keepdim=True)
            weight = torch.exp(-(down**2 + right**2) / (2 * config.sigma_space**2)
                               - colour.square() / (2 * config.sigma_colour**2))
            total += weight * moved
            weights += weight
        return (total / weights).permute(0, 2, 3, 1)

    return poisoned.map_rows(rows, run)
