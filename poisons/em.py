"""EM: error-minimising noise, sample-wise.

A surrogate and the noise take turns: a few training steps on the noised images, then signed
descent of every image's noise on its own label, until the surrogate makes almost no mistake. It
sees about one epoch in all, so it stays under-trained by design. Source: Huang et al., ICLR 2021;
code HanxunH/Unlearnable-Examples.

Deviations: signed noise, rounded to the nearest level (the release keeps positive noise only, and
truncates: `positive_only`, `rounding: floor`); noise kept in half precision between rounds; the
error that ends the rounds is over images (the release's is the mean of its batches' errors). At 96
pixels and above the surrogate has the ImageNet stem (APBench's has the one for small images).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from core.config import added
from core.files import RowFile
from core.imageset import ImageSet
from core.loop import Loop
from core.pgd import pgd
from core.ranges import Count
from core.run import Run
from core.training import count_right
from poisons.crafting import on_device, require_classes, slices
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
from poisons.noise import TwoFiles, load_noise, store_noise, uniform_noise

__all__ = ["Config", "bound", "poison"]

VERSION = 1
SMOKE = {"width": 8, "max_rounds": 2, "train_steps": 2, "steps": 2, "batch_size": 64}


@dataclass(frozen=True)
class Config(Shared):
    # signed steps of every image a round, from its noise of the round before; release: 20
    steps: Count = 20
    # noise starts uniform in the budget, as the release's runs at 16/255 on CIFAR-10; else at 0
    random_start: bool = added(False)


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own noise. Resumable within a round."""
    require_classes(clean)
    model, optimizer = build_surrogate(clean, config, run)
    frozen = FrozenSurrogate(model, run.device)
    noise = TwoFiles(clean, run)
    minibatches = IndexOrder(clean, config.batch_size, config.train_steps, run)
    errors: list[float] = []

    def uniform(rows: slice) -> torch.Tensor:
        return uniform_noise(rows, clean.image_shape, config.epsilon, run)

    loop = Loop(run, "em", config.max_rounds, save_epochs=True, model=model, optimizer=optimizer,
                errors=errors)
    noise.begin(loop.epoch, uniform if config.random_start else None)

    for round_ in loop:
        delta, new_delta = noise.files(round_)
        model.train()
        for images, labels, rows in loop.steps(minibatches):
            noised = images + load_noise(delta, rows, run)      # not clipped to [0, 1] here
            loss = train_step(model, optimizer, noised, labels, config)
            loop.add(len(images), loss=loss)
        run.world.share(model)
        frozen.update(model)
        for start, stop in noise.sweep(round_):
            for rows in slices(start, stop, clean, run):
                images, labels = on_device(clean, rows, run)
                crafted = pgd(images, load_noise(delta, rows, run), frozen.gradient(labels),
                              epsilon=config.epsilon, step_size=config.step_size,
                              steps=config.steps)
                store_noise(new_delta, rows.start, crafted)
        errors.append(run.world.from_leader(error_rate(frozen, clean, new_delta, run)))
        if reached(errors, config):
            loop.stop()
        loop.end_epoch(error=errors[-1])

    report_stop(errors, config, run)
    final, _ = noise.files(len(errors))

    def noised_rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        return images.add_(as_published(torch.from_numpy(final.read(rows)).float(), config))

    poisoned = clean.map_rows(noised_rows, run, rounding=config.rounding)
    noise.close()
    return poisoned


class IndexOrder:
    """`steps` minibatches an epoch from an endless pass over the set in index order: an epoch goes
    on where the last one ended. Yields (images, labels, slice of rows)."""

    def __init__(self, clean: ImageSet, batch_size: int, steps: int, run: Run) -> None:
        self.clean, self.steps, self.run = clean, steps, run
        starts = range(0, len(clean), batch_size)
        slices = [slice(start, min(start + batch_size, len(clean))) for start in starts]
        self.slices = [part for part in slices if part.stop - part.start > 1] or slices

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple]:
        for step in range(epoch * self.steps + start, (epoch + 1) * self.steps):
            rows = self.slices[step % len(self.slices)]
            yield *on_device(self.clean, rows, self.run), rows


@torch.no_grad()
def error_rate(frozen: FrozenSurrogate, clean: ImageSet, noise: RowFile, run: Run) -> float:
    """Share of noised images that the surrogate, in eval mode, gets wrong."""
    def noised() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in slices(0, len(clean), clean, run):
            images, labels = on_device(clean, rows, run)
            yield images + load_noise(noise, rows, run), labels

    return (len(clean) - count_right(frozen, noised())) / len(clean)
