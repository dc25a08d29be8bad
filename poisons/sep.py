"""SEP: self-ensemble protection.

Adversarial examples of many checkpoints of one training: the gradients of all of them are averaged.
The target is the class half-way round. Source: Chen et al., ICLR 2023; code Sizhe-Chen/SEP.

    sep         cross-entropy to the target class
    fa          feature alignment: squared distance to the target class's mean feature
    fa_vr       the same with variance-reduced steps between the outer ones

Deviations: checkpoints equally spaced over all epochs (the release stores on CIFAR-10 those that
improve on test images, on CIFAR-100 each: `checkpoints`, `surrogate.epochs`), the last incomplete
batch dropped (`surrogate.drop_last`); CIFAR-10's mean and std on every data set (`surrogate.mean`,
`surrogate.std`); 8/255 and rounding to the nearest level (the release: 2/255 and truncation:
`epsilon`, `rounding`); on a GPU the surrogate learns in bf16. Two bugs of the release are not
repeated, by no key: in fa and fa_vr it takes the first checkpoint's centroids before any `eval()`,
from batch statistics; and in fa_vr it takes the last checkpoint's centroids for all.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from core.errors import ConfigError, UserError
from core.imageset import ImageSet, Rounding
from core.pgd import Gradient, gradient_of, pgd
from core.ranges import Count, Keys, LinfRadius, StepSize
from core.run import Run
from poisons.crafting import add_noise, on_device, other_class, report_seen, slices
from poisons.ensemble import Surrogate, check_checkpoints, train_ensemble
from poisons.frozen import FrozenSurrogate

VERSION = 2     # 1: the surrogate's first epoch climbed one batch late
SMOKE = {"steps": 2, "checkpoints": 2, "surrogate.width": 8, "surrogate.epochs": 2,
         "surrogate.batch_size": 64, "surrogate.milestones": []}


@dataclass(frozen=True)
class Config(Keys):
    # sep: cross-entropy; fa: feature alignment; fa_vr: with variance reduction; paper
    loss: Literal["sep", "fa", "fa_vr"] = "sep"
    epsilon: LinfRadius = 8 / 255   # L-inf budget, [0, 1] units; ISS: 8/255, release: 2/255
    step_size: StepSize = 1 / 255   # of the signed steps, [0, 1] units; release: 1/255
    steps: Count = 30               # signed, of every image; release: 30
    inner_steps: Count = 15         # of fa_vr, between two of these; release: 15
    # equally spaced over the training, the last epoch included; release: 30, fa_vr 15
    checkpoints: Count = 30
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down, as the release
    # what the noise is made on, trained on the clean set
    surrogate: Surrogate = field(default_factory=Surrogate)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_checkpoints(self.checkpoints, self.surrogate)
        if self.loss != "fa_vr" and self.inner_steps != Config.inner_steps:
            raise ConfigError("inner_steps", f"changes nothing with {self.loss}: leave it out, or "
                                             "set loss to fa_vr")


def bound(config: Config) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own noise, for the class half-way round."""
    targets = other_class(clean, clean.num_classes // 2, run)
    if config.loss != "sep" and not np.isin(targets, clean.labels).all():
        raise UserError(f"sep.loss: {config.loss} needs images of every class half-way round; write"
                        " sep, or take images of each class")
    ensemble = train_ensemble(clean, config.checkpoints, config.surrogate, run)
    centroids = [class_features(frozen, clean, run) for frozen in ensemble] \
        if config.loss != "sep" else []

    def losses(targets: torch.Tensor) -> list[Gradient]:
        """One gradient a checkpoint."""

        def by_class(frozen: FrozenSurrogate) -> Callable:
            return lambda x, _: F.cross_entropy(frozen(x), targets, reduction="sum")

        def by_feature(frozen: FrozenSurrogate, means: torch.Tensor) -> Callable:
            return lambda x, _: (frozen.features(x) - means[targets]).square().mean(1).sum()

        if config.loss == "sep":
            return [gradient_of(by_class(frozen)) for frozen in ensemble]
        return [gradient_of(by_feature(*pair)) for pair in zip(ensemble, centroids, strict=True)]

    def noise(images: torch.Tensor, _: torch.Tensor, rows: slice) -> torch.Tensor:
        gradients = losses(targets[rows].to(images.device))

        def average(x: torch.Tensor, step: int) -> torch.Tensor:
            if config.loss == "fa_vr":
                return variance_reduced(x, images, gradients, step, config, run)
            return sum(gradient(x, step) for gradient in gradients)     # only its sign counts

        return pgd(images, torch.zeros_like(images), average, epsilon=config.epsilon,
                   step_size=config.step_size, steps=config.steps)

    poisoned = add_noise(clean, noise, run, rounding=config.rounding)
    report_seen("says the class half-way round", poisoned, ensemble[-1], targets, run)
    return poisoned


def variance_reduced(x: torch.Tensor, images: torch.Tensor, gradients: list[Gradient], step: int,
                     config: Config, run: Run) -> torch.Tensor:
    """The sum of the gradients along `inner_steps` steps from x, each of one random checkpoint and
    corrected by how far that checkpoint is from the mean at x."""
    at_x = [gradient(x, step) for gradient in gradients]
    mean = sum(at_x) / len(at_x)
    inside, total = x, torch.zeros_like(x)
    chosen = torch.randint(len(gradients), (config.inner_steps,),
                           generator=run.stream("sep/checkpoint", step))
    for choice in chosen.tolist():
        total = total + gradients[choice](inside, step) - (at_x[choice] - mean)
        moved = inside - config.step_size * total.sign() - images
        inside = (images + moved.clamp_(-config.epsilon, config.epsilon)).clamp_(0, 1)
    return total


@torch.no_grad()
def class_features(frozen: FrozenSurrogate, clean: ImageSet, run: Run) -> torch.Tensor:
    """The mean feature of each class of clean images (K, C)."""
    total, counts = 0.0, torch.zeros(clean.num_classes, 1, device=run.device.torch)
    with run.device.exact():                # they are computed again after a kill
        for rows in slices(0, len(clean), clean, run):
            images, labels = on_device(clean, rows, run)
            of_class = F.one_hot(labels, clean.num_classes).float()
            total = total + of_class.T @ frozen.features(images)
            counts += of_class.sum(0)[:, None]
    return total / counts.clamp(min=1)
