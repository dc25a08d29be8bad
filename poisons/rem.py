"""REM: robust error-minimising noise.

A surrogate is adversarially trained on the protected images, and at every step the noise of its
batch is made anew: descended through random transforms, each with an adversary inside. At the end
every image gets noise from the last surrogate. Source: Fu et al., ICLR 2022; code
fshp971/robust-unlearnable-examples.

    min over delta_u of  E over t of  max over delta_a of  CE(f(t(x + delta_u) + delta_a), y)

Deviations: the final pass covers every image (the release drops the last incomplete batch); noised
images are clipped before the transforms, as those that are published, and not behind them, which
only resized crops tell apart; at 96 pixels and above the surrogate has the ImageNet stem; resized
crops are taken from the stored images (the release keeps ImageNet at 256x256 and crops to 224).
APBench's numbers of REM are of a weaker attack, a clean-trained surrogate without transforms, which
is not here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.batches import too_few
from core.errors import UserError
from core.imageset import ImageSet
from core.loop import Loop
from core.pgd import gradient_of, pgd
from core.ranges import (
    BatchSize,
    BelowOne,
    Count,
    CountOrZero,
    Keys,
    LinfRadius,
    Positive,
    PositiveOrZero,
    StepSize,
    Weight,
)
from core.run import Run
from core.streams import BLOCK
from core.training import Normalised, right
from core.views import TRIES, random_boxes
from models.classifiers import Architecture, check_images
from poisons.crafting import add_noise, craft_rows, on_device, require_classes
from poisons.frozen import FrozenSurrogate
from poisons.minmin import build_surrogate
from poisons.transforms import crop_and_flip, resized_crop_and_flip

VERSION = 1
SMOKE = {"train_steps": 2, "steps": 2, "inner_steps": 2, "transforms": 2, "width": 8,
         "batch_size": 64}
PARTS = 4               # that a CPU crafts a batch in, whatever the number of processes
WHOLE_BLOCK = 64 * 64   # pixels of an image up to which the final pass crafts a block at once

# (name, images or a count) -> uniform numbers in [0, 1): like the images, or so many for each
Draw = Callable[[str, torch.Tensor | int], torch.Tensor]


@dataclass(frozen=True)
class Config(Keys):
    epsilon: LinfRadius = 8 / 255   # rho_u, L-inf budget, [0, 1] units; paper: 8/255
    # of the noise's signed steps, [0, 1] units; release: rho_u / 5
    step_size: StepSize = 1.6 / 255
    steps: Count = 10               # signed, of the noise at every visit; release: 10
    transforms: Count = 5           # draws of crop and flip a step (EOT); release: 5
    # rho_a, the adversary's L-inf radius, [0, 1] units; paper: 0 to 4/255
    adversary: Weight = 4 / 255
    inner_steps: Count = 10         # signed, of the adversary; release: 10
    inner_step_size: StepSize = 0.8 / 255   # of these, [0, 1] units; release: rho_a / 5
    train_steps: Count = 5000       # of the surrogate, one batch each; release: 5,000
    batch_size: BatchSize = 128     # images a step; release: 128
    # of the surrogate's SGD, a tenth every `decay_every` steps; release: 0.1
    learning_rate: Positive = 0.1
    decay_every: Count = 2000       # steps between those tenths; release: 2,000
    momentum: BelowOne = 0.9        # of the surrogate's SGD; release
    weight_decay: PositiveOrZero = 5e-4     # of the surrogate's SGD; release
    # black pixels a side before a random crop; null: a random resized crop, as the release on
    # ImageNet
    crop_padding: CountOrZero | None = 4
    flip: bool = True               # mirror half of the draws; release: yes; ours on SVHN: no
    architecture: Architecture = "resnet18"     # the surrogate; release: resnet18
    # channels of resnet18's first group, release: 64; others have width / 64 of their own
    width: Count = 64

    @property
    def numbers(self) -> int:
        """Random numbers that a transform of one image takes; the last decides on the flip."""
        return 3 if self.crop_padding is not None else 2 * TRIES + 3

    def check_images(self, shape: tuple[int, int]) -> None:
        check_images(self.architecture, shape)


def bound(config: Config) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own noise, in whole grey levels."""
    return min_min_max(clean, config, run, inner=attack)


