"""EM: error-minimising noise, sample-wise.

A surrogate and the noise take turns: a few training steps on the noised images, then signed
descent of every image's noise on its own label, until the surrogate makes almost no mistake. It
sees about one epoch in all, so it stays under-trained by design. Source: Huang et al., ICLR 2021;
code HanxunH/Unlearnable-Examples.

Deviations: signed noise, rounded to the nearest level (the release keeps positive noise only, and
truncates: `positive_only`, `rounding: floor`); noise kept in half precision between rounds; the
error that ends the rounds is over images (the release's is the mean of its batches' errors).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.files import RowFile
from core.imageset import SLICE_ROWS, ImageSet, Rounding
from core.loop import Loop
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
from models.classifiers import Architecture, classifier
from poisons.crafting import batches, take
from poisons.pgd import FrozenSurrogate, pgd

VERSION = 1
SMOKE = {"width": 8, "max_rounds": 2, "train_steps": 2, "steps": 2, "batch_size": 64}


@dataclass(frozen=True)
class Shared(Keys):
    """Keys that EM's two forms share."""

    epsilon: LinfRadius = 8 / 255   # L-inf budget
    step_size: StepSize = 0.8 / 255
    train_steps: Count = 10         # of the surrogate a round; CIFAR-100: 20
    batch_size: BatchSize = 512     # of these steps
    learning_rate: Positive = 0.1   # SGD, never decayed
    momentum: BelowOne = 0.9
    weight_decay: PositiveOrZero = 5e-4     # CIFAR-100: 5e-5
    clip_norm: Positive = 5.0       # gradient norm
    stop_error: BelowOne = 0.01     # of the surrogate on the noised images, in eval mode
    max_rounds: Count = 100         # a cap; the released CIFAR-10 run took 10
    architecture: Architecture = "resnet18"
    width: Count = 64               # of resnet18
    positive_only: bool = False     # True: drop negative noise, as the release does
    rounding: Rounding = "round"    # the release: floor


@dataclass(frozen=True)
class Config(Shared):
    steps: Count = 20               # of PGD a round, from the noise of the round before


