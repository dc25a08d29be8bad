"""Cutout: a black square in every image, at another place each time.

After crop and flip; test images have none. Source: DeVries and Taylor, arXiv 1708.04552; as a
countermeasure, code HanxunH/Unlearnable-Examples (EM), and the same in those of ISS and AVATAR.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from core.boxes import inside
from core.device import to_device
from core.errors import ConfigError
from core.imageset import ImageSet
from core.ranges import Range
from core.run import Run
from core.training import Result
from learners import standard

VERSION = 1
SMOKE = standard.SMOKE


@dataclass(frozen=True)
class Config(standard.Config):
    # pixels a side; EM's release: 16. The centre is any pixel, and the rim cuts the square off
    size: Annotated[int, Range(at_least=2, in_steps_of=2)] = 16

    def check_images(self, shape: tuple[int, int]) -> None:
        super().check_images(shape)
        if self.size > min(shape):
            raise ConfigError("size", f"{self.size} is larger than the images, "
                                      f"{shape[0]}x{shape[1]}")


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on images of `train` with holes and score it on the clean `test`."""

    def transform(images, labels, step):
        shape = images.shape[2:]
        corners = run.rng("cutout", step).integers(shape, size=(len(images), 2)) - config.size // 2
        corners = to_device(corners, images.device)
        hole = inside(corners, torch.full_like(corners, config.size), shape)
        return images.where(~hole, 0), labels

    return standard.fit(train, test, config, run, transform=transform)
