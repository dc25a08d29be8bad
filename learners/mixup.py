"""Mixup: every image is a mean of itself and others, and so is its label.

After crop and flip; test images are not mixed. Source: Zhang et al., ICLR 2018; as a
countermeasure, code liuzrcc/ImageShortcutSqueezing (ISS), and the same in AVATAR's. EM's, which
they took it from, weighs a partner x by 1 - x (`em_release`), as no paper says. kornia's, in
APBench and BridgePure, is the preset `kornia`.

Deviations: partners come from the minibatch, a new order each round, not from the whole set.
"""

from dataclasses import dataclass

import numpy as np
import torch

from core.device import to_device
from core.imageset import ImageSet
from core.run import Run
from core.training import Result
from learners import mixing, standard

VERSION = 1
SMOKE = standard.SMOKE


@dataclass(frozen=True)
class Config(mixing.Config):
    # add x (1 - x) of a partner x to the share that is kept, as EM's release, not x (1 - share)
    em_release: bool = False


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on means of images and score it on the clean `test`."""

    def mix(images, partners, kept, rng):
        kept = to_device(kept.astype(np.float32), images.device)[:, None]
        share = kept[:, :, None, None]
        if config.em_release:
            added = images * share + partners * (1 - partners)
            return torch.where(share < 1, added, images), kept
        return partners.lerp(images, share), kept

    return mixing.fit(mix, train, test, config, run)
