"""AUE: augmented unlearnable examples, against supervised and contrastive learners at once.

EM with the augmentation of contrastive learning in both places: the surrogate learns from strongly
augmented noised images, and the noise descends its label's loss through such augmentations. Noise
that survives them lowers a contrastive loss too, without one being computed.

    min over theta, min over delta of  E over a in A of  CE(f_theta(a(x + delta)), y)

Source: Wang et al., NeurIPS 2024; code EhanW/AUE-AAP, aue.py.

Deviations: rounding down meets whole levels of noise as whole ones; an epoch is a pass over the
set (the release's is 391 batches, whatever the set's size); below 96 pixels the surrogate has the
stem for small images (the release's below 64); on a GPU it learns in bf16. The noise of every row
is in memory. Crops are antialiased and their pixels have half-pixel centres (kornia's, the
release's, are neither). Options of the release that are not here: noise of classes, a strength that
changes with the epochs, images augmented before their noise is added.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from core.imageset import ImageSet
from core.ranges import Share
from core.run import Run
from core.views import fresh
from poisons.crafting import require_classes
from poisons.frozen import FrozenSurrogate
from poisons.transforms import contrastive_views
from poisons.turns import Shared, bound, take_turns

__all__ = ["Config", "bound", "poison"]

VERSION = 1
SMOKE = {"width": 8, "batch_size": 64, "epochs": 2, "steps": 2}


@dataclass(frozen=True)
class Config(Shared):
    # s, of the augmentation: crops of 1 - 0.9 s of the area and more, jitter of 0.4 s with
    # probability 0.8 s, grey with 0.2 s; release: 0.6, CIFAR-100 1
    strength: Share = 0.6
    flip: bool = True               # mirror half of the draws; release: yes


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own noise."""
    require_classes(clean)
    views = contrastive_views(config.strength, config.flip)

    def augmented(images: torch.Tensor, name: str, step: int) -> torch.Tensor:
        return fresh(images, views, run.stream(f"aue/{name}", step))

    def noise_loss(frozen: FrozenSurrogate, noised: torch.Tensor, labels: torch.Tensor, step: int
                   ) -> torch.Tensor:
        return F.cross_entropy(frozen(augmented(noised, "noise", step)), labels, reduction="sum")

    return take_turns(clean, config, run, noise_loss,
                      see=lambda images, step: augmented(images, "surrogate", step))
