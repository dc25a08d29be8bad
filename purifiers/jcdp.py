"""JCDP: diffusion purification held to the poisoned image by a joint condition.

As DDPM purification in a few short passes, but every reverse step's mean is moved down a distance
to the poisoned image noised to the same step: in pixels (MSE), in what a network perceives (LPIPS),
or both. Source: Jiang et al., ACM MM 2023, algorithm 1 and equations 10-20, and code jiangw-0/
LE_JCDP.

Deviations: `strength` is that of one image, whatever the batch: the released code's mean over its
500 is 1/500; x starts at step t_star - 1, where the first network call is (released: t_star);
pixels are rounded (released: `rounding: floor`); on a GPU the network computes in bf16, which moves
6 % of the pixels by a grey level (released: `precision: fp32`). At 224x224 the release resizes to
its prior's 256x256 and back and is held to the image without noise, by MSE or SSIM alone
(`preset=purify_imagenet`, without SSIM); tiles (`fit.py`) are ours.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from core.checkpoint import Checkpoint
from core.config import Place
from core.distance import Net, build_lpips, check_lpips
from core.errors import UserError
from core.imageset import ImageSet
from core.ranges import Count, CountOrZero, PositiveOrZero
from core.run import Run
from purifiers import diffusion, walk
from purifiers.diffusion import Distance, Jump, Schedule
from purifiers.walk import any_size

__all__ = ["Config", "any_size", "check", "purify"]

VERSION = 1
CHECKPOINT = "ddpm"             # whose checkpoints it applies
PERCEPTUAL_PULL = 50            # 4 x 20 at strength 1 has 47 at most
PATHS = ("lpips_weights",)
SMOKE = {"t_star": 2, "start_index": None, "passes": 1, "evaluations": 2, "threshold": 1,
         "lpips_net": "squeeze", "lpips_resize": 32}


@dataclass(frozen=True)
class Config(walk.Passes):
    """Keys under `jcdp`, for purify.py."""

    t_star: Count = 20              # steps of noise, of the prior's T; release: 20
    passes: Count = 4               # M, to t_star and back; release: 4
    # joint: both distances at every step, the paper's equation 16; switch: MSE from `threshold` up,
    # LPIPS below, the release; none: as DDPM
    mode: Literal["switch", "joint", "mse", "perceptual", "none"] = "switch"
    threshold: CountOrZero = 11     # step from which `switch` takes MSE; release: "i > 10"
    # lambda, per image; release: 1/500, its mean over a batch; more costs accuracy here
    # (docs/evidence/diffusion.md)
    strength: PositiveOrZero = 1 / 500
    # of the image that x_t is held to: fresh at every step, as the release; shared: the pass's own;
    # none: the image as it is scaled in x_t; image: not even scaled, as the release at 224x224
    target_noise: Literal["fresh", "shared", "none", "image"] = "fresh"
    lpips_net: Net = "alex"         # the trunk of LPIPS; release: alex; squeeze needs no download
    lpips_weights: Place | None = None  # file of the trunk's weights; null: torchvision's
    # pixels a side that images are enlarged to for the trunk; null: not, as the release
    lpips_resize: Count | None = None

    def terms(self, t: int) -> tuple[bool, bool]:
        """Whether step t meets the squared error and the perceptual distance."""
        if self.mode == "switch":
            return t >= self.threshold, t < self.threshold
        return self.mode in ("joint", "mse"), self.mode in ("joint", "perceptual")

    @property
    def guides(self) -> bool:
        return self.mode != "none" and self.strength > 0

    @property
    def perceives(self) -> bool:
        """Whether a step asks LPIPS."""
        return self.guides and any(self.terms(t)[1] for t in self.visited())


def check(config: Config, checkpoint: Checkpoint, shape: tuple[int, int]) -> None:
    """Raise UserError for what `purify` would refuse, before a table trains its prior."""
    walk.check(config, checkpoint, "jcdp", shape)
    if config.perceives:
        check_lpips(config.lpips_net, config.lpips_weights, config.lpips_resize,
                    walk.sees(config, checkpoint, shape))


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Noise and denoise every image `config.passes` times with the prior of `run.checkpoint`,
    guided to stay near it."""
    prior = walk.load_prior(poisoned, config, run)
    guide = None
    if config.guides:
        shape = walk.sees(config, run.checkpoint, poisoned.image_shape)
        check_strength(config.jumps(prior.schedule), shape, config, run)
        guide = make_guide(prior.schedule, config, perceptual_distance(shape, config, run))
    return walk.walk(poisoned, prior, config, run, guide)


def perceptual_distance(shape: tuple[int, int], config: Config, run: Run) -> Distance | None:
    """LPIPS for images of this (height, width), if a step asks it."""
    if not config.perceives:
        return None
    return build_lpips(config.lpips_net, config.lpips_weights, config.lpips_resize, shape,
                       run.device.torch)


def make_guide(schedule: Schedule, config: Config, perceptual: Distance | None) -> walk.Guide:
    """The shift of each step's mean, Sigma g, with g the gradient of the log-likelihoods of the
    noised target (equations 14-20)."""

    def guide(x: torch.Tensor, y: torch.Tensor, jump: Jump, draw: walk.Draw) -> torch.Tensor:
        if config.target_noise == "image":
            target = y
        elif config.target_noise == "none":
            target = schedule.abar[jump.t].sqrt().item() * y
        else:
            shared = config.target_noise == "shared"
            noise = draw("forward") if shared else draw("target", jump.t)
            target = schedule.noised(y, jump.t, noise)
        by_pixels, by_perception = config.terms(jump.t)
        shift = 0.0
        if by_pixels:
            shift = shift + diffusion.mse_shift(x, target, jump, config.strength)
        if by_perception:
            shift = shift + diffusion.distance_shift(x, target, jump, config.strength, perceptual)
        return shift

    return guide


def check_strength(jumps: list[Jump], shape: tuple[int, int], config: Config, run: Run) -> None:
    """Raise UserError where a step would overshoot its target in pixels: kappa >= 1. In perception
    there is no such limit to compute: say where steps are longer than any that was seen to work."""
    elements = 3 * shape[0] * shape[1]
    kappas = [diffusion.kappa(jump, config.strength, elements)
              for jump in jumps if config.terms(jump.t)[0]]
    if kappas and max(kappas) >= 1:
        largest = config.strength / max(kappas)
        raise UserError(f"jcdp.strength: {config.strength:g} overshoots (kappa {max(kappas):.2f}); "
                        f"with these steps it must be below {largest:.3g}")
    longest = max((diffusion.pull(jump, config.strength) for jump in jumps
                   if config.terms(jump.t)[1]), default=0)
    if longest > PERCEPTUAL_PULL:
        run.say(f"jcdp.strength: {config.strength:g} probably overshoots in the perceptual steps; "
                f"below {config.strength * PERCEPTUAL_PULL / longest:.2g} it should not")
