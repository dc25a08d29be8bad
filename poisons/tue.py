"""TUE: transferable unlearnable examples.

Noise of every image that makes a contrastive loss small and whose classes are easy to tell apart:
the second term is of the noise alone (CSD: how wide two classes are beside the distance of their
means, after Davies and Bouldin). The release's runs for SimCLR and SimSiam weigh the first term
with 0: no network has any part in their noise, and none is trained here. Source: Ren et al., ICLR
2023; code renjie3/TUE, ssl_perturbation.py and demo.sh.

Deviations: an epoch here is one of the release's rounds, of which it has 200 too (40 epochs of 5,
SimSiam's 50 of 4, MoCo's 200 of 1); noise is not cut to the image between steps, but wherever
images meet it; a pass drops its last incomplete batch; batch statistics are of the whole batch
(MoCo's release: of eighths: `norm_images: 64`); SimSiam with a weight above 0 is not here. With
MoCo (preset=moco) the target follows while the noise moves too, where the release moves the queue
alone, each image is cropped and coloured by draws of its own there, where the release draws once a
batch, the head has a hidden layer, the release's none, and on a GPU the surrogate learns in bf16.
As in the release, CSD's widths are constants, and gradient flows through the means alone.
"""

from dataclasses import MISSING, dataclass, field, fields
from typing import Literal

import torch
import torch.nn.functional as F

from core.errors import ConfigError
from core.imageset import ImageSet
from core.ranges import Count, Positive, PositiveOrZero, Share
from core.run import Run
from core.views import Views
from poisons.contrast import Shared, bound, craft, refuse_idle, uniform
from poisons.noise import Noise, publish

__all__ = ["Config", "bound", "poison"]

VERSION = 1
SMOKE = {"width": 8, "batch_size": 64, "epochs": 2, "train_steps": 2, "steps": 2,
         "contrast_weight": 1.0}
SMALL = 1e-5                    # beside width and distance; release
# The keys that act without a contrastive loss too
ALONE = {"epsilon", "step_size", "steps", "epochs", "last_epoch", "noise_batches", "batch_size",
         "rounding", "contrast_weight", "random_start"}


@dataclass(frozen=True)
class Pairs(Views):
    # least and largest share of the area in a crop; release: 0.08, 1
    scale: tuple[Share, ...] | None = (0.08, 1.0)


@dataclass(frozen=True)
class Config(Shared):
    steps: Count = 20               # signed, of a batch's noise; release: 20, MoCo 5
    epochs: Count = 200             # the release's rounds: 200
    # of the surrogate an epoch; null: a pass over the set, as the release on MoCo
    train_steps: Count | None = 20
    noise_batches: Count | None = None      # of which the noise moves then; null: all, as released
    # of the surrogate's rate; release: constant
    schedule: Literal["cosine", "constant"] = "constant"
    loss_scale: Positive | None = 1.0   # factor on the surrogate's loss; release: none
    # of R, G, B, taken off inside the model; null: images stay in [0, 1], as in the release
    mean: tuple[float, ...] | None = None
    # of R, G, B, divided by inside the model; goes with `mean`
    std: tuple[Positive, ...] | None = None
    views: Pairs = field(default_factory=Pairs)     # of which the surrogate sees two an image
    # of the contrastive loss in what the noise descends; release: 0, MoCo 1
    contrast_weight: PositiveOrZero = 0.0
    csd_weight: PositiveOrZero = 0.1    # of CSD in it; release: 0.1, MoCo 1
    # uniform noise at the start, as the release; false: none, as the release on MoCo
    random_start: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contrast_weight == self.csd_weight == 0:
            raise ConfigError("csd_weight", "with two weights of 0 nothing moves the noise")
        if self.contrast_weight == 0:
            if not self.random_start:       # CSD has no gradient where all noise is the same
                raise ConfigError("random_start", "no noise at the start and no contrastive loss: "
                                                  "nothing moves the noise; set it to true")
            for field_ in fields(self):
                usual = field_.default_factory() if field_.default is MISSING else field_.default
                if field_.name not in ALONE and getattr(self, field_.name) != usual:
                    raise ConfigError(field_.name, "changes nothing without a contrastive loss: set"
                                                   " a contrast_weight above 0")
        refuse_idle(self)


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own noise."""
    start = uniform(clean, config, run)
    noise = Noise((start if config.random_start else start.zero_()).to(run.device.torch))

    def loss(contrast, delta: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        total = config.csd_weight * csd(delta, labels)
        return total + config.contrast_weight * contrast() if config.contrast_weight else total

    craft(clean, noise, config, run, noise_loss=loss, learns=config.contrast_weight > 0)
    return publish(clean, noise, config.rounding, run)


def csd(delta: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Class-wise separability of noise (B, 3, H, W): the mean over pairs of classes in the batch of
    (width_i + width_j) / distance of their means; a width is the mean distance to the mean, and a
    constant. 0 for a single class."""
    flat = delta.flatten(1)
    _, which, counts = labels.unique(return_inverse=True, return_counts=True)
    if len(counts) == 1:
        return (0 * flat).sum()
    members = F.one_hot(which, len(counts)).T.to(flat)                               # (classes, B)
    centres = members @ flat / counts[:, None]
    away = (flat - centres[which]).detach().norm(dim=1)
    width = members @ away / counts
    one, other = torch.triu_indices(len(counts), len(counts), 1, device=flat.device)
    distance = (centres[one] - centres[other]).norm(dim=1)
    return ((width[one] + width[other] + SMALL) / (distance + SMALL)).mean()
