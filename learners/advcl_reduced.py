"""A reduced form of AdvCL, adversarial training for SimCLR: two views of an image are also compared
with the image under an attack that moves it away from them.

Source: Fan et al., NeurIPS 2021, code LijieFan/AdvCL, pretraining_advCL.py: images are not
normalised, and attacked ones have batch norms of their own.

Deviations: it is not AdvCL, which also trains with pseudo-labels of an ImageNet encoder and with a
high-pass view, and whose attack computes the features of the two views anew in every step. The
probe is that of the other learners, on the batch norms of attacked images as AdvCL's; the record
has it on those of clean images beside it. Preset `own_probe` has AdvCL's own probe, without its
choice of the epoch by robust accuracy.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from core.batches import augment
from core.contrastive import ALONE, nt_xent
from core.distributed import World
from core.imageset import ImageSet
from core.pgd import gradient_of, pgd
from core.ranges import Count, CountOrZero, LinfRadius, Positive, StepSize
from core.run import Run
from core.training import Result
from learners import pretraining
from learners.probe import images_of, linear_probe
from models.contrastive import Projected, double_norms, norm_head, single_norms, use_norms

VERSION = 1
SMOKE = {**pretraining.SMOKE, "iterations": 2}


@dataclass(frozen=True)
class Config(pretraining.Pretraining):
    loss_scale: Positive = 0.5 / 0.07   # factor on the plain loss; AdvCL: T/0.07
    temperature: Positive = 0.5         # of the cosines; AdvCL: 0.5
    epsilon: LinfRadius = 8 / 255       # L-inf radius of the attack; AdvCL: 8/255
    step_size: StepSize = 2 / 255       # of its steps; AdvCL: 2/255
    iterations: Count = 5               # its steps; AdvCL: 5
    # black pixels a side before a random crop of the image that is attacked; AdvCL: 4
    crop_padding: CountOrZero = 4


class Reduced(nn.Module):
    """`network`: images -> unit vectors, with two sets of norms."""

    def __init__(self, network: nn.Module, config: Config) -> None:
        super().__init__()
        self.network, self.config = network, config

    def embed(self, which: str, *images: torch.Tensor) -> list[torch.Tensor]:
        use_norms(self.network, which)
        return [self.network(part) for part in images]

    def forward(self, first: torch.Tensor, second: torch.Tensor, images: torch.Tensor,
                start: torch.Tensor, world: World = ALONE) -> torch.Tensor:
        """The loss of two views and of `images` attacked from images + start. Norms are in training
        mode in the attack too, as AdvCL's."""
        def loss(known: list[torch.Tensor], attacked: torch.Tensor) -> torch.Tensor:
            return nt_xent(*known, *self.embed("attacked", attacked),
                           temperature=self.config.temperature, world=world)

        with torch.no_grad():
            fixed = self.embed("clean", first, second)
        delta = pgd(images, start, gradient_of(lambda moved, _: loss(fixed, moved)),
                    epsilon=self.config.epsilon, step_size=self.config.step_size,
                    steps=self.config.iterations, ascend=True, clip="moved")
        return loss(self.embed("clean", first, second), (images + delta).clamp(0, 1))


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train an encoder on the images of `train` and probe it on the clean `test`."""
    made = []

    def make(network, channels):
        projected = Projected(network, norm_head(channels))
        double_norms(projected)
        made.extend((network, channels))
        return Reduced(projected, config)

    judges = images_of(train, config.probe, run)
    result = pretraining.fit(make, train, test, config, run,
                             see=views_and_image(config, train.image_shape), judges=judges)
    network, channels = made
    use_norms(network, "clean")
    other = linear_probe(network, channels, judges[0], test, config.probe, config.views, run,
                         "probe_clean_norms")
    told = {"last": other.last, "best": other.best, "best_epoch": other.best_epoch}
    return dataclasses.replace(result, network=single_norms(result.network, "attacked"),
                               probe={**result.probe, "norms": "attacked", "clean_norms": told})


def views_and_image(config: Config, shape: tuple[int, int]) -> pretraining.See:
    """Two views, the image cropped and mirrored, and where its attack starts."""
    see = pretraining.two_views(config, shape)

    def all_four(images, generator, mine):
        count, padding = len(images), config.crop_padding
        offsets = torch.randint(0, 2 * padding + 1, (count, 2), generator=generator)
        mirrored = torch.rand(count, generator=generator) < config.views.flip
        seed = int(torch.randint(2**62, (), generator=generator))
        start = torch.empty_like(images).uniform_(
            -config.epsilon, config.epsilon,
            generator=torch.Generator(images.device).manual_seed(seed))
        plain = augment(images.permute(0, 2, 3, 1), offsets.to(images.device),
                        mirrored.to(images.device), padding=padding).permute(0, 3, 1, 2)
        return (*see(images, generator, mine), plain[mine], start[mine])

    return all_four
