"""JPEG compression and decoding. Half of ISS. Source: Liu et al., ICML 2023.

Pillow's encoder on the stored image, with its default 4:2:0 chroma, as code
liuzrcc/ImageShortcutSqueezing.
"""

import io
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from core.imageset import ImageSet
from core.ranges import Keys, Range
from core.run import Run

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config(Keys):
    # of Pillow's encoder; ISS, APBench and D-VAE use 10
    quality: Annotated[int, Range(at_least=1, at_most=100)] = 10


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Encode and decode every image. Deterministic, label-free."""

    def pixels(images: torch.Tensor, rows: slice) -> torch.Tensor:
        return torch.from_numpy(np.stack([recode(image, config.quality)
                                          for image in images.numpy()]))

    return poisoned.map_pixels(pixels, run)


def recode(image: np.ndarray, quality: int) -> np.ndarray:
    """One image (H, W, 3) uint8 through JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))