def min_min_max(clean: ImageSet, config: Config, run: Run, inner: "Adversary") -> ImageSet:
    """The formula above, over theta too: every step makes the noise of its minibatch, with the
    adversary `inner` inside, and trains the surrogate against `attack`; then the last surrogate's
    noise for every image. Resumable."""
    require_classes(clean)
    model, optimizer = build_surrogate(clean, config, run, lambda network: Normalised(
        network, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)))
    frozen = FrozenSurrogate(model, run.device)
    network = run.device.maybe_compile(model)
    minibatches = Shuffled(clean, config.batch_size, run, config.train_steps)
    loop = Loop(run, run.job.method, -(-config.train_steps // len(minibatches)), model=model,
                optimizer=optimizer)

    for _ in loop:
        for rows in loop.steps(minibatches):
            number = loop.number
            run.world.share(model)
            frozen.update(model)
            images, labels = on_device(clean, rows, run)
            draw = batch_draws(run, number, len(rows))
            delta = defend_together(images, labels, frozen, config, draw, run, inner)
            x = transformed((images + delta).clamp_(0, 1), draw("train", config.numbers), config)
            attacked = attack(x, labels, frozen, config, draw("train/start", x))
            rate = config.learning_rate * 0.1 ** (number // config.decay_every)
            model.train()
            loss, accuracy = train_step(network, optimizer, attacked, labels, rate)
            loop.add(len(rows), loss=loss, robust_accuracy=accuracy)
        loop.end_epoch()
    run.say(f"surrogate: {loop.means['robust_accuracy']:.1%} of the attacked, protected images "
            f"right after {config.train_steps} steps (the cap; nothing stops it earlier)")
    run.world.share(model)
    frozen.update(model)

    def noise(images: torch.Tensor, labels: torch.Tensor, rows: slice) -> torch.Tensor:
        return defend_in_parts(images, labels, frozen, config, block_draws(run, rows), inner)

    return add_noise(clean, noise, run, slice_rows=BLOCK)


def train_step(network: nn.Module, optimizer: torch.optim.SGD, images: torch.Tensor,
               labels: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of SGD at this rate; returns the loss and the share of right answers."""
    logits = network(images)
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return loss, right(logits, labels)


# --- noise and adversary ---------------------------------------------------------------------

# (x (B, 3, H, W), labels, surrogate, config, noise in [0, 1) like x) -> images within
# `config.adversary` of x, in [0, 1]
Adversary = Callable[[torch.Tensor, torch.Tensor, FrozenSurrogate, Config, torch.Tensor],
                     torch.Tensor]


def defend(images: torch.Tensor, labels: torch.Tensor, frozen: FrozenSurrogate, config: Config,
           draw: Draw, inner: Adversary) -> torch.Tensor:
    """The noise delta_u of these images, in whole grey levels: from a random start `steps` signed
    steps down the loss, expected over `transforms` random transforms t and at its worst over
    delta_a."""
    at_once = max(1, craft_rows(images.shape[2:], images.device.type) // len(images))

    def loss(delta: torch.Tensor, draws: list[str]) -> torch.Tensor:
        """CE(f(t(x + delta) + delta_a), y) summed over images and the draws of t, with delta_a from
        the adversary, a constant."""
        count = len(draws)
        drawn = torch.cat([draw(name, config.numbers) for name in draws])
        x = transformed((images + delta).clamp(0, 1).repeat(count, 1, 1, 1), drawn, config)
        noise = torch.cat([draw(f"{name}/inner", images) for name in draws])
        repeated, fixed = labels.repeat(count), x.detach()
        delta_a = inner(fixed, repeated, frozen, config, noise) - fixed
        return F.cross_entropy(frozen(x + delta_a), repeated, reduction="sum")

    def eot_gradient(delta: torch.Tensor, draws: list[str]) -> torch.Tensor:
        """The loss's gradient, summed over the draws of t (expectation over transformation), as
        many at a time as a pass holds."""
        total = torch.zeros_like(delta)
        for first in range(0, len(draws), at_once):
            some = draws[first : first + at_once]
            total += gradient_of(lambda delta, _, some=some: loss(delta, some))(delta, 0)
        return total

    delta = (2 * draw("start", images) - 1) * config.epsilon
    for step in range(config.steps):
        draws = [f"{step}/{i}" for i in range(config.transforms)]
        delta = delta - config.step_size * eot_gradient(delta, draws).sign_()
        delta.clamp_(-config.epsilon, config.epsilon)
    return (delta * 255).round_().div_(255)


def defend_in_parts(images: torch.Tensor, labels: torch.Tensor, frozen: FrozenSurrogate,
                    config: Config, draw: Draw, inner: Adversary) -> torch.Tensor:
    """`defend` for a block of images; of large ones for as many at a time as fit one PGD pass, so
    that a block of 224x224 needs no tens of gigabytes."""
    shape, size = images.shape[2:], len(images)
    if shape[0] * shape[1] > WHOLE_BLOCK:
        size = craft_rows(shape, images.device.type)
    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    return torch.cat([
        defend(images[part], labels[part], frozen, config,
               lambda name, like, part=part: draw(name, like)[part], inner) for part in parts])


def attack(x: torch.Tensor, labels: torch.Tensor, frozen: FrozenSurrogate, config: Config,
           noise: torch.Tensor) -> torch.Tensor:
    """Images within rho_a of x that the surrogate gets wrong: PGD from uniform `noise` in [0, 1).
    """
    start = (2 * noise - 1) * config.adversary
    delta = pgd(x, start, frozen.gradient(labels), epsilon=config.adversary,
                step_size=config.inner_step_size, steps=config.inner_steps, ascend=True)
    return (x + delta).clamp_(0, 1)


def transformed(x: torch.Tensor, drawn: torch.Tensor, config: Config) -> torch.Tensor:
    """Cropped and mirrored by `drawn` (B, config.numbers) in [0, 1), each image its own way."""
    mirrored = (drawn[:, -1] < 0.5) & config.flip
    if config.crop_padding is None:
        return resized_crop_and_flip(x, random_boxes(drawn[:, :-1], *x.shape[2:]), mirrored)
    offsets = (drawn[:, :-1] * (2 * config.crop_padding + 1)).long()
    return crop_and_flip(x, offsets, mirrored, config.crop_padding)


def defend_together(images: torch.Tensor, labels: torch.Tensor, frozen: FrozenSurrogate,
                    config: Config, draw: Draw, run: Run, inner: Adversary) -> torch.Tensor:
    """`defend` for a batch that the processes share; each gets the whole noise. On a CPU a batch is
    always crafted in PARTS, so that 1, 2 and 4 processes give the same bytes; else their number
    changes the rounding of sums, and with it the sign of gradients near 0."""
    mine, size = run.world.part(len(images)), len(images) // run.world.size
    if images.device.type == "cpu" and len(images) % PARTS == 0 and PARTS % run.world.size == 0:
        size = len(images) // PARTS
    deltas = []
    for start in range(mine.start, mine.stop, size):
        part = slice(start, start + size)
        deltas.append(defend(images[part], labels[part], frozen, config,
                             lambda name, like, part=part: draw(name, like)[part], inner))
    return run.world.gather(torch.cat(deltas))


# --- minibatches and draws -------------------------------------------------------------------


def uniform(rows: int, like: torch.Tensor | int, generator: torch.Generator) -> torch.Tensor:
    """In [0, 1): (rows, like), or of the shape of images `like`, channels-last."""
    device = generator.device
    if isinstance(like, int):
        return torch.rand(rows, like, generator=generator, device=device)
    _, channels, height, width = like.shape
    drawn = torch.rand(rows, height, width, channels, generator=generator, device=device)
    return drawn.permute(0, 3, 1, 2)


def batch_draws(run: Run, number: int, rows: int) -> Draw:
    """For the whole minibatch of one step, whatever share of it a process has."""
    return lambda name, like: uniform(
        rows, like, run.stream(f"rem/{name}", number, run.device.torch))


def block_draws(run: Run, rows: slice) -> Draw:
    """For one block of rows in index order, the final pass."""
    return lambda name, like: uniform(
        BLOCK, like, run.stream(f"rem/final/{name}", rows.start // BLOCK, run.device.torch)
    )[: rows.stop - rows.start]


class Shuffled:
    """Row numbers of shuffled minibatches, the last incomplete one dropped."""

    def __init__(self, clean: ImageSet, batch_size: int, run: Run, last_step: int) -> None:
        self.rows, self.run, self.last_step = len(clean), run, last_step
        self.batch_size = batch_size
        if len(self) == 0:
            raise too_few(len(clean), batch_size, run)
        if batch_size % run.world.size:
            raise UserError(f"{run.job.method}.batch_size: {run.world.size} processes cannot share "
                            f"{batch_size} images equally")

    def __len__(self) -> int:
        return self.rows // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        order = torch.randperm(self.rows, generator=self.run.stream("rem/batches", epoch)).numpy()
        for step in range(start, min(len(self), self.last_step - epoch * len(self))):
            yield order[step * self.batch_size : (step + 1) * self.batch_size]
