"""COIN, once: every pixel is read at a random place near its own.

The place is moved by U(-a, a) pixels down and across, drawn for each pixel, the same for its three
channels; bilinear. Made for attacks that convolve, such as CUDA. Source: Li et al., AAAI 2025; code
wxldragon/COIN.

Deviations: COIN draws a new warp in every epoch, after crop and flip: that is learners/coin.py.
Here every image is warped once, before them.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from core.filters import COIN_REACH, warp
from core.imageset import ImageSet, Rounding
from core.ranges import Keys, Range
from core.run import Run
from core.streams import BLOCK, by_block

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config(Keys):
    # 1 to 7: a is 0.8, 1.2, 1.6, 2, 2.4, 2.8, 3.2 pixels; release: 4
    severity: Annotated[int, Range(at_least=1, at_most=7)] = 4
    rounding: Rounding = "floor"    # to whole grey levels: down, as the release, or nearest


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Warp every image, by a draw of its own. Label-free."""
    reach, (height, width) = COIN_REACH[config.severity - 1], poisoned.image_shape

    def rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        drawn = by_block(rows, lambda block: torch.rand(
            BLOCK, 2, height, width, generator=run.stream("coin", block)))
        return warp(images, (2 * drawn - 1) * reach)

    return poisoned.map_rows(rows, run, rounding=config.rounding)
