"""Label smoothing: of K classes the target of the label is 1 - s + s/K, that of the others s/K.

Standard training otherwise. Source: Szegedy et al., CVPR 2016, section 7.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from core.imageset import ImageSet
from core.ranges import BelowOne
from core.run import Run
from core.training import Result
from learners import standard

VERSION = 1
SMOKE = standard.SMOKE


@dataclass(frozen=True)
class Config(standard.Config):
    label_smoothing: BelowOne = 0.1     # s; Szegedy et al., section 7: 0.1 for 1,000 classes


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on `train` with smoothed labels and score it on the clean `test`."""

    def loss(model, images, labels, step):
        logits = model(images)
        return F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing), logits

    return standard.fit(train, test, config, run, loss=loss)
