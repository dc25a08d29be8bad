"""The walk of the diffusion purifiers: an image is noised to step t_star and denoised step by step.

    x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise               there, t = t* - 1 (the first is 0)
    x_t-1 ~ N(mu(x_t, eps(x_t, t)) + shift, Sigma_t)            and back, for t = t* - 1 ... 0

What the noise drowns comes back as the prior expects it. The shift is a guide's, none with DDPM.
Source: Ho et al. 2020, algorithm 2; with a guide Jiang et al. 2023, algorithm 1. Deviations: those
of the purifiers that walk (`ddpm`, `jcdp`).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from core.checkpoint import Checkpoint
from core.config import added, rebuild
from core.distributed import note
from core.errors import ConfigError, UserError
from core.imageset import ImageSet
from core.ranges import Count, CountOrZero, Keys
from core.run import Run
from core.streams import BLOCK, by_block
from purifiers import diffusion, fit
from purifiers.diffusion import Jump, Network, Schedule
from purifiers.prior import Prior, TrainConfig, load, prior_side

PURIFY_BATCH = {"cpu": BLOCK, "cuda": 4 * BLOCK}    # rows a network pass, up to 32x32

# (kind, t) -> N(0, 1) noise for the rows at hand, at one step of one pass
Draw = Callable[..., torch.Tensor]
# (x_t, y, jump, draw) -> what to add to the mean of x_to; y is the image to purify, in [-1, 1]
Guide = Callable[[torch.Tensor, torch.Tensor, Jump, Draw], torch.Tensor | None]


@dataclass(frozen=True)
class Passes(Keys):
    """Keys of the sampling that DDPM and JCDP purification share."""

    t_star: Count = 100             # steps of noise, of the prior's T; AVATAR: 100
    passes: Count = 1               # to t_star and back; AVATAR: 1
    # step whose abar the noise has: t_star - 1, where the network starts (null), or t_star, as LE's
    # release
    start_index: CountOrZero | None = None
    # ancestral asks the network at every step, subsampled and ddim at `evaluations` of them
    sampler: Literal["ancestral", "subsampled", "ddim"] = "ancestral"
    evaluations: Count = 5          # of the network a pass, for subsampled and ddim; ours
    # of a reverse step: beta (large) or the posterior's (small); Ho et al.: large
    variance: diffusion.Variance = "large"
    # of the prior: their running mean, as LE and AVATAR, or the last ones
    weights: Literal["ema", "model"] = "ema"
    # to whole grey levels: nearest, or down, as LE's release; wrap: AVATAR's unclamped cast
    rounding: Literal["round", "floor", "wrap"] = "round"
    # images a pass of the network; null: by device; changes at most one grey level
    batch_size: Count | None = None
    # images of another size than the prior's: refused (whole), resized to it and back, as LE's
    # release does with 224x224, or seen in tiles of its size, ours
    fit: Literal["whole", "resize", "tiles"] = added("whole")
    overlap: CountOrZero = added(16)    # pixels that neighbouring tiles share at least; ours

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler in ("subsampled", "ddim") and self.evaluations > self.t_star:
            raise ConfigError("evaluations", f"{self.evaluations} are more than the "
                                             f"{self.t_star} steps of a pass (t_star)")
        if self.start not in (self.t_star - 1, self.t_star):
            raise ConfigError("start_index", f"{self.start}, but the network starts at step "
                                             f"{self.t_star - 1} (t_star: {self.t_star}): it is "
                                             f"{self.t_star - 1} or {self.t_star}")

    def visited(self) -> list[int]:
        """The steps at which a pass asks the network, noisiest first."""
        few = self.sampler in ("subsampled", "ddim")
        return diffusion.times(self.t_star, self.evaluations if few else self.t_star)

    def jumps(self, schedule: Schedule) -> list[Jump]:
        """The reverse steps of a pass: through what is visited, to the clean image."""
        return diffusion.jumps(schedule, self.visited(), self.variance)

    @property
    def start(self) -> int:
        return self.t_star - 1 if self.start_index is None else self.start_index


def any_size(config: Passes) -> bool:
    """Whether the checkpoint may be of images of another size (`core.methods`)."""
    return config.fit != "whole"


def sees(config: Passes, checkpoint: Checkpoint, shape: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) at which images of this shape are noised and denoised."""
    return (prior_side(checkpoint),) * 2 if config.fit == "resize" else shape


