"""COIN: every pixel is read at a random place near its own, anew in every epoch.

After crop and flip each image is warped: a pixel's place is moved by U(-a, a) pixels down and
across, bilinear, one draw for its three channels; the result is in whole grey levels. Test images
are not. Made for attacks that convolve, such as CUDA. Source: Li et al., AAAI 2025; code
wxldragon/COIN, whose schedule is `protocol=configs/learners/ecl80.yaml`. purifiers/coin.py warps
once.

Deviations: none known.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from core.filters import COIN_REACH, warp
from core.imageset import ImageSet, Rounding, quantize, to_floats
from core.ranges import Range
from core.run import Run
from core.training import Result
from learners import standard

VERSION = 1
SMOKE = standard.SMOKE


@dataclass(frozen=True)
class Config(standard.Config):
    # 1 to 7: a is 0.8, 1.2, 1.6, 2, 2.4, 2.8, 3.2 pixels; release: 4
    severity: Annotated[int, Range(at_least=1, at_most=7)] = 4
    rounding: Rounding = "floor"    # to whole grey levels: down, as the release, or nearest


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on warped images of `train` and score it on the clean `test`."""
    reach = COIN_REACH[config.severity - 1]

    def transform(images, labels, step):
        drawn = torch.rand(len(images), 2, *images.shape[2:], device=images.device,
                           generator=run.stream("coin", step, images.device))
        warped = warp(images.permute(0, 2, 3, 1), (2 * drawn - 1) * reach)
        return to_floats(quantize(warped, config.rounding)), labels

    return standard.fit(train, test, config, run, transform=transform)
