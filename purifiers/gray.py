"""Grey scale: luma copied to three channels. Half of ISS. Source: Liu et al., ICML 2023.

Pillow's integer BT.601 luma, on the stored image, as code liuzrcc/ImageShortcutSqueezing. D-VAE's
code takes 0.2989 R + 0.587 G + 0.114 B of the augmented image and keeps the float, less than a
grey level apart.
"""

from dataclasses import dataclass

import torch

from core.imageset import ImageSet
from core.luma import luma
from core.ranges import Keys
from core.run import Run

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config(Keys):
    pass


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Replace every image by its luma. Deterministic, label-free, exact on grey levels."""

    def pixels(images: torch.Tensor, rows: slice) -> torch.Tensor:
        return luma(images).to(torch.uint8).expand(images.shape)

    return poisoned.map_pixels(pixels, run)
