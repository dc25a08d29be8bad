"""SEM: stable error-minimising noise.

REM with one change that makes it nine times cheaper: inside the noise's descent a uniform draw
takes the place of the adversary. The surrogate is still adversarially trained. Source: Liu et al.,
AAAI 2024; code liuyixin-louis/Stable-Unlearnable-Example.

Deviations: as REM's.
"""

from dataclasses import dataclass

import torch

from core.imageset import ImageSet
from core.run import Run
from poisons import rem
from poisons.frozen import FrozenSurrogate

VERSION = rem.VERSION           # its code is REM's
SMOKE = rem.SMOKE
bound = rem.bound


@dataclass(frozen=True)
class Config(rem.Config):
    """Keys under `sem`: REM's, with REM's constants."""


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own noise, in whole grey levels."""
    return rem.min_min_max(clean, config, run, inner=random_neighbour)


def random_neighbour(x: torch.Tensor, labels: torch.Tensor, frozen: FrozenSurrogate, config: Config,
                     noise: torch.Tensor) -> torch.Tensor:
    """In the adversary's place: images anywhere within rho_a of x, by uniform `noise` in [0, 1).
    """
    return (x + (2 * noise - 1) * config.adversary).clamp_(0, 1)
