"""RSK + FF: sharpen by a random kernel, then keep the low frequencies, anew in every epoch.

Before crop and flip, training images alone. The 3x3 kernel is drawn for each image: N(2.5, 0.1) in
the middle, about -(middle - 1) / 4 at its four neighbours; `spread: 0` is the fixed SSK. Of the
result's DCT the lowest 30 % of rows and columns stay. Made for attacks that convolve, such as CUDA.
Source: Kim and Sandoval-Segura, arXiv 2411.01742; code aseriesof-tubes/RSK, whose training is
`preset=released`. purifiers/sharpen_lowpass.py does it once.

The kernel has no padding, so that a 32x32 image becomes one of 30x30. It lies in a black frame of a
pixel here, so that `crop_padding: 3` gives the release's crops: of 32x32, of the 30x30 image with 4
black pixels a side.

Deviations: none of the rotation by up to 15 degrees that the release adds on CIFAR-100.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from core.filters import check_kept, sharpen_and_low_pass
from core.imageset import ImageSet
from core.ranges import Positive, PositiveOrZero, Share
from core.run import Run
from core.training import Result
from learners import standard

VERSION = 1
SMOKE = standard.SMOKE


@dataclass(frozen=True)
class Config(standard.Config):
    centre: Positive = 2.5          # mean of the kernel's middle; release: 2.5
    # of every weight of the kernel, which is drawn; 0: SSK, the same for all; release: 0.1
    spread: PositiveOrZero = 0.1
    # of the rows and of the columns of the DCT, the lowest; 1: sharpen only; release: 0.3
    keep: Share = 0.3

    def check_images(self, shape: tuple[int, int]) -> None:
        super().check_images(shape)
        check_kept(self.keep, (shape[0] - 2, shape[1] - 2))


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on filtered images of `train` and score it on the clean `test`."""

    def before_crop(images: torch.Tensor, step: int) -> torch.Tensor:
        drawn = torch.randn(len(images), 5, generator=run.stream("kernels", step))
        left = sharpen_and_low_pass(images.float() / 255, drawn, centre=config.centre,
                                    spread=config.spread, keep=config.keep)
        return F.pad(255 * left, (0, 0, 1, 1, 1, 1))

    return standard.fit(train, test, config, run, before_crop=before_crop)