def check(config: Passes, checkpoint: Checkpoint, method: str, shape: tuple[int, int]
          ) -> TrainConfig:
    """How a checkpoint was trained. Raises UserError where these passes of `method` over images of
    this (height, width) are not for it."""
    trained = rebuild(TrainConfig, checkpoint.meta["config"], str(checkpoint.path))
    side = prior_side(checkpoint)
    if config.fit == "whole" and trained.crop and shape != (side, side):
        raise UserError(f"{method}.fit: {checkpoint.path} was trained on crops of {side}x{side}; "
                        f"for {shape[0]}x{shape[1]} images write {method}.fit=tiles")
    if config.fit == "resize" and side < min(shape):
        note(f"{method}.fit: resize: images of {shape[0]}x{shape[1]} are made as small as those of "
             f"{checkpoint.path}, {side}x{side}, and enlarged again, which blurs them; tiles does "
             "not")
    if config.fit == "tiles" and side > min(shape):
        raise UserError(f"{method}.fit: tiles of {side}x{side}, the size of {checkpoint.path}, are "
                        f"larger than the {shape[0]}x{shape[1]} images; write {method}.fit=resize")
    if config.fit == "tiles" and config.overlap >= side:
        raise UserError(f"{method}.overlap: {config.overlap} pixels, but the tiles of "
                        f"{checkpoint.path} have {side}; write less")
    if max(config.t_star, config.start + 1) > trained.t_train_max:
        raise UserError(f"{method}.t_star: {max(config.t_star, config.start + 1)} steps, but "
                        f"{checkpoint.path} was trained on the first {trained.t_train_max} only")
    if config.sampler == "euler_maruyama" and \
            (trained.diffusion_steps, trained.beta_start, trained.beta_end) != (1000, 1e-4, 0.02):
        raise UserError(f"{method}.sampler: euler_maruyama is for 1,000 steps with betas from 1e-4 "
                        f"to 0.02, which {checkpoint.path} does not have")
    return trained


def load_prior(images: ImageSet, config: Passes, run: Run) -> Prior:
    """The prior of `run.checkpoint`, for these passes over these images."""
    shape = images.image_shape
    trained, side = check(config, run.checkpoint, run.job.method, shape), prior_side(run.checkpoint)
    if config.fit == "whole":
        return load(trained, config.weights, shape, run)
    prior = load(trained, config.weights, (side, side), run)
    if config.fit == "tiles" and shape != (side, side):
        network = fit.tiled(prior.network, shape, side, config.overlap, run.device.torch)
        return dataclasses.replace(prior, network=network)
    return prior


def walk(poisoned: ImageSet, prior: Prior, config: Passes, run: Run, guide: Guide | None = None
         ) -> ImageSet:
    """The set after `config.passes` times to t_star and back. Row i stays row i."""
    guided = ", guided" if guide else ""
    run.say(f"{run.job.method}: {config.passes} x {len(config.visited())} network evaluations an "
            f"image ({config.sampler}, from step {config.t_star}{guided})")
    batch = batch_of(poisoned, config, run)
    network = padded(prior.network, batch) if run.device.compile else prior.network
    return poisoned.map_rows(
        walker(network, prior.schedule, guide, config, run), run, slice_rows=batch,
        rounding="floor" if config.rounding == "floor" else "round", device=run.device.torch,
        exact=run.device.precision != "tf32")


