"""Blur: a Gaussian or a mean of each pixel's neighbourhood.

Borders are mirrored, the pixel at the border not repeated. Source: the Gaussian filter of ISS (Liu
et al., ICML 2023), APBench and AVATAR, 3x3 with sigma 0.1: its weights are (2e-22, 1, 2e-22), so
that **it changes nothing**, and the run says so. Sigma 0.5 and 1 are presets that do blur. REM's
low-pass filters (Fu et al., ICLR 2022) are presets too: the 3x3 mean, and OpenCV's Gaussian without
a sigma, which is (1, 2, 1) / 4 along each axis.

Deviations: none known.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from core.filters import check_mirrored
from core.imageset import ImageSet
from core.ranges import Keys, Positive, Range
from core.run import Run

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config(Keys):
    shape: Literal["gaussian", "mean"] = "gaussian"     # of the weights
    # pixels a side; ISS and REM: 3
    kernel: Annotated[int, Range(at_least=1, in_steps_of=2)] = 3
    # of the Gaussian, in pixels; null: binomial weights, as OpenCV's up to kernel 5; ISS: 0.1
    sigma: Positive | None = 0.1

    def check_images(self, shape: tuple[int, int]) -> None:
        check_mirrored("kernel", self.kernel, shape)


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Replace every pixel by the weighted mean around it. Deterministic, label-free."""
    config.check_images(poisoned.image_shape)
    half = config.kernel // 2
    weights = weights_of(config)
    beside = 1 - weights[half].item() ** 2          # of the 2-D kernel, all but its middle
    if 255 * beside < 0.5:
        run.say(f"blur: the pixels beside one weigh {beside:.0e} in all, less than half a grey "
                "level: this blur changes nothing; blur.sigma=0.5 or 1 does")
    run.log_once("weights", along_an_axis=weights.tolist(), identity=255 * beside < 0.5)
    kernel = torch.outer(weights, weights).float().expand(3, 1, -1, -1)

    def rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        padded = F.pad(images.permute(0, 3, 1, 2), [half] * 4, mode="reflect")
        return F.conv2d(padded, kernel, groups=3).permute(0, 2, 3, 1)

    return poisoned.map_rows(rows, run)


def weights_of(config: Config) -> torch.Tensor:
    """(kernel,) float64 along one axis, of sum 1; the two axes' outer product is the kernel."""
    if config.shape == "mean":
        weights = torch.ones(config.kernel, dtype=torch.float64)
    elif config.sigma is None:
        weights = torch.tensor([math.comb(config.kernel - 1, i) for i in range(config.kernel)],
                               dtype=torch.float64)
    else:
        away = torch.arange(config.kernel, dtype=torch.float64) - config.kernel // 2
        weights = torch.exp(-away.square() / (2 * config.sigma**2))
    return weights / weights.sum()
