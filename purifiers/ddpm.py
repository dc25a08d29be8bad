"""DDPM: noise an image, denoise it with a diffusion model of unprotected ones. AVATAR's purifier.

The prior is a DDPM that train_ddpm.py trained on images without labels: the test split, a
reference split, another data set. A purification pass takes the image to step t_star and walks
back; what the noise drowns comes back as the prior expects it, the perturbation does not. By
default one unguided pass of 100 steps: AVATAR's setting. Source: Ho et al. 2020, code
hojonathanho/diffusion and ermongroup/ddim; Dolatabadi et al. 2023, code
hmdolatabadi/AVATAR.

Deviations: AVATAR's larger network is replaced by Ho et al.'s; x_0 is clamped, the last step draws
no noise and pixels are rounded (released: `sampler: euler_maruyama`, `rounding: wrap`). On a GPU
the network computes in bf16, in training too (released: `precision: fp32`). Training drops an
epoch's last short batch, which ddim keeps.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from core import files
from core.batches import Augmentation, Batches
from core.checkpoint import Checkpoint, save_weights
from core.config import ConfigError, Place, in_range, rebuild
from core.errors import UserError
from core.imageset import ImageSet
from core.loop import Loop
from core.run import Run
from core.streams import BLOCK, by_block
from models.unet import UNet, initialise
from purifiers import diffusion
from purifiers.diffusion import Jump, Schedule

VERSION = 1
PATHS = ("init_from",)
SMOKE = {"train.width": 32, "train.multipliers": [1, 1], "train.blocks": 1, "train.attention": [],
         "train.steps": 4, "train.batch_size": 16, "train.sample_every": 4, "t_star": 2,
         "evaluations": 2}
PURIFY_BATCH = {"cpu": BLOCK, "cuda": 4 * BLOCK}    # rows a network pass, up to 32x32


@dataclass(frozen=True)
class TrainConfig:
    """Keys under `ddpm.train`, for train_ddpm.py."""

    steps: int = 80_000                 # LE's scratch run (ckpt_80000.pth); 10,000 to fine-tune
    batch_size: int = 128               # over all processes
    learning_rate: float = 2e-4         # Adam (0.9, 0.999)
    warmup_steps: int | None = None     # linear; null: min(5000, steps / 10), Ho et al.'s 5,000
    clip_norm: float = 1.0              # gradient norm
    loss: Literal["mean", "sum"] = "mean"       # over pixels; ddim: sum
    dropout: float = 0.1
    flip: bool = True                   # not for digits: mirrored ones are none
    antithetic: bool = True             # half the steps t, half their mirrors; ddim
    ema_decay: float = 0.9999
    # see `ema_weight`; source: the EMA of init_from; init: the weights that training starts from
    ema_start: Literal["source", "warmup", "init"] = "warmup"
    t_train_max: int = 1000             # only steps below are trained; purifying uses t_star
    init_from: Place | None = None      # a checkpoint to fine-tune
    initialisation: Literal["ho", "pytorch"] = "ho"     # ddim: pytorch
    width: int = 128                    # channels of the first level
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    attention: tuple[int, ...] = (16,)  # sides that attend
    blocks: int = 2                     # a level
    diffusion_steps: int = 1000         # T, betas linear
    beta_start: float = 1e-4
    beta_end: float = 0.02
    sample_every: int = 5000            # steps between PNGs of samples; 0: none

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "blocks"):
            in_range(key, getattr(self, key), at_least=1)
        in_range("diffusion_steps", self.diffusion_steps, at_least=2)
        in_range("learning_rate", self.learning_rate, above=0)
        in_range("clip_norm", self.clip_norm, above=0)
        in_range("dropout", self.dropout, at_least=0, below=1)
        in_range("ema_decay", self.ema_decay, at_least=0, below=1)
        in_range("t_train_max", self.t_train_max, at_least=1, at_most=self.diffusion_steps)
        in_range("beta_start", self.beta_start, above=0, below=1)
        in_range("beta_end", self.beta_end, at_least=self.beta_start, below=1)
        in_range("sample_every", self.sample_every, at_least=0)
        if self.warmup_steps is not None:
            in_range("warmup_steps", self.warmup_steps, at_least=0)
        if self.width < 32 or self.width % 32:
            raise ConfigError("width", f"{self.width} is no multiple of 32 (groups of the norms)")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ConfigError("multipliers", "one positive factor a level is needed")

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.diffusion_steps, self.beta_start, self.beta_end)


@dataclass(frozen=True)
class Passes:
    """Keys of the sampling that DDPM and JCDP purification share."""

    t_star: int = 100               # steps of noise; AVATAR
    passes: int = 1
    start_index: int | None = None  # that the noise belongs to; null: t_star - 1
    sampler: Literal["ancestral", "subsampled", "ddim"] = "ancestral"
    evaluations: int = 5            # of the network a pass, for subsampled and ddim
    variance: diffusion.Variance = "large"
    weights: Literal["ema", "model"] = "ema"
    rounding: Literal["round", "floor", "wrap"] = "round"   # wrap: AVATAR's unclamped uint8 cast
    batch_size: int | None = None   # null: by device; changes at most one grey level

    def __post_init__(self) -> None:
        in_range("t_star", self.t_star, at_least=1)
        in_range("passes", self.passes, at_least=1)
        in_range("evaluations", self.evaluations, at_least=1)
        if self.sampler in ("subsampled", "ddim") and self.evaluations > self.t_star:
            raise ConfigError("evaluations", f"{self.evaluations} are more than the "
                                             f"{self.t_star} steps of a pass (t_star)")
        if self.start_index is not None:
            in_range("start_index", self.start_index, at_least=0)
        if self.batch_size is not None:
            in_range("batch_size", self.batch_size, at_least=1)

    def visited(self) -> list[int]:
        """The steps at which a pass asks the network, noisiest first."""
        return diffusion.times(self.t_star, self.t_star if self.sampler == "ancestral"
                               else self.evaluations)

    @property
    def start(self) -> int:
        return self.t_star - 1 if self.start_index is None else self.start_index


@dataclass(frozen=True)
class Config(Passes):
    """Keys under `ddpm`, for purify.py."""

    sampler: Literal["ancestral", "subsampled", "ddim", "euler_maruyama"] = "ancestral"


# --- training --------------------------------------------------------------------------------


def train(images: ImageSet, config: TrainConfig, run: Run) -> dict | None:
    """Train a DDPM on `images`, whose labels are not used; resumable.

    Writes `model.safetensors` and `ema.safetensors` into the run, and PNGs of samples. Returns what
    the checkpoint that it began from was trained on, if any.
    """
    world = run.world
    if config.batch_size % world.size:
        raise UserError(f"{run.job.method}.train.batch_size: {world.size} processes cannot share "
                        f"{config.batch_size} images equally")
    if config.ema_start == "source" and not config.init_from:
        raise UserError(f"{run.job.method}.train.ema_start: source needs init_from, a checkpoint")
    model, ema, source = build_model(config, images.image_shape, run), None, None
    if config.init_from:
        source = Checkpoint.load(config.init_from)
        source.check_fits(images, run.job.method, classes=False)
        check_alike(source, config)
        source.weights_into(model, "model")
        if config.ema_start == "source":
            ema = source.weights_into(copy.deepcopy(model), "ema")
    ema = (ema or copy.deepcopy(model)).requires_grad_(False).eval()
    optimizer = make_optimizer(model, config, run)
    batches = Batches(images, config.batch_size, run, "ddpm", last_step=config.steps,
                      augmentation=Augmentation(flip=config.flip))
    epochs = -(-config.steps // len(batches))
    step = training_step(model, optimizer, config, run)
    loop = Loop(run, "ddpm", epochs, model=model, optimizer=optimizer, ema=ema)
    for epoch in loop:
        model.train()
        for x, _ in loop.steps(batches):
            number = epoch * len(batches) + loop.step
            loss = step(x, number)
            update_ema(ema, model, ema_weight(number, config))
            loop.add(len(x), loss=loss)
            done, every = number + 1, config.sample_every
            if every and (done % every == 0 or done == config.steps) and world.leads:
                save_samples(ema, x, config, run, number + 1)
        loop.end_epoch()
    save_weights(model, run, "model")
    save_weights(ema, run, "ema")
    return source and source.meta["trained_on"]


def check_alike(source: Checkpoint, config: TrainConfig) -> None:
    """Raise UserError unless the checkpoint's network and schedule are those of the config."""
    theirs = rebuild(TrainConfig, source.meta["config"], str(source.path))
    for key in ("width", "multipliers", "attention", "blocks", "diffusion_steps", "beta_start",
                "beta_end"):
        if getattr(theirs, key) != getattr(config, key):
            raise UserError(f"{source.path} has {key} {getattr(theirs, key)}, but this training "
                            f"has {getattr(config, key)}")


