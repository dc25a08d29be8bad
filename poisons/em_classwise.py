"""EM, class-wise: one error-minimising noise per class.

As `em`, but the noise is shared by a class and grows from a fixed 20 % of the set, shuffled every
round: every image there takes one signed step from its class's noise, and the class's noise becomes
the mean of what its images in the batch stepped to. Source: Huang et al., ICLR 2021; code
HanxunH/Unlearnable-Examples.

Deviations: as in `em`, but that the noise is kept in single precision; a part smaller than one
batch is one batch (the release drops the last incomplete batch, and would then make no noise).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from core.batches import Batches
from core.imageset import ImageSet
from core.loop import Loop
from core.pgd import pgd
from core.ranges import Count, Share
from core.run import Run
from core.training import count_right
from poisons.crafting import on_device, require_classes, say_not_shared
from poisons.frozen import FrozenSurrogate
from poisons.minmin import (
    Shared,
    as_published,
    bound,
    build_surrogate,
    reached,
    report_stop,
    train_step,
)
from poisons.noise import Noise

__all__ = ["Config", "bound", "poison"]

VERSION = 2     # 1: the part in index order, with its last incomplete batch
SMOKE = {"width": 8, "max_rounds": 3, "train_steps": 2, "batch_size": 64}


@dataclass(frozen=True)
class Config(Shared):
    max_rounds: Count = 300         # a cap, ours; a round is a fiftieth of a sample-wise one
    share: Share = 0.2              # of each class, that the noise is made from; release: 0.2


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus the noise of its class."""
    require_classes(clean)
    say_not_shared(run)
    model, optimizer = build_surrogate(clean, config, run)
    frozen = FrozenSurrogate(model, run.device)
    noise = Noise(torch.zeros(clean.num_classes, 3, *clean.image_shape)).to(run.device.torch)
    minibatches = Endless(Batches(clean, config.batch_size, run, "surrogate"), config.train_steps)
    part = stratified(clean.labels, config.share, run.rng("subset"))
    errors: list[float] = []
    loop = Loop(run, run.job.method, config.max_rounds, model=model, optimizer=optimizer,
                noise=noise, errors=errors)

    for round_ in loop:
        model.train()
        for images, labels in loop.steps(minibatches):
            loss = train_step(model, optimizer, images + noise.delta[labels], labels, config)
            loop.add(len(images), loss=loss)
        run.world.share(model)
        run.world.share(noise)
        frozen.update(model)
        for rows in shuffled(part, config.batch_size, run.rng("part/update", round_)):
            images, labels = on_device(clean, rows, run)
            stepped = pgd(images, noise.delta[labels], frozen.gradient(labels),
                          epsilon=config.epsilon, step_size=config.step_size, steps=1)
            update_means(noise.delta, stepped, labels, config.epsilon)
        tested = shuffled(part, config.batch_size, run.rng("part/test", round_))
        errors.append(run.world.from_leader(error_rate(frozen, clean, tested, noise, run)))
        if reached(errors, config):
            loop.stop()
        loop.end_epoch(error=errors[-1])

    report_stop(errors, config, run)
    delta = as_published(noise.delta, config).permute(0, 2, 3, 1).cpu()
    labels = clean.labels_at()
    return clean.map_rows(lambda images, rows: images.add_(delta[labels[rows]]), run,
                          rounding=config.rounding)


def update_means(delta: torch.Tensor, stepped: torch.Tensor, labels: torch.Tensor,
                 epsilon: float) -> None:
    """Each class that occurs takes the mean of its images' stepped noise (a mean of steps, not a
    step of the mean)."""
    members = F.one_hot(labels, len(delta)).T.to(stepped)               # (K, B)
    count = members.sum(1)
    mean = (members @ stepped.flatten(1)).div_(count.clamp(min=1)[:, None]).view_as(delta)
    delta.copy_(torch.where(count[:, None, None, None] > 0, mean.clamp_(-epsilon, epsilon), delta))


def stratified(labels: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Row numbers, ascending, of `share` of every class (at least one image)."""
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        chosen.append(rng.permutation(rows)[: max(1, round(len(rows) * share))])
    return np.sort(np.concatenate(chosen))


def shuffled(part: np.ndarray, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The rows of `part` in another order, in batches; the last incomplete one is dropped, unless
    it is the only one."""
    order = rng.permutation(part)
    whole = max(1, len(part) // batch_size)
    return [order[i * batch_size : (i + 1) * batch_size] for i in range(whole)]


class Endless:
    """A number of minibatches per epoch, from one shuffled pass after the other."""

    def __init__(self, batches: Batches, steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0):
        step, last = epoch * self.steps + start, (epoch + 1) * self.steps
        while step < last:
            pass_, offset = divmod(step, len(self.batches))
            for batch in self.batches.epoch(pass_, offset):
                yield batch
                step += 1
                if step == last:
                    return


@torch.no_grad()
def error_rate(frozen: FrozenSurrogate, clean: ImageSet, batches: list[np.ndarray],
               noise: Noise, run: Run) -> float:
    """Share of the noised images in `batches` of rows that the surrogate, in eval mode, gets
    wrong."""
    def noised() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in batches:
            images, labels = on_device(clean, rows, run)
            yield images + noise.delta[labels], labels

    total = sum(map(len, batches))
    return (total - count_right(frozen, noised())) / total
