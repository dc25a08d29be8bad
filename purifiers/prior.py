"""The prior of the diffusion purifiers: a DDPM, trained on images without labels and loaded again.

Its network predicts the noise eps in x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, t uniform; the
weights that purify are a running mean (EMA) of those that Adam trains. Source: Ho et al. 2020,
algorithm 1; code hojonathanho/diffusion and ermongroup/ddim.

Deviations: on a GPU the network computes in bf16, in training too (released: `precision: fp32`).
Training drops an epoch's last short batch, which ddim keeps.
"""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from core import files
from core.batches import Augmentation, Batches
from core.checkpoint import Checkpoint, save_weights
from core.config import Place, added, rebuild
from core.errors import ConfigError, UserError
from core.graphs import Recorded, adam, set_rate
from core.imageset import ImageSet
from core.loop import Loop
from core.ranges import BelowOne, Count, CountOrZero, Keys, Positive, Range
from core.run import Run
from models.unet import UNet, initialise
from purifiers import diffusion
from purifiers.diffusion import Network, Schedule

# keys that what is fine-tuned has as its source does
NETWORK_AND_NOISE = ("width", "multipliers", "attention", "blocks", "diffusion_steps", "beta_start",
                     "beta_end")


@dataclass(frozen=True)
class TrainConfig(Keys):
    """Keys under `ddpm.train`, for train_ddpm.py."""

    # of Adam, one batch each; LE: 80,000 from scratch, 10,000 to fine-tune (table 6)
    steps: Count = 80_000
    batch_size: Count = 128             # images a step, over all processes; Ho et al.: 128
    learning_rate: Positive = 2e-4      # of Adam (0.9, 0.999); Ho et al.
    # of a linear climb of the rate; null: min(5000, steps / 10); Ho et al.: 5,000, ddim: 0
    warmup_steps: CountOrZero | None = None
    clip_norm: Positive = 1.0           # largest L2 norm of the gradient; Ho et al.
    # mean or sum of the squared error over an image; Ho et al.: mean, ddim: sum
    loss: Literal["mean", "sum"] = "mean"
    dropout: BelowOne = 0.1             # in the network; Ho et al., CIFAR-10
    # mirror half of the images; Ho et al.: yes; not for digits, which mirrored are none
    flip: bool = True
    # half of a batch's steps t mirror the other half, as ddim; Ho et al.: all drawn
    antithetic: bool = True
    # share of the running mean of the weights that a step keeps; Ho et al.
    ema_decay: BelowOne = 0.9999
    # source: the EMA of init_from, as ddim resumes; init: the weights that training starts from;
    # warmup forgets its start: decay min(ema_decay, (1 + n) / (10 + n))
    ema_start: Literal["source", "warmup", "init"] = "warmup"
    # only steps below are trained, which must cover t_star; Ho et al.: all 1,000
    t_train_max: Count = 1000
    init_from: Place | None = None      # folder of a checkpoint to fine-tune; null: from scratch
    # of the weights: Ho et al.'s, or PyTorch's, as ddim
    initialisation: Literal["ho", "pytorch"] = "ho"
    # channels of the first level; Ho et al.: 128; the norms have groups of 32
    width: Annotated[int, Range(at_least=32, in_steps_of=32)] = 128
    # of the width, one a level; Ho et al., CIFAR-10
    multipliers: Annotated[tuple[Count, ...], Range(at_least=1)] = (1, 2, 2, 2)
    # sides in pixels of the levels that attend; Ho et al., CIFAR-10
    attention: tuple[Count, ...] = (16,)
    blocks: Count = 2                   # residual, a level; Ho et al.: 2
    diffusion_steps: Annotated[int, Range(at_least=2)] = 1000   # T; Ho et al.: 1,000
    # noise's variance at the first step, linear from here; Ho et al.
    beta_start: Annotated[float, Range(above=0, below=1)] = 1e-4
    beta_end: Annotated[float, Range(above=0, below=1)] = 0.02  # at the last; Ho et al.
    sample_every: CountOrZero = 5000    # steps between PNGs of samples; 0: none; ours
    # pixels a side of a random crop of every image, for a prior that purifies by tiles; null: the
    # whole image, as every source
    crop: Count | None = added(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        Range(at_most=self.diffusion_steps).check("t_train_max", self.t_train_max)
        Range(at_least=self.beta_start).check("beta_end", self.beta_end)

    def check_images(self, shape: tuple[int, int]) -> None:
        """Raise UserError unless these have a crop for a network of these levels."""
        if self.crop and self.crop > min(shape):
            raise ConfigError("crop", f"{self.crop} pixels, but the images have "
                                      f"{shape[0]}x{shape[1]}")
        check_shape(self, self.shape_of(shape))

    def shape_of(self, images: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what the network sees of such images."""
        return (self.crop, self.crop) if self.crop else images

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.diffusion_steps, self.beta_start, self.beta_end)


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
    kept = config.ema_decay**config.steps
    if config.ema_start == "init" and not config.init_from and kept > 0.05:
        run.say(f"ema_start: init: of the EMA, which purifies, {kept:.0%} stays its random start "
                f"after {config.steps} steps; warmup forgets it")
    shape = config.shape_of(images.image_shape)
    model, ema, source = build_model(config, shape, run), None, None
    if config.init_from:
        source = Checkpoint.load(config.init_from)
        source.check_fits(images, run.job.method, classes=False, any_size=config.crop is not None)
        check_network_and_noise(source, config)
        if prior_side(source) != shape[0]:
            raise UserError(f"{source.path} was trained on {prior_side(source)} pixels a side, but "
                            f"this training has {shape[0]}")
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
    for _ in loop:
        model.train()
        for x, _ in loop.steps(batches):
            number = loop.number
            if config.crop:
                x = random_crops(x, config.crop, run.stream("ddpm/crop", number, x.device))
            loss = step(x, number)
            update_ema(ema, model, ema_weight(number, config))
            loop.add(len(x), loss=loss)
            done, every = number + 1, config.sample_every
            if every and (done % every == 0 or done == config.steps) and world.leads:
                save_samples(ema, x, config, run, done)
        loop.end_epoch()
    save_weights(model, run, "model")
    save_weights(ema, run, "ema")
    return source and source.meta["trained_on"]


def prior_side(checkpoint: Checkpoint) -> int:
    """The side of the images that a prior has seen: of its training set, or of crops of them."""
    return checkpoint.meta["config"].get("crop") or checkpoint.meta["trained_on"]["shape"][1]


def random_crops(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """A crop of its own (3, side, side) of each of these images (B, 3, H, W)."""
    top, left = (torch.randint(length - side + 1, (len(images),), generator=generator,
                               device=images.device) for length in images.shape[2:])
    places = images.unfold(2, side, 1).unfold(3, side, 1)       # a view: (B, 3, tops, lefts, ...)
    return places[torch.arange(len(images), device=images.device), :, top, left]


def check_network_and_noise(source: Checkpoint, config: TrainConfig) -> None:
    """Raise UserError unless the checkpoint's network and schedule are those of the config."""
    theirs = rebuild(TrainConfig, source.meta["config"], str(source.path))
    for key in NETWORK_AND_NOISE:
        if getattr(theirs, key) != getattr(config, key):
            raise UserError(f"{source.path} has {key} {getattr(theirs, key)}, but this training "
                            f"has {getattr(config, key)}")


def make_optimizer(model: nn.Module, config: TrainConfig, run: Run) -> torch.optim.Optimizer:
    return adam(model, run.device, lr=config.learning_rate)


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

    def descend(x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        with run.device.autocast():
            loss = squared_error(x0, t, noise)
        if config.loss == "sum":
            loss = loss * x0[0].numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = world.average(model, loss)
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()
        return {"loss": loss.detach()}

    recorded = Recorded(descend, run.device) if world.size == 1 else descend

    def step(images: torch.Tensor, number: int) -> torch.Tensor:
        generator = run.stream("ddpm/step", number, images.device)
        t = draw_steps(len(images), config, generator)
        noise = torch.randn(images.permute(0, 2, 3, 1).shape, generator=generator,
                            device=images.device).permute(0, 3, 1, 2)
        mine = world.part(len(images))
        run.reseed(f"ddpm/dropout/{world.rank}", number)
        set_rate(optimizer, config.learning_rate * min(1.0, (number + 1) / max(warmup, 1)),
                 run.device)
        return recorded(images[mine] * 2 - 1, t[mine], noise[mine])["loss"]

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
    check_shape(config, shape)
    with run.initialisation("ddpm"):
        model = UNet(config.width, config.multipliers, config.blocks, config.attention, shape[0],
                     config.dropout)
        if config.initialisation == "ho":
            initialise(model)
    return run.device.place(model)


def check_shape(config: TrainConfig, shape: tuple[int, int]) -> None:
    """Raise UserError unless the network can be made for images of this (height, width)."""
    height, width = shape
    levels = len(config.multipliers)
    if height != width or height % 2 ** (levels - 1):
        raise UserError(f"a DDPM of {levels} levels takes square images whose side is a multiple of"
                        f" {2 ** (levels - 1)}, not {height}x{width}")
    sides = [height >> level for level in range(levels)]
    if unknown := sorted(set(config.attention) - set(sides)):
        raise ConfigError("attention", f"no level of the network has sides of {unknown}; of images "
                                       f"of {height}x{width} they have {sides}")


def save_samples(model: nn.Module, images: torch.Tensor, config: TrainConfig, run: Run, number: int
                 ) -> None:
    """A PNG of up to 32 samples, in 50 reverse steps from training images noised as far as the
    model is trained: for all 1,000 steps that is as good as from noise."""
    from PIL import Image
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
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(buffer := io.BytesIO(), format="png")
    files.write_bytes(run.work / f"samples-{number:07d}.png", buffer.getvalue())


# --- what the purifiers load -----------------------------------------------------------------


@dataclass(frozen=True)
class Prior:
    """A trained DDPM: eps = network(x_t, t), of x_t (B, 3, H, W) float32 in [-1, 1]."""

    network: Network
    schedule: Schedule


def load(trained: TrainConfig, weights: Literal["ema", "model"], shape: tuple[int, int], run: Run
         ) -> Prior:
    """The network of `run.checkpoint`, trained as `trained` says on images of this (height, width).
    It computes in the run's precision; x and eps stay float32."""
    model = build_model(trained, shape, run)
    run.checkpoint.weights_into(model, weights).eval().requires_grad_(False)
    if run.device.precision == "bf16":
        model.to(torch.bfloat16)
    return Prior(run.device.maybe_compile(model), trained.schedule)
