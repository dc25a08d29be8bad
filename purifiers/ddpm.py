"""DDPM, as AVATAR: noise an image, denoise it with a diffusion model of unprotected ones.

The prior (`prior.py`) is a DDPM that train_ddpm.py trained on images without labels: the test
split, a reference split, another data set. A pass (`walk.py`) takes the image to step t_star and
back; what the noise drowns comes back as the prior expects it, the perturbation does not. By
default one unguided pass of 100 steps: AVATAR's setting. Source: Ho et al. 2020; Dolatabadi et al.
2023, code hmdolatabadi/AVATAR.

Deviations: AVATAR's larger network is replaced by Ho et al.'s; x_0 is clamped, the last step draws
no noise and pixels are rounded (released: `sampler: euler_maruyama`, `rounding: wrap`). On a GPU
the network computes in bf16 (released: `precision: fp32`). Of the training: see `prior.py`; of
images of another size than the prior's: `fit.py`, whose tiles no source has.
"""

from dataclasses import dataclass
from typing import Literal

from core.checkpoint import Checkpoint
from core.imageset import ImageSet
from core.run import Run
from purifiers import walk
from purifiers.prior import TrainConfig, train
from purifiers.walk import any_size

__all__ = ["Config", "TrainConfig", "any_size", "check", "purify", "train"]

VERSION = 1
TRAINED_BY = "train_ddpm"
PATHS = ("init_from",)
SMOKE = {"train.width": 32, "train.multipliers": [1, 1], "train.blocks": 1, "train.attention": [],
         "train.steps": 4, "train.batch_size": 16, "train.sample_every": 4, "t_star": 2,
         "start_index": None, "evaluations": 2}


@dataclass(frozen=True)
class Config(walk.Passes):
    """Keys under `ddpm`, for purify.py."""

    # ancestral asks the network at every step, subsampled and ddim at `evaluations` of them;
    # euler_maruyama: AVATAR's release
    sampler: Literal["ancestral", "subsampled", "ddim", "euler_maruyama"] = "ancestral"


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Noise every image and denoise it with the prior of `run.checkpoint`."""
    prior = walk.load_prior(poisoned, config, run)
    return walk.walk(poisoned, prior, config, run)


def check(config: Config, checkpoint: Checkpoint, shape: tuple[int, int]) -> None:
    """Raise UserError for what `purify` would refuse, before a table trains its prior."""
    walk.check(config, checkpoint, "ddpm", shape)