def walker(network: Network, schedule: Schedule, guide: Guide | None, config: Passes, run: Run
           ) -> Callable[[torch.Tensor, slice], torch.Tensor]:
    """A function for map_rows that takes rows to t_star and back, `config.passes` times."""
    jumps = config.jumps(schedule)
    at = {jump.t: torch.tensor([jump.t], device=run.device.torch) for jump in jumps}

    def there_and_back(x: torch.Tensor, y: torch.Tensor, draw: Draw, watch: Callable
                       ) -> torch.Tensor:
        """One pass from x, of the image y; both (B, 3, H, W) in [-1, 1]."""
        x = schedule.noised(x, config.start, draw("forward"))
        if config.sampler == "euler_maruyama":
            return diffusion.euler_maruyama(x, network, config.t_star, partial(draw, "sample"))
        for jump in jumps:
            eps = network(x, at[jump.t])
            x0 = diffusion.predict_x0(x, eps, jump)
            shift = guide(x, y, jump, draw) if guide else None
            if config.sampler == "ddim":
                x = diffusion.ddim(x, x0, jump, shift)
            else:
                noise = None if jump.last else draw("sample", jump.t)
                x = diffusion.ancestral(x, x0, jump, shift, noise)
            watch(x, jump.t)
        return x

    @torch.no_grad()
    def rows(floats: torch.Tensor, rows: slice) -> torch.Tensor:
        y = floats.permute(0, 3, 1, 2) * 2 - 1          # [0, 1] to [-1, 1], here and back below
        y = fit.resized(y, sees(config, run.checkpoint, y.shape[2:]))
        x, finite = y, Finite(rows, run)
        for number in range(config.passes):
            x = there_and_back(x, y, partial(draw_noise, y, rows, run, number),
                               partial(finite.watch, number))
        finite.check()
        x = fit.resized(x, floats.shape[1:3])
        purified = ((x + 1) / 2).permute(0, 2, 3, 1)
        return wrapped(purified) if config.rounding == "wrap" else purified

    return rows


def batch_of(images: ImageSet, config: Passes, run: Run) -> int:
    """Rows a network pass: fewer of images larger than CIFAR's, and no more than there are."""
    height, width = sees(config, run.checkpoint, images.image_shape)
    larger = max(1, height * width // (32 * 32))
    return min(config.batch_size or max(1, PURIFY_BATCH[run.device.kind] // larger), len(images))


def padded(network: Network, batch: int) -> Network:
    """The network for up to `batch` rows, asked for `batch` every time: one shape, compiled once.
    """

    def whole(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        if rows < batch:
            x = torch.cat([x, x.new_zeros(batch - rows, *x.shape[1:])])
            x = x.contiguous(memory_format=torch.channels_last)
        return network(x, t)[:rows]

    return whole


def draw_noise(like: torch.Tensor, rows: slice, run: Run, number: int, kind: str, t: int = 0
               ) -> torch.Tensor:
    """N(0, 1) for these rows of the set at one step of one pass, drawn by block: whatever the batch
    and the process."""
    _, channels, height, width = like.shape

    def draw(block: int) -> torch.Tensor:
        return torch.randn(BLOCK, height, width, channels, device=like.device,
                           generator=run.stream(f"pass{number}/{kind}{t}", block, like.device))

    return by_block(rows, draw).permute(0, 3, 1, 2)


class Finite:
    """Watches for pixels that stop being finite, without waiting for the device at each step."""

    def __init__(self, rows: slice, run: Run) -> None:
        self.rows, self.run, self.seen = rows, run, []

    def watch(self, number: int, x: torch.Tensor, t: int) -> None:
        self.seen.append((number, t, x.flatten(1).sum(1)))

    def check(self) -> None:
        """Raise UserError with the first pass, step and row."""
        if not self.seen or torch.stack([sums for *_, sums in self.seen]).isfinite().all():
            return
        number, t, sums = next(entry for entry in self.seen if not entry[2].isfinite().all())
        row = self.rows.start + sums.isfinite().logical_not().nonzero()[0].item()
        method = self.run.job.method
        guided = f"lower {method}.strength, or " if "strength" in self.run.job.config else ""
        raise UserError(f"{self.run.out}: row {row} has non-finite pixels after step {t} of pass "
                        f"{number + 1}; {guided}look at the checkpoint {self.run.checkpoint.path}")


def wrapped(images: torch.Tensor) -> torch.Tensor:
    """What casting 255 x to uint8 without a clamp does: 1.004 becomes 0, -0.004 becomes 255."""
    return (images * 255).trunc_().remainder_(256).div_(255)
