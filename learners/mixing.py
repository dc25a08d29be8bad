"""What mixup and cutmix share: the images of a minibatch are mixed with others of it, and so are
their labels.

In each round an image, if it is mixed at all, keeps a share of itself, drawn from
Beta(alpha, alpha), and takes the rest from a partner. Partners are the images as they came: a
second round does not pass on what the first has mixed. They are a permutation of the minibatch,
which the loop draws uniformly from the set; EM's, ISS's and AVATAR's releases draw each from the
whole set, cropped and flipped anew. So each image of the set is as likely a partner here as there,
and only what a batch has in common differs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from core.device import to_device
from core.imageset import ImageSet
from core.ranges import Count, Positive, Share
from core.run import Run
from core.training import Result
from learners import standard

# mix(images (B, 3, H, W), their partners, shares to keep (n,), rng) -> (mixed, shares kept (n, 1));
# n is B, or 1 for the whole batch.
Mix = Callable[[torch.Tensor, torch.Tensor, np.ndarray, np.random.Generator],
               tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Config(standard.Config):
    rounds: Count = 2               # times that an image may be mixed; EM's release: 2
    probability: Share = 0.5        # that a round mixes an image; EM's release: 0.5
    alpha: Positive = 1.0           # of Beta(alpha, alpha); EM's release: 1, so any share alike
    # what a round draws for: each image, as EM's release, or the batch as one
    draws: Literal["image", "batch"] = "image"


def fit(mix: Mix, train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on mixed images of `train` and score it on the clean `test`."""

    def transform(images, labels, step):
        shares = F.one_hot(labels, train.num_classes).float()
        return mixed(images, shares, mix, config, run.rng("mixing", step))

    return standard.fit(train, test, config, run, transform=transform)


def mixed(images: torch.Tensor, shares: torch.Tensor, mix: Mix, config: Config,
          rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """All rounds: (B, 3, H, W) and the shares of each class (B, K), after what they are before."""
    images_then, shares_then = images, shares
    draws = len(images) if config.draws == "image" else 1
    for _ in range(config.rounds):
        partner = to_device(rng.permutation(len(images)), images.device)
        kept = rng.beta(config.alpha, config.alpha, draws)
        kept[rng.random(draws) >= config.probability] = 1
        images, kept = mix(images, images_then[partner], kept, rng)
        shares = shares_then[partner].lerp(shares, kept)
    return images, shares
