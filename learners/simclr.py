"""SimCLR: two views of an image are told from those of all other images of the batch.

Source: Chen et al., ICML 2020; the protocol is that of He, Zha and Katabi, ICLR 2023 (CP; see
learners.pretraining), whose poisons the paper of JCDP measures with it. Presets `cutout` and
`noise` add to the views what that paper compares with; it gives neither size nor amount. Theirs are
DeVries and Taylor's 16 pixels on CIFAR-10, and the poisons' radius of 8/255.

Deviations: see learners.pretraining.
"""

from dataclasses import dataclass

from core.contrastive import LOSS_SCALE, TEMPERATURES, SimCLR
from core.imageset import ImageSet
from core.ranges import Positive
from core.run import Run
from core.training import Result
from learners import pretraining
from models.contrastive import Projected, head

VERSION = 1
SMOKE = pretraining.SMOKE
SHARED = True
EVAL = "simclr-linear"


@dataclass(frozen=True)
class Config(pretraining.Pretraining):
    loss_scale: Positive = LOSS_SCALE["simclr"]     # factor on the plain loss; CP: 0.5/0.07/4
    temperature: Positive = TEMPERATURES["simclr"]      # of the cosines; CP: 0.5


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train an encoder on the images of `train` and probe it on the clean `test`."""
    def make(network, channels):
        return SimCLR(Projected(network, head(channels)), temperature=config.temperature)

    return pretraining.fit(make, train, test, config, run)
