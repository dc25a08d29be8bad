"""Grey scale: luma copied to three channels. Half of ISS. Source: Liu et al., ICML 2023.

Pillow's integer BT.601 luma, on the stored image, as code liuzrcc/ImageShortcutSqueezing. D-VAE's
code takes 0.2989 R + 0.587 G + 0.114 B of the augmented image and keeps the float, less than a
grey level apart.
"""

from dataclasses import dataclass

import torch

from core.imageset import ImageSet
from core.ranges import Keys
from core.run import Run

VERSION = 1
SMOKE: dict = {}
LUMA = (19595, 38470, 7471)     # 0.299, 0.587, 0.114 in 1/65536, as in Pillow


@dataclass(frozen=True)
class Config(Keys):
    pass


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Replace every image by its luma. Deterministic, label-free, exact on grey levels."""
    weights = torch.tensor(LUMA, dtype=torch.int32)

    def pixels(images: torch.Tensor, rows: slice) -> torch.Tensor:
        luma = (images.int() * weights).sum(dim=3, dtype=torch.int32)
        luma = luma.add_(32768).bitwise_right_shift_(16)
        return luma.to(torch.uint8)[..., None].expand(images.shape)

    return poisoned.map_pixels(pixels, run)