def bound(config: Shared) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own noise. Resumable within a round."""
    model, optimizer = build_surrogate(clean, config, run)
    frozen = FrozenSurrogate(model, run.device)
    noise = TwoFiles(run, clean)
    stream = IndexOrder(clean, config.batch_size, config.train_steps, run)
    errors: list[float] = []
    loop = Loop(run, "em", config.max_rounds, save_epochs=True, model=model, optimizer=optimizer,
                errors=errors)
    delta, _ = noise.files(loop.epoch)
    if loop.epoch:
        run.require_sweep(f"round{loop.epoch}", len(clean), SLICE_ROWS, delta)
    else:
        delta.clear()       # a run whose loop's state was lost starts from no noise

    for round_ in loop:
        delta, new_delta = noise.files(round_)
        model.train()
        for images, labels, rows in loop.steps(stream):
            loss = train_step(model, optimizer, images + read(delta, rows, run), labels, config)
            loop.add(len(images), loss=loss)        # x + delta is not clipped to [0, 1] here
        run.world.share(model)
        frozen.update(model)
        for start, stop in run.sweep(f"round{round_ + 1}", len(clean), SLICE_ROWS, new_delta):
            for rows in batches(start, stop, clean, run):
                images, labels = take(clean, rows, run)
                crafted = pgd(images, read(delta, rows, run), frozen.gradient(labels),
                              epsilon=config.epsilon, step_size=config.step_size,
                              steps=config.steps)
                new_delta.write(rows.start, to_rows(crafted))
        errors.append(run.world.from_leader(error_rate(frozen, clean, new_delta, run)))
        if reached(errors, config):
            loop.stop()
        loop.end_epoch(error=errors[-1])

    tell(errors, config, run)
    final, _ = noise.files(len(errors))
    poisoned = clean.map_rows(
        lambda images, rows: images.add_(kept(torch.from_numpy(final.read(rows)).float(), config)),
        run, rounding=config.rounding)
    noise.close()
    return poisoned


# --- shared with em_classwise ----------------------------------------------------------------


def build_surrogate(clean: ImageSet, config: Shared, run: Run
                    ) -> tuple[nn.Module, torch.optim.SGD]:
    with run.initialisation("surrogate"):
        model = classifier(config.architecture, clean.num_classes, clean.image_shape, config.width)
    model = run.device.place(model)
    return model, torch.optim.SGD(model.parameters(), config.learning_rate, config.momentum,
                                  weight_decay=config.weight_decay)


def train_step(model: nn.Module, optimizer: torch.optim.SGD, images: torch.Tensor,
               labels: torch.Tensor, config: Shared) -> torch.Tensor:
    """One step on noised images; returns the loss."""
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return loss


def reached(errors: list[float], config: Shared) -> bool:
    return bool(errors) and errors[-1] <= config.stop_error


def tell(errors: list[float], config: Shared, run: Run) -> None:
    """Print and log the trajectory and why the rounds ended."""
    run.say("surrogate's accuracy after each round (%): "
            + " ".join(f"{100 * (1 - error):.2f}" for error in errors))
    if reached(errors, config):
        why = (f"stopped after round {len(errors)}: error {errors[-1]:.2%} <= "
               f"{config.stop_error:.2%}")
    else:
        why = (f"stopped at the cap of {config.max_rounds} rounds with error {errors[-1]:.2%}: the "
               f"stop at {config.stop_error:.2%} was not reached (max_rounds, stop_error)")
    run.say(why)
    run.note("stop", reached=reached(errors, config), rounds=len(errors), errors=errors)


def kept(delta: torch.Tensor, config: Shared) -> torch.Tensor:
    """The noise as it meets the pixels. Overwrites `delta`."""
    if config.positive_only:
        delta.clamp_(min=0)
    if config.rounding == "floor":
        # Half precision holds 8/255 as 7.9999/255, which truncation would make 7; and in float32
        # x/255 - 8/255 can fall just below its level. Twice half's rounding error lifts both.
        delta.add_(config.epsilon * 2**-11)
    return delta


# --- noise on disk ---------------------------------------------------------------------------


class TwoFiles:
    """The noise of every image as float16 (N, H, W, 3): one file to read, one to write, by turns,
    so that a round killed in its middle still finds what it started from."""

    def __init__(self, run: Run, clean: ImageSet) -> None:
        self._files = [RowFile(run.work / "state" / f"noise{i}.npy", clean.images.shape, "float16")
                       for i in (0, 1)]            # zeros, where nothing has been written yet

    def files(self, round_: int) -> tuple[RowFile, RowFile]:
        """What round `round_` reads (its noise so far) and writes."""
        return self._files[round_ % 2], self._files[1 - round_ % 2]

    def close(self) -> None:
        for file in self._files:
            file.close()


def read(file: RowFile, rows: slice, run: Run) -> torch.Tensor:
    """Rows of noise as float32 (B, 3, H, W), channels-last, on the run's device."""
    noise = torch.from_numpy(file.read(rows)).to(run.device.torch)
    return noise.float().permute(0, 3, 1, 2)


def to_rows(delta: torch.Tensor) -> np.ndarray:
    return delta.permute(0, 2, 3, 1).half().cpu().numpy()


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
            yield *take(self.clean, rows, self.run), rows


@torch.no_grad()
def error_rate(frozen: FrozenSurrogate, clean: ImageSet, noise: RowFile, run: Run) -> float:
    """Share of noised images that the surrogate, in eval mode, gets wrong."""
    wrong = torch.zeros((), dtype=torch.int64, device=run.device.torch)
    for rows in batches(0, len(clean), clean, run):
        images, labels = take(clean, rows, run)
        wrong += (frozen(images + read(noise, rows, run)).argmax(1) != labels).sum()
    return wrong.item() / len(clean)
