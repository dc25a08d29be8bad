"""HYPO: hypocritical perturbations.

A fully trained surrogate's loss on every image is made smaller still (P2, what benchmarks call
HYPO): a mild poison. P1 moves the images to the next class instead, as TAP does without its
transforms. Source: Tao et al., NeurIPS 2021; code TLMichael/Delusive-Adversary.

Deviations: L-inf 8/255 as in the benchmarks (the release: L2 0.5, which is `norm: l2` and `epsilon:
0.5`); rounding to the nearest level (the release truncates: `rounding: floor`); the surrogate of
the last epoch and of all images, less the last incomplete batch, not the best on 1,000 that are
held out; on a GPU it learns in bf16; P3-P5, which are universal noises, are not here. APBench's
HYPO takes steps of 0.8/255 (`step_size`) on a ResNet-18 (`surrogate.architecture`), whose training
it does not tell: `preset=apbench`.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch

from core.config import added
from core.errors import ConfigError
from core.imageset import ImageSet, Rounding
from core.pgd import Norm, pgd
from core.ranges import Count, Keys, LinfRadius, Positive, StepSize, check
from core.run import Run
from core.training import RateSchedule
from models.classifiers import Architecture
from poisons.crafting import add_noise, report_seen, targets_of
from poisons.frozen import FrozenSurrogate
from poisons.surrogates import Training, train_surrogate

VERSION = 1
SMOKE = {"steps": 3, "surrogate.architecture": "resnet18", "surrogate.width": 8,
         "surrogate.epochs": 1, "surrogate.batch_size": 64}


@dataclass(frozen=True)
class Surrogate(Training):
    architecture: Architecture = "vgg16"    # the network; release: vgg16, APBench resnet18
    epochs: Count = 150             # passes over the clean set; release: 150
    # of the learning rate; release: a tenth at each milestone
    schedule: RateSchedule = "multistep"
    milestones: tuple[Count, ...] = (100, 125)  # in epochs; release: 100 and 125
    # largest L2 norm of the gradient; null: no clipping, as the release
    clip_norm: Positive | None = None


@dataclass(frozen=True)
class Config(Keys):
    # p2 descends the loss on the own label, p1 on the next; benchmarks: p2
    variant: Literal["p2", "p1"] = "p2"
    norm: Norm = "linf"             # of the budget; benchmarks: linf, release: l2
    # budget in `norm`, [0, 1] units; benchmarks: 8/255, release: L2 0.5
    epsilon: Positive = 8 / 255
    steps: Count = 100              # signed, of every image; release: 100
    # in [0, 1] units; null: epsilon / 5, as the release; APBench: 0.8/255
    step_size: Positive | None = added(None)
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down, as the release
    # what the noise is made on, trained on the clean set
    surrogate: Surrogate = field(default_factory=Surrogate)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "linf":
            check(LinfRadius, self.epsilon, "epsilon")
            check(StepSize | None, self.step_size, "step_size")
        elif self.epsilon < 0.1:
            raise ConfigError("epsilon", f"an l2 radius of {self.epsilon:.4g} is lost in rounding; "
                                         "the release has 0.5")


def bound(config: Config) -> tuple[str, float]:
    return config.norm, config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own noise."""
    targets = targets_of(clean, run, targeted=config.variant == "p1")
    frozen = FrozenSurrogate(train_surrogate(clean, config.surrogate, run), run.device)
    step_size = config.epsilon / 5 if config.step_size is None else config.step_size

    def noise(images: torch.Tensor, _: torch.Tensor, rows: slice) -> torch.Tensor:
        gradient = frozen.gradient(targets[rows].to(images.device))
        return pgd(images, torch.zeros_like(images), gradient, norm=config.norm,
                   epsilon=config.epsilon, step_size=step_size, steps=config.steps)

    poisoned = add_noise(clean, noise, run, rounding=config.rounding)
    report_seen("is right" if config.variant == "p2" else "says the next class", poisoned, frozen,
                targets, run)
    return poisoned
