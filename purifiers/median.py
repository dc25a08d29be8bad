"""Median: every value becomes the middle one of its neighbourhood, channel by channel.

One of the low-pass filters that REM was tried against: 3x3, OpenCV's, on grey levels, the border
repeated. Source: Fu et al., ICLR 2022; code fshp971/robust-unlearnable-examples.

Deviations: none known.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from core.imageset import ImageSet
from core.ranges import Keys, Range
from core.run import Run
from core.streams import BLOCK

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config(Keys):
    # pixels a side of the neighbourhood; REM: 3
    kernel: Annotated[int, Range(at_least=1, in_steps_of=2)] = 3


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Replace every value by its neighbourhood's median. Deterministic, label-free, exact."""
    height, width = poisoned.image_shape
    steps = torch.arange(config.kernel) - config.kernel // 2
    rows_of, columns_of = ((torch.arange(side)[:, None] + steps).clamp(0, side - 1)
                           for side in (height, width))             # (side, kernel)

    def pixels(images: torch.Tensor, rows: slice) -> torch.Tensor:
        windows = images[:, rows_of[:, None, :, None], columns_of[None, :, None, :]]
        return windows.flatten(3, 4).median(3).values               # of (n, H, W, kernel^2, 3)

    return poisoned.map_pixels(pixels, run, slice_rows=BLOCK)
