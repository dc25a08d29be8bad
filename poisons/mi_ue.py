"""MI-UE: mutual-information unlearnable examples.

The noise moves the surrogate's features of one class together and those of different classes apart,
by the cosines between all images of a batch; less is then left in them of the image itself.

    mean over i of  -log( sum over j of i's class of e^(cos(h_i, h_j) / t)
                          / sum over all j of e^(cos(h_i, h_j) / t) )
                    + zeta log(1 + sum over j of i's class of |h_i - h_j| / d)

with features h of d channels, and i itself among the j. Source: Zhu et al., ICLR 2026; code
hala64/mi-ue, gen_miue.py. Where the paper differs (`form: paper`): the second sum is over other
classes, the distance is not divided by d, and zeta is 0.1 (`preset=paper`). The release's zeta is
0.

Deviations: rounding down meets whole levels of noise as whole ones; noised images are clipped to
[0, 1] wherever the surrogate meets them (the release cuts the noise to the image, or mirror image,
of its turn); at 96 pixels and above the surrogate has the ImageNet stem; on a GPU it learns in
bf16; a surrogate that is adversarially trained, an option of the release, is not here. The noise of
every row is in memory. What an image gets depends on whom it shares a batch with: `noise_batch`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from core.imageset import ImageSet
from core.ranges import BatchSize, Count, Positive, PositiveOrZero, Range, StepSize
from core.run import Run
from core.training import Normalised, check_normalisation
from poisons.frozen import FrozenSurrogate
from poisons.turns import Shared, bound, take_turns

__all__ = ["Config", "bound", "poison"]

VERSION = 2
SMOKE = {"width": 8, "batch_size": 64, "noise_batch": 64, "epochs": 2, "steps": 2,
         "step_size": 2 / 255, "last_step_size": 4 / 255}      # so few steps of less show nothing
SMALL = 1e-8                    # beside every term; release


@dataclass(frozen=True)
class Config(Shared):
    # of the noise's signed steps in the first epoch, [0, 1] units; release: 0.2/255
    step_size: StepSize = 0.2 / 255
    # what it rises to, by the same amount every epoch, [0, 1] units; release: 0.4/255, paper: as
    # the first
    last_step_size: StepSize = 0.4 / 255
    steps: Count = 10               # signed, of every image an epoch; release: 10
    epochs: Count = 100             # of the surrogate, and as many turns of the noise; release: 100
    noise_batch: BatchSize = 512    # images whose features are compared; release: 512
    # mirror half of a batch's images before their noise is added, which is not mirrored: it is for
    # an image and its mirror image; release's command (--post-aug): yes
    flip: bool = True
    # t, of the softmax; release: 0.1. Float32 holds no exp(1/t) of much less
    temperature: Annotated[float, Range(at_least=0.02)] = 0.1
    distance_weight: PositiveOrZero = 0.0   # zeta; release: 0, paper: 0.1
    # of the sums, as above; released: over all images, and a distance a channel
    form: Literal["released", "paper"] = "released"
    # of R, G, B, taken off inside the model; release: ImageNet's
    mean: tuple[float, ...] | None = (0.485, 0.456, 0.406)
    # of R, G, B, divided by inside the model; release: ImageNet's
    std: tuple[Positive, ...] | None = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_normalisation(self.mean, self.std)


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own noise."""
    def noise_loss(frozen: FrozenSurrogate, noised: torch.Tensor, labels: torch.Tensor, step: int
                   ) -> torch.Tensor:
        return pair_loss(frozen.features(noised), labels, config)

    def step_size(epoch: int) -> float:
        done = epoch / config.epochs
        return (1 - done) * config.step_size + done * config.last_step_size

    return take_turns(
        clean, config, run, noise_loss, noise_batch=config.noise_batch, flip=config.flip,
        step_size=step_size, behind=lambda network: network if config.mean is None
        else Normalised(network, config.mean, config.std))


def pair_loss(features: torch.Tensor, labels: torch.Tensor, config: Config) -> torch.Tensor:
    """The formula above, of features (B, d): 0 for a batch of one class, log B at most (released,
    without the distance)."""
    unit = F.normalize(features)
    near = (unit @ unit.T / config.temperature).exp() + SMALL
    same = (labels[:, None] == labels).to(near)
    own, other = (near * same).sum(1), (near * (1 - same)).sum(1)
    below = own + other if config.form == "released" else other.clamp(min=SMALL)
    loss = -(own / below).log()
    if config.form == "paper":          # which says nothing where all are of one class
        loss = loss.where(other > 0, 0.0)
    if config.distance_weight:
        # by subtraction: as matrix products, torch's way above 25 rows, an image is not at 0 from
        # itself, but at a hundredth or so
        apart = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        away = (apart * same).sum(1)
        channels = features.shape[1] if config.form == "released" else 1
        loss = loss + config.distance_weight * (1 + away / channels).log()
    return loss.mean()
