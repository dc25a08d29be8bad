"""The min-min optimisation of EM's two forms: their keys, their surrogate, the end of their rounds.

    min over theta, min over delta of  CE(f_theta(x + delta), y)

A round trains the surrogate for a few steps on the noised images, then moves the noise. Source:
Huang et al., ICLR 2021, equation 2; code HanxunH/Unlearnable-Examples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from core.graphs import sgd
from core.imageset import ImageSet, Rounding
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
from models.classifiers import Architecture, check_images, classifier


@dataclass(frozen=True)
class Shared(Keys):
    """Keys that EM's two forms share."""

    epsilon: LinfRadius = 8 / 255   # L-inf budget, [0, 1] units; release: 8/255
    # of the noise's signed steps, [0, 1] units; release: a tenth of epsilon
    step_size: StepSize = 0.8 / 255
    # of the surrogate a round; release: 10, sample-wise on CIFAR-100 20, on ImageNet 100
    train_steps: Count = 10
    batch_size: BatchSize = 512     # images of these steps; release: 512, ImageNet 32
    learning_rate: Positive = 0.1   # of the surrogate's SGD, never decayed; release
    momentum: BelowOne = 0.9        # of the surrogate's SGD; release
    weight_decay: PositiveOrZero = 5e-4     # of the surrogate's SGD; release: 5e-4, CIFAR-100 5e-5
    clip_norm: Positive = 5.0       # largest L2 norm of the surrogate's gradient; release
    # share of noised images, of the surrogate in eval mode, that ends the rounds; release: 0.01,
    # ImageNet 0.1
    stop_error: BelowOne = 0.01
    max_rounds: Count = 100         # a cap, ours; the release's CIFAR-10 run took 10
    architecture: Architecture = "resnet18"     # the surrogate; release: resnet18
    # channels of resnet18's first group, release: 64; others have width / 64 of their own
    width: Count = 64
    positive_only: bool = False     # drop negative noise, as the release does
    rounding: Rounding = "round"    # of images to grey levels: nearest, or down, as the release

    def check_images(self, shape: tuple[int, int]) -> None:
        check_images(self.architecture, shape)


def bound(config: Shared) -> tuple[str, float]:
    return "linf", config.epsilon


def build_surrogate(clean: ImageSet, config, run: Run,
                    behind: Callable[[nn.Module], nn.Module] = lambda network: network
                    ) -> tuple[nn.Module, torch.optim.SGD]:
    """The network that `config` names, perhaps put `behind` something, and its optimiser."""
    with run.initialisation("surrogate"):
        model = classifier(config.architecture, clean.num_classes, clean.image_shape, config.width)
    model = run.device.place(behind(model))
    return model, sgd(model, run.device, lr=config.learning_rate, momentum=config.momentum,
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


def report_stop(errors: list[float], config: Shared, run: Run) -> None:
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
    run.log_once("stop", reached=reached(errors, config), rounds=len(errors), errors=errors)


def as_published(delta: torch.Tensor, config: Shared) -> torch.Tensor:
    """The noise as it meets the pixels. Overwrites `delta`."""
    if config.positive_only:
        delta.clamp_(min=0)
    if config.rounding == "floor":
        # Half precision holds 8/255 as 7.9999/255, which truncation would make 7; and in float32
        # x/255 - 8/255 can fall just below its level. No less than half's rounding error, it lifts
        # both.
        delta.add_(config.epsilon * 2**-11)
    return delta
