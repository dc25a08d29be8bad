"""CUDA: a blur of its own for each class.

A class has one small random filter, and its images are convolved with it. Not a small
perturbation: about 19 dB on CIFAR-10. Source: Sadasivan et al., CVPR 2023; written from the
formula. Seed 0 draws the published filters.

Deviations: padding of half the filter, so that larger ones keep the image's size; rounding to the
nearest level (the release truncates: `floor`).
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F

from core.errors import ConfigError
from core.imageset import ImageSet, Rounding
from core.ranges import Keys, Range, Weight
from core.run import Run

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config(Keys):
    # pixels a side of the filter; paper: 3 on CIFAR, 9 on ImageNet-100
    kernel: Annotated[int, Range(at_least=1, in_steps_of=2)] = 3
    # p_b, largest weight beside the filter's 1; paper: 0.3 on CIFAR, 0.06 on ImageNet-100
    blur: Weight = 0.3
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down, as the release

    def check_images(self, shape: tuple[int, int]) -> None:
        if self.kernel > min(shape):
            raise ConfigError("kernel", f"{self.kernel} is larger than the images, "
                                        f"{shape[0]}x{shape[1]}")


def bound(config: Config) -> None:
    return None


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` through the filter of its class, divided by its
    maximum."""
    height, width = clean.image_shape
    config.check_images(clean.image_shape)
    filters = torch.from_numpy(draw_filters(clean.num_classes, config, run.seed)).float()

    def rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        weights = filters[clean.labels_at(rows)]
        half = config.kernel // 2
        padded = F.pad(images, (0, 0, half, half, half, half))
        blurred = torch.zeros_like(images)
        for u in range(config.kernel):
            for v in range(config.kernel):
                blurred.addcmul_(weights[:, u, v, None, None, None],
                                 padded[:, u : u + height, v : v + width])
        return blurred.div_(blurred.amax((1, 2, 3), keepdim=True).clamp_(min=1e-12))

    return clean.map_rows(rows, run, rounding=config.rounding)


def draw_filters(classes: int, config: Config, seed: int) -> np.ndarray:
    """(classes, k, k): U(0, blur), and 1 in one place. The release draws a filter for each of three
    channels and uses the first."""
    random, size = np.random.RandomState(seed), config.kernel
    filters = np.empty((classes, size, size))
    for filter_ in filters:
        filter_[:] = random.uniform(0, config.blur, (3, 1, size, size))[0, 0]
        row, column = random.randint(size), random.randint(size)
        filter_[row, column] = 1
    return filters
