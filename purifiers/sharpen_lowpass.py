"""RSK + FF, once: sharpen by a random kernel, then keep the low frequencies.

The 3x3 kernel is drawn for each image: N(2.5, 0.1) in the middle, about -(middle - 1) / 4 at its
four neighbours; `spread: 0` is the fixed SSK. Of the result's DCT the lowest 30 % of rows and
columns stay. Made for attacks that convolve, such as CUDA. Source: Kim and Sandoval-Segura,
arXiv 2411.01742; code aseriesof-tubes/RSK.

Deviations: the release draws a new kernel in every epoch: that is learners/sharpen_lowpass.py. Here
every image is sharpened once, and stored in grey levels, where the release keeps floats. Its kernel
has no padding, so that it trains on crops of 30x30 images; a set keeps its size here: the 30x30
image lies in a black frame of a pixel, which with `crop_padding: 3` gives the release's crops, or
(`border: reflect`) the border is mirrored first, and the DCT is that of 32x32.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from core.filters import check_kept, sharpen_and_low_pass
from core.imageset import ImageSet, Rounding
from core.ranges import Keys, Positive, PositiveOrZero, Share
from core.run import Run
from core.streams import BLOCK, by_block

VERSION = 1
SMOKE = {"keep": 0.5}           # of 8x8 pixels the default leaves one row


@dataclass(frozen=True)
class Config(Keys):
    centre: Positive = 2.5          # mean of the kernel's middle; release: 2.5
    # of every weight of the kernel, which is drawn; 0: SSK, the same for all; release: 0.1
    spread: PositiveOrZero = 0.1
    # of the rows and of the columns of the DCT, the lowest; 1: sharpen only; release: 0.3
    keep: Share = 0.3
    # the pixel that the kernel takes off each side: black around what is left, as the release's
    # crops, or mirrored before
    border: Literal["black", "reflect"] = "black"
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down

    def check_images(self, shape: tuple[int, int]) -> None:
        frame = 0 if self.border == "reflect" else 2
        check_kept(self.keep, (shape[0] - frame, shape[1] - frame))


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Sharpen every image by a kernel of its own, and cut off what is high. Label-free."""
    config.check_images(poisoned.image_shape)

    def rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        drawn = by_block(rows, lambda block: torch.randn(
            BLOCK, 5, generator=run.stream("kernels", block)))
        if config.border == "reflect":
            images = F.pad(images.permute(0, 3, 1, 2), [1] * 4, mode="reflect").permute(0, 2, 3, 1)
        left = sharpen_and_low_pass(images, drawn, centre=config.centre, spread=config.spread,
                                    keep=config.keep)
        return left if config.border == "reflect" else F.pad(left, (0, 0, 1, 1, 1, 1))

    return poisoned.map_rows(rows, run, rounding=config.rounding)