def make_optimizer(model: nn.Module, config: TrainConfig, run: Run) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate,
                            fused=run.device.kind == "cuda")


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, run: Run
                  ) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """A function (images (B, 3, H, W) in [0, 1], step) that takes one step and returns its loss.

    Every process draws for the whole batch and keeps its own part.
    """
    schedule, world = config.schedule, run.world
    keep = schedule.abar.sqrt().float().to(run.device.torch)
    spread = (1 - schedule.abar).sqrt().float().to(run.device.torch)
    warmup = min(5000, config.steps // 10) if config.warmup_steps is None else config.warmup_steps

    def squared_error(x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        x = keep[t, None, None, None] * x0 + spread[t, None, None, None] * noise
        return F.mse_loss(model(x, t), noise)

    squared_error = run.device.maybe_compile(squared_error)

    def step(images: torch.Tensor, number: int) -> torch.Tensor:
        generator = run.stream("ddpm/step", number, images.device)
        t = draw_steps(len(images), config, generator)
        noise = torch.randn(images.permute(0, 2, 3, 1).shape, generator=generator,
                            device=images.device).permute(0, 3, 1, 2)
        mine = world.part(len(images))
        run.reseed(f"ddpm/dropout/{world.rank}", number)
        with run.device.autocast():
            loss = squared_error(images[mine] * 2 - 1, t[mine], noise[mine])
        if config.loss == "sum":
            loss = loss * images[0].numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = world.average(model, loss)
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (number + 1) / max(warmup, 1))
        optimizer.step()
        return loss

    return step


def draw_steps(count: int, config: TrainConfig, generator: torch.Generator) -> torch.Tensor:
    """Uniform steps (count,) below t_train_max; antithetic: the second half mirrors the first."""
    top, draws = config.t_train_max, count // 2 + 1 if config.antithetic else count
    t = torch.randint(top, (draws,), generator=generator, device=generator.device)
    return torch.cat([t, top - 1 - t])[:count] if config.antithetic else t


def ema_weight(number: int, config: TrainConfig) -> float:
    """Of step `number`, from 0. With a constant decay the EMA's start keeps 90 % after 1,000 steps
    (0.9999^1000): `warmup` forgets it, `source` and `init` do not."""
    decay = config.ema_decay
    if config.ema_start == "warmup":
        decay = min(decay, (1 + number) / (10 + number))
    return 1 - decay


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, weight: float) -> None:
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), weight)


