"""AAP: augmented adversarial poisoning, against supervised and contrastive learners at once.

TAP with the augmentation of contrastive learning in both places: the surrogate was trained on
strongly augmented clean images, and every image is moved towards the next class through such
augmentations, under its own label. Source: Wang et al., NeurIPS 2024; code EhanW/AUE-AAP,
aap.py.

Deviations: the surrogate's images are augmented as tensors (the release's by Pillow, in whole grey
levels), and while the noise moves crops are antialiased with half-pixel centres (kornia's, the
release's, are neither); the surrogate's rate falls to 0 (the release's to 1e-6); rounding down
meets whole levels of noise as whole ones; below 96 pixels the surrogate has the stem for small
images (the release's below 64); on a GPU it learns in bf16.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from core.imageset import ImageSet, Rounding
from core.pgd import gradient_of, pgd
from core.ranges import (
    Count,
    CountOrZero,
    Keys,
    LinfRadius,
    Positive,
    PositiveOrZero,
    Share,
    StepSize,
)
from core.run import Run
from core.streams import BLOCK
from core.views import Drawn, apply, draw, fresh
from poisons.crafting import add_noise, craft_rows, report_seen, targets_of
from poisons.frozen import FrozenSurrogate
from poisons.noise import lifted
from poisons.surrogates import Training, train_surrogate
from poisons.transforms import contrastive_views

VERSION = 1
SMOKE = {"steps": 3, "step_size": 3.4 / 255, "surrogate.width": 8, "surrogate.epochs": 1,
         "surrogate.warmup_epochs": 0, "surrogate.batch_size": 64}


@dataclass(frozen=True)
class Surrogate(Training):
    epochs: Count = 40              # passes over the clean set; release: 40
    drop_last: bool = False         # leave out an epoch's incomplete last batch; release: no
    learning_rate: Positive = 0.5   # after the climb; release: 0.5
    # epochs in which the rate climbs straight up, before half a cosine; release: 10
    warmup_epochs: CountOrZero = 10
    weight_decay: PositiveOrZero = 1e-4     # L2 penalty in the gradient; release: 1e-4
    # largest L2 norm of the gradient; null: no clipping, as the release
    clip_norm: Positive | None = None
    # none: it is trained with the attack's own crops, as the release
    crop_padding: CountOrZero = 0
    flip: bool = False              # no: it is trained with the attack's own flips, as the release
    # s, of the augmentation that it is trained with; release: 0.4, CIFAR-100 0.8
    strength: Share = 0.4


@dataclass(frozen=True)
class Config(Keys):
    epsilon: LinfRadius = 8 / 255   # L-inf budget, [0, 1] units; release: 8/255
    # of the signed steps, [0, 1] units; release: 2.5 epsilon / steps
    step_size: StepSize = 0.08 / 255
    steps: Count = 250              # signed, of every image, from no noise; release: 250
    # towards the next class; false: away from the own; release: both
    targeted: bool = True
    # s, of the augmentation: crops of 1 - 0.9 s of the area and more, jitter of 0.4 s with
    # probability 0.8 s, grey with 0.2 s; release: 0.4, CIFAR-100 0.8
    strength: Share = 0.4
    flip: bool = True               # mirror half of the draws; release: yes
    rounding: Rounding = "floor"    # of images to grey levels: nearest, or down, as the release
    # what the noise is made on, trained on the clean set
    surrogate: Surrogate = field(default_factory=Surrogate)


def bound(config: Config) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own noise, towards the next class or, not
    `targeted`, away from its own."""
    targets = targets_of(clean, run, targeted=config.targeted)
    views = contrastive_views(config.surrogate.strength, config.flip)

    def augmented(images: torch.Tensor, labels: torch.Tensor, step: int
                  ) -> tuple[torch.Tensor, torch.Tensor]:
        return fresh(images, views, run.stream("aap/surrogate", step)), labels

    frozen = FrozenSurrogate(
        train_surrogate(clean, config.surrogate, run, transform=augmented), run.device)

    def noise(images: torch.Tensor, _: torch.Tensor, rows: slice) -> torch.Tensor:
        """Of a block of rows, as many at a time as fit one pass."""
        drawn = draws_of_block(rows.start // BLOCK, clean, config, run)
        size = craft_rows(clean.image_shape, images.device.type)
        parts = [slice(start, min(start + size, len(images)))
                 for start in range(0, len(images), size)]
        return torch.cat([moved(images[part], targets[rows][part].to(images.device),
                                [views.part(part) for views in drawn], frozen, config)
                          for part in parts])

    poisoned = add_noise(clean, noise, run, rounding=config.rounding, slice_rows=BLOCK)
    report_seen("says the next class" if config.targeted else "is right", poisoned, frozen, targets,
                run)
    return poisoned


def draws_of_block(block: int, clean: ImageSet, config: Config, run: Run) -> list[Drawn]:
    """The augmentations of a block of BLOCK rows, one for each step."""
    views = contrastive_views(config.strength, config.flip)
    return [draw(views, BLOCK, clean.image_shape, run.stream(f"aap/noise/{step}", block),
                 run.device.torch) for step in range(config.steps)]


def moved(images: torch.Tensor, targets: torch.Tensor, drawn: list[Drawn], frozen: FrozenSurrogate,
          config: Config) -> torch.Tensor:
    """The noise of these images after `steps` signed steps, each through its own augmentations."""
    sign = 1 if config.targeted else -1

    def loss(noised: torch.Tensor, step: int) -> torch.Tensor:
        seen = frozen(apply(noised, drawn[step]))
        return sign * F.cross_entropy(seen, targets, reduction="sum")

    delta = pgd(images, torch.zeros_like(images), gradient_of(loss), epsilon=config.epsilon,
                step_size=config.step_size, steps=config.steps)
    return lifted(delta, config.rounding)
