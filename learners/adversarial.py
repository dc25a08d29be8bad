"""AT, adversarial training: each step is taken on images that were moved, within a radius, to where
the network as it stands is most wrong.

Source: Madry et al., ICLR 2018. Releases differ in radius, step, start and schedule, and so do
their numbers: each is a preset. Start `gauss` is that of code HanxunH/Unlearnable-Examples (D-VAE,
ISS and APBench have it from there), which is not projected before the first step; `uniform`, in the
ball and in [0, 1], is that of code fshp971/robust-unlearnable-examples.

The attack runs in eval mode, with parameter gradients off and on the labels of the data; the update
runs in train mode, and the training accuracy is that of the moved images. Inputs are normalised
inside the model, so the radius is in [0, 1] units whatever `mean` and `std` are.

Deviations: code hala64/mi-ue clips its uniform start to [0, 1] only after the first step.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from core.errors import ConfigError
from core.imageset import ImageSet
from core.pgd import Norm, gradient_of, lengths, pgd
from core.ranges import Count, Positive, StepSize, check
from core.run import Run
from core.training import RateSchedule, Result
from learners import standard

VERSION = 1
SMOKE = {**standard.SMOKE, "iterations": 2}
LABEL = ("epsilon", "norm")     # REM falls at 8/255 and survives at 4/255: no number without them
L2_LEAST = 0.1                  # an L2 radius below it is one that was meant for linf


@dataclass(frozen=True)
class Config(standard.Config):
    # the radius, in `norm` and [0, 1] units; releases: 8/255, REM's 4/255
    epsilon: Positive = 8 / 255
    # of one attack step, in `norm` and [0, 1] units; releases: 2/255, REM's 0.8/255
    step_size: Positive = 2 / 255
    # attack steps an image; releases: 10, ECLIPSE's and DUNE's 7, at 224x224 D-VAE's 5, REM's 8
    iterations: Count = 10
    norm: Norm = "linf"             # of the radius; releases: linf, APBench and BridgePure also l2
    # of the attack: uniform in the ball, or a step's length of Gaussian noise, as EM's release
    start: Literal["uniform", "gauss"] = "uniform"
    epochs: Count = 100             # passes over the set; EM's release: 100 for AT
    # of the learning rate; EM's release: a tenth at each milestone
    schedule: RateSchedule = "multistep"
    milestones: tuple[Count, ...] = (75, 90)    # in epochs, or in steps if `steps` is set; EM's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "linf":
            check(StepSize, self.epsilon, "epsilon")
            check(StepSize, self.step_size, "step_size")
        elif self.epsilon < L2_LEAST:
            raise ConfigError("epsilon", f"an l2 radius of {self.epsilon:.4g} is next to none; "
                                         "128/255 is usual (preset l2)")


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on attacked images of `train` and score it on the clean `test`."""

    def loss(model, images, labels, step):
        noise = run.stream("adversarial/start", step, run.device.torch)
        logits = model(attack(model, images, labels, config, noise))
        return F.cross_entropy(logits, labels), logits

    return standard.fit(train, test, config, run, loss=loss)


def attack(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, config: Config,
           noise: torch.Generator) -> torch.Tensor:
    """The images (B, 3, H, W) in [0, 1] where `iterations` steps up the loss end: within `epsilon`
    of `images`, and in [0, 1]. Labels int64 (B,), or float (B, K), the share of each class."""
    gradient = gradient_of(
        lambda moved, _: F.cross_entropy(model(moved), labels, reduction="sum"))
    with held_still(model):
        delta = pgd(images, begin(images, config, noise), gradient, epsilon=config.epsilon,
                    step_size=config.step_size, steps=config.iterations, ascend=True,
                    norm=config.norm, clip="all" if config.start == "uniform" else "moved")
    return (images + delta).clamp_(0, 1)


def begin(images: torch.Tensor, config: Config, noise: torch.Generator) -> torch.Tensor:
    """The perturbation before the first step. In l2 a start has a random direction, and of `gauss`
    the length of a step."""
    drawn = images.new_empty(images.permute(0, 2, 3, 1).shape)
    if config.norm == "linf" and config.start == "uniform":
        drawn.uniform_(-config.epsilon, config.epsilon, generator=noise)
        return drawn.permute(0, 3, 1, 2)                        # channels-last, as `images`
    drawn = drawn.normal_(generator=noise).permute(0, 3, 1, 2)
    if config.norm == "linf":
        return drawn.mul_(config.step_size)
    drawn.div_(lengths(drawn))
    if config.start == "gauss":
        return drawn.mul_(config.step_size)
    inside = images.new_empty(len(images), 1, 1, 1).uniform_(generator=noise)  # share of the volume
    return drawn.mul_(config.epsilon * inside.pow_(1 / images[0].numel()))


@contextlib.contextmanager
def held_still(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and its parameters take no gradients; after it all is as it
    was, layer by layer: what somebody froze stays frozen."""
    training = [(module, module.training) for module in model.modules()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, was in training:
            module.training = was
        for parameter in learning:
            parameter.requires_grad_(True)
