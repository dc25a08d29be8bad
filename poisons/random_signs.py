"""Random signs: +-epsilon on every value of every image, independent of the label.

The control that must NOT poison: EM's L-inf budget without its optimisation. Source: none.
"""

from dataclasses import dataclass

import torch

from core.imageset import ImageSet, Rounding
from core.ranges import Keys, LinfRadius
from core.run import Run
from core.streams import BLOCK, by_block
from poisons.noise import lifted

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config(Keys):
    epsilon: LinfRadius = 8 / 255   # L-inf budget, [0, 1] units; EM's on CIFAR
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down


def bound(config: Config) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own signs."""
    shape = (BLOCK, *clean.images.shape[1:])

    def signed(images: torch.Tensor, rows: slice) -> torch.Tensor:
        bits = by_block(rows, lambda block: torch.randint(
            0, 2, shape, generator=run.stream("signs", block)))
        return lifted(images.add_(bits * 2.0 - 1, alpha=config.epsilon), config.rounding)

    return clean.map_rows(signed, run, rounding=config.rounding)
