"""PIL: perturbations that induce linearisation.

The surrogate is a linear classifier, so that this costs about a minute: noise that it recognises as
the class, on images that it no longer recognises. Source: Liu et al., code jinlinll/pil (attack
notes, section 11).

Deviations: the linear surrogate's optimiser is not in the notes: SGD with momentum at their rate.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from core.config import budget, in_range, linf_radius
from core.imageset import ImageSet, Rounding
from core.run import Run
from core.streams import BLOCK, by_block
from core.training import Schedule
from models.classifiers import Architecture
from poisons.crafting import add_noise
from poisons.pgd import gradient_of, pgd
from poisons.surrogates import Training, train_surrogate

VERSION = 1
SMOKE = {"steps": 5, "surrogate.epochs": 2, "surrogate.batch_size": 64}


@dataclass(frozen=True)
class Surrogate(Training):
    architecture: Architecture = "linear"
    epochs: int = 30
    learning_rate: float = 3e-3
    schedule: Schedule = "constant"
    clip_norm: float | None = None
    crop_padding: int = 0
    flip: bool = False


@dataclass(frozen=True)
class Config:
    epsilon: float = 8 / 255        # L-inf budget
    step_size: float = 0.8 / 255
    steps: int = 30
    weight: float = 0.9             # lambda: of the noise's class, against the image's uncertainty
    rounding: Rounding = "round"
    surrogate: Surrogate = field(default_factory=Surrogate)

    def __post_init__(self) -> None:
        linf_radius("epsilon", self.epsilon)
        budget("step_size", self.step_size)
        in_range("steps", self.steps, at_least=1)
        in_range("weight", self.weight, at_least=0, at_most=1)


def bound(config: Config) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` minus its own delta, where delta minimises

        lambda CE(f(delta), y) + (1 - lambda) KL(uniform || softmax f(x - delta))
    """
    model = train_surrogate(clean, config.surrogate, run).requires_grad_(False)

    def noise(images: torch.Tensor, labels: torch.Tensor, rows: slice) -> torch.Tensor:
        def loss(x: torch.Tensor, step: int) -> torch.Tensor:
            as_noise = F.cross_entropy(model(images - x), labels, reduction="sum")
            unsure = -F.log_softmax(model(x), 1).mean(1).sum()      # KL up to a constant
            return config.weight * as_noise + (1 - config.weight) * unsure

        start = by_block(rows, lambda block: torch.rand(
            BLOCK, *images.shape[1:], generator=run.stream("pil/start", block)))
        start = (2 * start.to(images) - 1).mul_(config.epsilon)
        return pgd(images, start, gradient_of(loss), epsilon=config.epsilon,
                   step_size=config.step_size, steps=config.steps)

    return add_noise(clean, noise, run, rounding=config.rounding)
