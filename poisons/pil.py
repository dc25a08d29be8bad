"""PIL: perturbations that induce linearisation.

The surrogate is a linear classifier, so that this costs about a minute: noise that it recognises as
the class, on images that it no longer recognises. Source: Liu et al., ICLR 2026; code
jinlinll/pil.

Deviations: rounding is to the nearest level (the release stores floats, which its loader truncates:
`rounding: floor`); on a GPU the surrogate learns in bf16. It has two linear layers without bias;
one with a bias, as here once, is `surrogate.architecture: linear`.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from core.config import added
from core.imageset import ImageSet, Rounding
from core.pgd import gradient_of, pgd
from core.ranges import (
    BatchSize,
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
from core.training import RateSchedule
from models.classifiers import Architecture
from poisons.crafting import add_noise
from poisons.noise import uniform_noise
from poisons.surrogates import Training, train_surrogate

VERSION = 2     # 1: one layer with a bias, weight decay, a constant rate, x - delta clipped
SMOKE = {"steps": 5, "surrogate.epochs": 2, "surrogate.batch_size": 64}


@dataclass(frozen=True)
class Surrogate(Training):
    # two linear layers without bias, as the release; `linear` is one with a bias
    architecture: Architecture = "two_linear"
    epochs: Count = 30              # passes over the clean set; release: 30
    batch_size: BatchSize = 512     # images a step; release: 512
    drop_last: bool = False         # leave out an epoch's incomplete last batch; release: no
    learning_rate: Positive = 3e-3  # of SGD, at the start; release: 3e-3
    weight_decay: PositiveOrZero = 0.0  # of SGD; release: none
    schedule: RateSchedule = "cosine"   # of the learning rate; release: cosine, to 0
    # largest L2 norm of the gradient; null: no clipping, as the release
    clip_norm: Positive | None = None
    crop_padding: CountOrZero = 0   # black pixels a side before a random crop; release: none
    flip: bool = False              # mirror half of the images; release: no
    shuffle: bool = added(False)    # a new order every epoch, or always the set's; release: this


@dataclass(frozen=True)
class Config(Keys):
    epsilon: LinfRadius = 8 / 255   # L-inf budget, [0, 1] units; release: 8/255
    # of the signed steps, [0, 1] units; release: a tenth of epsilon
    step_size: StepSize = 0.8 / 255
    steps: Count = 30               # signed, of every image; release: 30
    # lambda: of the noise's own class, against the image's uncertainty; release: 0.9
    weight: Weight = 0.9
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down, as the release
    # what the noise is made on, trained on the clean set
    surrogate: Surrogate = field(default_factory=Surrogate)


def bound(config: Config) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` minus its own delta, where delta minimises

        lambda CE(f(delta), y) + (1 - lambda) KL(uniform || softmax f(x - delta))

    within +-epsilon. Only what is published is clipped to [0, 1]: f sees x - delta as it is.
    """
    model = train_surrogate(clean, config.surrogate, run).requires_grad_(False)

    def noise(images: torch.Tensor, labels: torch.Tensor, rows: slice) -> torch.Tensor:
        def loss(delta: torch.Tensor, step: int) -> torch.Tensor:
            as_noise = F.cross_entropy(model(delta), labels, reduction="sum")
            unsure = -F.log_softmax(model(images - delta), 1).mean(1).sum()     # KL + a constant
            return config.weight * as_noise + (1 - config.weight) * unsure

        start = uniform_noise(rows, clean.image_shape, config.epsilon, run).to(images)
        nothing = torch.zeros_like(images)          # delta is free of the image
        return -pgd(nothing, start, gradient_of(loss), epsilon=config.epsilon,
                    step_size=config.step_size, steps=config.steps, clip="none")

    return add_noise(clean, noise, run, rounding=config.rounding)
