"""Noise: random noise of its own for every value, added once.

Source: Huang et al., ICLR 2021, code HanxunH/Unlearnable-Examples (add_uniform_noise): U(0, 8)
grey levels, never negative, added to the stored images before training, the same in every epoch.
`law: gaussian` is N(0, scale), at ECLIPSE's 0.05 as a preset (which ECLIPSE draws anew in every
epoch; learners/corrupted.py).

Deviations: rounding to the nearest level (the release truncates: `rounding: floor`).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from core.imageset import ImageSet, Rounding
from core.ranges import Keys, StepSize
from core.run import Run
from core.streams import BLOCK, by_block

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config(Keys):
    # U(0, scale), which only brightens, or N(0, scale); release: uniform
    law: Literal["uniform", "gaussian"] = "uniform"
    scale: StepSize = 8 / 255       # in [0, 1] units; release: U(0, 8) grey levels
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down, as the release


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Add noise to every value and clip. Label-free; a row's noise is its own."""
    draw = torch.rand if config.law == "uniform" else torch.randn
    shape = poisoned.images.shape[1:]

    def rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        noise = by_block(rows, lambda block: draw(
            BLOCK, *shape, generator=run.stream("noise", block)))
        return images.add_(noise, alpha=config.scale)

    return poisoned.map_rows(rows, run, rounding=config.rounding)
