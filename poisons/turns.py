"""The min-min optimisation of AUE and MI-UE: surrogate and noise take turns of a whole epoch.

In an epoch the surrogate learns from every noised image once; then the noise of every image takes a
few signed steps from where it was, batch by batch in another order. It begins at 0. Unlike EM's
surrogate, which stays under-trained, this one learns to the end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.batches import steps_an_epoch, too_few
from core.device import to_device
from core.graphs import set_rate
from core.imageset import ImageSet, Rounding
from core.loop import Loop
from core.pgd import gradient_of, pgd
from core.ranges import (
    BatchSize,
    BelowOne,
    Count,
    Keys,
    LinfRadius,
    Positive,
    PositiveOrZero,
    StepSize,
)
from core.run import Run
from core.training import InPrecision, cosine, right
from models.classifiers import Architecture, check_images
from poisons.crafting import on_device, say_not_shared
from poisons.frozen import FrozenSurrogate
from poisons.minmin import build_surrogate
from poisons.noise import Noise, publish, require_rows

# (noised images (B, 3, H, W) in [0, 1], step, counted over the epochs) -> what the surrogate sees
See = Callable[[torch.Tensor, int], torch.Tensor]
# (frozen surrogate, noised images, labels, step) -> the loss that the noise descends
NoiseLoss = Callable[[FrozenSurrogate, torch.Tensor, torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Shared(Keys):
    """Keys that AUE and MI-UE share; defaults are AUE's."""

    epsilon: LinfRadius = 8 / 255   # L-inf budget, [0, 1] units; release: 8/255
    # of the noise's signed steps, [0, 1] units; release: a tenth of epsilon
    step_size: StepSize = 0.8 / 255
    steps: Count = 5                # signed, of every image an epoch; release: 5
    epochs: Count = 60              # of the surrogate, and as many turns of the noise; release: 60
    batch_size: BatchSize = 128     # images a step of the surrogate; release: 128
    # of the surrogate's SGD, at the start; release: 0.1
    learning_rate: Positive = 0.1
    last_rate: PositiveOrZero = 1e-6    # at the end of half a cosine over the epochs; release: 1e-6
    momentum: BelowOne = 0.9        # of the surrogate's SGD; release
    weight_decay: PositiveOrZero = 1e-4     # of the surrogate's SGD; release: 1e-4
    architecture: Architecture = "resnet18"     # the surrogate; release: resnet18
    # channels of resnet18's first group, release: 64; others have width / 64 of their own
    width: Count = 64
    rounding: Rounding = "floor"    # of images to grey levels: nearest, or down, as the release

    def check_images(self, shape: tuple[int, int]) -> None:
        check_images(self.architecture, shape)


def bound(config: Shared) -> tuple[str, float]:
    return "linf", config.epsilon


def take_turns(clean: ImageSet, config: Shared, run: Run, noise_loss: NoiseLoss, *,
               see: See = lambda images, step: images,
               behind: Callable[[nn.Module], nn.Module] = lambda network: network,
               noise_batch: int | None = None, flip: bool = False,
               step_size: Callable[[int], float] | None = None) -> ImageSet:
    """`clean` plus the noise of every row after `config.epochs` turns; resumable.

    The surrogate, perhaps put `behind` something, learns the labels of what it `see`s of noised
    images. The noise moves in batches of `noise_batch` images (the surrogate's, if null), by steps
    of `step_size` of the epoch, counted from 0 (config.step_size, if null). With `flip` half of the
    images of a batch are mirrored before their noise is added, which is not.
    """
    require_rows(clean, run)
    say_not_shared(run)
    model, optimizer = build_surrogate(clean, config, run, behind)
    network = InPrecision(model, run.device)
    frozen = FrozenSurrogate(model, run.device)
    noise = Noise(torch.zeros(len(clean), 3, *clean.image_shape, device=run.device.torch))
    turns = Turns(len(clean), config.batch_size, noise_batch or config.batch_size, run)

    def learn(images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        model.train()
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": loss, "train_accuracy": right(logits, labels)}

    def move(images: torch.Tensor, labels: torch.Tensor, delta: torch.Tensor, first: int,
             size: float) -> torch.Tensor:
        loss = gradient_of(lambda noised, step: noise_loss(frozen, noised, labels, first + step))
        return pgd(images, delta, loss, epsilon=config.epsilon, step_size=size, steps=config.steps)

    def loaded(rows: np.ndarray, name: str, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = on_device(clean, rows, run)
        if flip:
            drawn = torch.rand(len(rows), generator=run.stream(f"{name}/flips", number)) < 0.5
            drawn = to_device(drawn, images.device)[:, None, None, None]
            images = torch.where(drawn, images.flip(3), images)
        return images, labels

    loop = Loop(run, run.job.method, config.epochs, model=model, optimizer=optimizer, noise=noise)
    for epoch in loop:
        rate = cosine(config.learning_rate, config.last_rate, epoch / config.epochs)
        set_rate(optimizer, rate, run.device)
        size = config.step_size if step_size is None else step_size(epoch)
        is_now = False                  # whether `frozen` is the surrogate as it is now
        for learns, rows in loop.steps(turns):
            at = to_device(rows, noise.delta.device)
            if learns:
                step = epoch * turns.of_surrogate + loop.step
                images, labels = loaded(rows, "surrogate", step)
                noised = (images + noise.delta[at]).clamp_(0, 1)
                loop.add(len(rows), **learn(see(noised, step), labels))
            else:
                if not is_now:
                    frozen.update(model)
                    is_now = True
                batch = epoch * turns.of_noise + loop.step - turns.of_surrogate
                images, labels = loaded(rows, "noise", batch)
                noise.delta[at] = move(images, labels, noise.delta[at], batch * config.steps, size)
        run.world.share(model)
        run.world.share(noise)
        loop.end_epoch(learning_rate=rate)
    run.say(f"surrogate: {loop.means['train_accuracy']:.1%} of the noised images right in the last "
            f"of {config.epochs} epochs")
    return publish(clean, noise, config.rounding, run)


class Turns:
    """The rows of an epoch's batches: (True, rows) while the surrogate learns, each row once; then
    (False, rows) while the noise moves, each row once, in an order of its own. A last batch of one
    row is left to the noise alone: batch norm has no statistics for it."""

    def __init__(self, rows: int, batch_size: int, noise_batch: int, run: Run) -> None:
        self.rows, self.run = rows, run
        self.batch_size, self.noise_batch = batch_size, noise_batch
        self.of_surrogate = steps_an_epoch(rows, batch_size, drop_last=False)
        self.of_noise = -(-rows // noise_batch)
        if self.of_surrogate == 0:
            raise too_few(rows, batch_size, run)

    def __len__(self) -> int:
        return self.of_surrogate + self.of_noise

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[bool, np.ndarray]]:
        learning = self._batches("surrogate", epoch, self.batch_size)[: self.of_surrogate]
        moving = self._batches("noise", epoch, self.noise_batch)
        turns = [(True, rows) for rows in learning] + [(False, rows) for rows in moving]
        yield from turns[start:]

    def _batches(self, name: str, epoch: int, size: int) -> list[np.ndarray]:
        order = torch.randperm(self.rows, generator=self.run.stream(f"{name}/batches", epoch))
        return [rows.numpy() for rows in order.split(size)]
