"""Random signs: +-epsilon on every value of every image, independent of the label.

The control that must NOT poison: EM's L-inf budget without its optimisation. Source: none.
"""

from dataclasses import dataclass

import torch

from core.imageset import ImageSet, Rounding
from core.ranges import Keys, LinfRadius
from core.run import Run
from core.streams import BLOCK

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config(Keys):
    epsilon: LinfRadius = 8 / 255   # L-inf budget, [0, 1] units; EM's on CIFAR
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down


def bound(config: Config) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own signs, drawn by block of rows."""
    shape = (BLOCK, *clean.images.shape[1:])

    def rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        for start in range(rows.start, rows.stop, BLOCK):
            bits = torch.randint(0, 2, shape, generator=run.stream("signs", start // BLOCK))
            part = images[start - rows.start : start - rows.start + BLOCK]
            part.add_(bits[: len(part)] * 2.0 - 1, alpha=config.epsilon)
        return images

    return clean.map_rows(rows, run, rounding=config.rounding)
