"""Corruption compensation: grey scale for some images and noise on all, anew in every epoch.

After crop and flip; test images are left as they are. Source: ECLIPSE, Wang et al., ESORICS 2024;
code CGCL-codes/ECLIPSE, where it follows the purification. DUNE's colour noise (code
wxldragon/DUNE, colorGaussian) is the preset `dune`. Both train 80 epochs at a constant rate
(`protocol=configs/learners/ecl80.yaml`).
"""

from dataclasses import dataclass

import torch

from core.device import to_device
from core.imageset import ImageSet, quantize, to_floats
from core.luma import luma
from core.ranges import Levels, Weight
from core.run import Run
from core.training import Result
from learners import standard

VERSION = 1
SMOKE = standard.SMOKE


@dataclass(frozen=True)
class Config(standard.Config):
    # probability that an image loses its colour; ECLIPSE's code: 0.4
    gray: Weight = 0.4
    # most that a channel is shifted, in [0, 1] units, drawn for each image; DUNE's code: 8/255
    shift: Levels = 0.0
    # deviation of normal noise, in [0, 1] units; ECLIPSE's code: 0.05
    noise: Levels = 0.05
    # whether each image draws a deviation from 0 to `noise`; DUNE's code: it does
    noise_varies: bool = False
    whole_levels: bool = True       # down to grey levels at the end; ECLIPSE's code: so


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on corrupted images of `train` and score it on the clean `test`."""

    def transform(images, labels, step):
        host, count = run.stream("corrupted", step), len(images)
        gray = torch.rand(count, 1, 1, 1, generator=host) < config.gray
        shift = (2 * torch.rand(count, 1, 1, 3, generator=host) - 1) * config.shift
        deviation = torch.rand(count, 1, 1, 1, generator=host) if config.noise_varies else 1.0
        deviation = torch.as_tensor(config.noise * deviation)
        device = images.device
        noise = torch.randn(count, *images.shape[2:], 3, device=device,
                            generator=run.stream("corrupted/noise", step, device))
        corrupt = corrupted(images.permute(0, 2, 3, 1), to_device(gray, device),
                            to_device(shift, device), noise * to_device(deviation, device))
        if config.whole_levels:
            return to_floats(quantize(corrupt, "floor")), labels
        return corrupt.permute(0, 3, 1, 2), labels

    return standard.fit(train, test, config, run, transform=transform)


def corrupted(images: torch.Tensor, gray: torch.Tensor, shift: torch.Tensor, noise: torch.Tensor
              ) -> torch.Tensor:
    """(B, H, W, 3) in [0, 1]: Pillow's luma where `gray` (B, 1, 1, 1), then each channel moved by
    `shift` (B, 1, 1, 3) and clipped, then `noise` added and clipped."""
    grey = luma((images * 255).round_().to(torch.uint8)) / 255
    return (torch.where(gray, grey, images) + shift).clamp_(0, 1).add_(noise).clamp_(0, 1)