def build_model(config: TrainConfig, shape: tuple[int, int], run: Run) -> UNet:
    """A fresh network for images of this (height, width), on the run's device."""
    height, width = shape
    levels = len(config.multipliers)
    if height != width or height % 2 ** (levels - 1):
        raise UserError(f"a DDPM of {levels} levels takes square images whose side is a multiple of"
                        f" {2 ** (levels - 1)}, not {height}x{width}")
    sides = [height >> level for level in range(levels)]
    if unknown := sorted(set(config.attention) - set(sides)):
        raise UserError(f"attention: no level of the network has sides of {unknown}; of images of "
                        f"{height}x{width} they have {sides}")
    with run.initialisation("ddpm"):
        model = UNet(config.width, config.multipliers, config.blocks, config.attention, height,
                     config.dropout)
        if config.initialisation == "ho":
            initialise(model)
    return run.device.place(model)


def save_samples(model: nn.Module, images: torch.Tensor, config: TrainConfig, run: Run, number: int
                 ) -> None:
    """A PNG of up to 32 samples, in 50 reverse steps from training images noised as far as the
    model is trained: for all 1,000 steps that is as good as from noise."""
    from torchvision.utils import make_grid

    schedule, top = config.schedule, config.t_train_max
    generator = run.stream("ddpm/samples", 0, images.device)

    def draw() -> torch.Tensor:
        return torch.randn(images[:32].shape, generator=generator, device=images.device)

    with torch.no_grad():
        x = schedule.noised(images[:32] * 2 - 1, top - 1, draw())
        for jump in diffusion.jumps(schedule, diffusion.times(top, min(50, top))):
            eps = model(x, torch.tensor([jump.t], device=x.device))
            x0 = diffusion.predict_x0(x, eps, jump)
            x = diffusion.ancestral(x, x0, jump, None, None if jump.last else draw())
    levels = make_grid((x + 1).div_(2).clamp_(0, 1), nrow=8).mul_(255).round_().byte().cpu()
    files.save_image(run.work / f"samples-{number:07d}.png", levels.permute(1, 2, 0).numpy())


# --- purification ----------------------------------------------------------------------------

# (x, y, jump, draw) -> what to add to the mean; y is the image to purify, in [-1, 1]
Guide = Callable[[torch.Tensor, torch.Tensor, Jump, Callable], torch.Tensor | None]


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Noise every image and denoise it with the prior of `run.checkpoint`."""
    return walk(poisoned, config, run)


def check(config: Passes, checkpoint: Checkpoint, shape: tuple[int, int], method: str = "ddpm"
          ) -> TrainConfig:
    """How a checkpoint was trained. Raises UserError where these passes are not for it; of images
    of any (height, width)."""
    trained = rebuild(TrainConfig, checkpoint.meta["config"], str(checkpoint.path))
    if max(config.t_star, config.start + 1) > trained.t_train_max:
        raise UserError(f"{method}.t_star: {max(config.t_star, config.start + 1)} steps, but "
                        f"{checkpoint.path} was trained on the first {trained.t_train_max} only")
    if config.sampler == "euler_maruyama" and \
            (trained.diffusion_steps, trained.beta_start, trained.beta_end) != (1000, 1e-4, 0.02):
        raise UserError(f"{method}.sampler: euler_maruyama is for 1,000 steps with betas from 1e-4 "
                        f"to 0.02, which {checkpoint.path} does not have")
    return trained


def walk(poisoned: ImageSet, config: Passes, run: Run,
         guide_of: Callable[[Schedule, list[Jump]], Guide | None] = lambda *_: None) -> ImageSet:
    """`config.passes` times to t_star and back, with the guide that `guide_of` makes, if any."""
    trained = check(config, run.checkpoint, poisoned.image_shape, run.job.method)
    schedule = trained.schedule
    steps = diffusion.jumps(schedule, config.visited(), config.variance)
    guide = guide_of(schedule, steps)
    batch = batch_of(poisoned, config, run)
    network = prior(trained, config, run, poisoned.image_shape, batch)
    guided = f", guided by strength {config.strength:g}" if guide else ""
    run.say(f"{run.job.method}: {config.passes} x {len(steps)} network evaluations an image "
            f"({config.sampler}, from step {config.t_star}{guided})")
    return poisoned.map_rows(
        walker(network, schedule, steps, guide, config, run), run, slice_rows=batch,
        rounding="floor" if config.rounding == "floor" else "round", device=run.device.torch,
        exact=run.device.precision != "tf32")


def batch_of(images: ImageSet, config: Passes, run: Run) -> int:
    """Rows a network pass: fewer of images larger than CIFAR's, and no more than there are."""
    height, width = images.image_shape
    larger = max(1, height * width // (32 * 32))
    return min(config.batch_size or max(1, PURIFY_BATCH[run.device.kind] // larger), len(images))


def walker(network: diffusion.Network, schedule: Schedule, steps: list[Jump], guide: Guide | None,
           config: Passes, run: Run) -> Callable[[torch.Tensor, slice], torch.Tensor]:
    """A function for map_rows that takes rows to t_star and back, `config.passes` times."""
    at = {jump.t: torch.tensor([jump.t], device=run.device.torch) for jump in steps}

    @torch.no_grad()
    def rows(floats: torch.Tensor, rows: slice) -> torch.Tensor:
        y = floats.permute(0, 3, 1, 2) * 2 - 1          # [0, 1] to [-1, 1], here and back below
        x, finite = y, Finite(rows, run)
        for number in range(config.passes):
            draw = partial(draw_noise, y, rows, run, number)
            x = schedule.noised(x, config.start, draw("forward"))
            if config.sampler == "euler_maruyama":
                x = diffusion.euler_maruyama(x, network, config.t_star, partial(draw, "sample"))
                continue
            for jump in steps:
                x0 = diffusion.predict_x0(x, network(x, at[jump.t]), jump)
                shift = guide(x, y, jump, draw) if guide else None
                if config.sampler == "ddim":
                    x = diffusion.ddim(x, x0, jump, shift)
                else:
                    noise = None if jump.last else draw("sample", jump.t)
                    x = diffusion.ancestral(x, x0, jump, shift, noise)
                finite.watch(x, number, jump.t)
        finite.check()
        done = ((x + 1) / 2).permute(0, 2, 3, 1)
        return wrapped(done) if config.rounding == "wrap" else done

    return rows


def prior(trained: TrainConfig, config: Passes, run: Run, shape: tuple[int, int], batch: int
          ) -> diffusion.Network:
    """The network of `run.checkpoint`, in the run's precision: x and eps stay float32."""
    model = build_model(trained, shape, run)
    run.checkpoint.weights_into(model, config.weights).eval().requires_grad_(False)
    if run.device.precision == "bf16":
        model.to(torch.bfloat16)
    compiled = run.device.maybe_compile(model)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        if run.device.compile and rows < batch:         # one shape, compiled once
            x = torch.cat([x, x.new_zeros(batch - rows, *x.shape[1:])])
            x = x.contiguous(memory_format=torch.channels_last)
        return compiled(x, t)[:rows]

    return network


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

    def watch(self, x: torch.Tensor, number: int, t: int) -> None:
        self.seen.append((number, t, x.flatten(1).sum(1)))

    def check(self) -> None:
        """Raise UserError with the first pass, step and row."""
        if not self.seen or torch.stack([sums for *_, sums in self.seen]).isfinite().all():
            return
        number, t, sums = next(entry for entry in self.seen if not entry[2].isfinite().all())
        row = self.rows.start + sums.isfinite().logical_not().nonzero()[0].item()
        guided = "lower jcdp.strength, or " if "strength" in self.run.job.config else ""
        raise UserError(f"{self.run.out}: row {row} has non-finite pixels after step {t} of pass "
                        f"{number + 1}; {guided}look at the checkpoint {self.run.checkpoint.path}")


def wrapped(images: torch.Tensor) -> torch.Tensor:
    """What casting 255 x to uint8 without a clamp does: 1.004 becomes 0, -0.004 becomes 255."""
    return (images * 255).trunc_().remainder_(256).div_(255)
