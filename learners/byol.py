"""BYOL: each view predicts what a slowly moving copy of the network makes of the other one.

Source: Grill et al., NeurIPS 2020; the protocol is that of He, Zha and Katabi, ICLR 2023 (CP; see
learners.pretraining), whose target moves twice a step.

Deviations: see learners.pretraining and core.contrastive.
"""

from dataclasses import dataclass

from core.contrastive import BYOL, LOSS_SCALE, MOMENTA, MOVES, RATES
from core.imageset import ImageSet
from core.ranges import BelowOne, Count, Positive
from core.run import Run
from core.training import Result
from learners import pretraining
from models.contrastive import BYOL_HIDDEN, BYOL_PROJECTED, Projected, byol_head

VERSION = 1
SMOKE = {**pretraining.SMOKE, "hidden": 32, "projected": 16}
SHARED = True
EVAL = "byol-linear"


@dataclass(frozen=True)
class Config(pretraining.Pretraining):
    learning_rate: Positive = RATES["byol"]         # that the cosine falls from; CP, BYOL: 1
    loss_scale: Positive = LOSS_SCALE["byol"]       # factor on the plain loss; CP: 1
    # share of the target network that a move keeps; CP: 0.999
    target_momentum: BelowOne = MOMENTA["byol"]
    moves: Count = MOVES                # of the target in a step; CP: 2, Grill et al.: 1
    hidden: Count = BYOL_HIDDEN         # channels inside projector and predictor; CP: 4,096
    projected: Count = BYOL_PROJECTED   # channels behind them; CP: 256


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train an encoder on the images of `train` and probe it on the clean `test`."""
    def make(network, channels):
        projector = byol_head(channels, config.hidden, config.projected)
        predictor = byol_head(config.projected, config.hidden, config.projected)
        return BYOL(Projected(network, projector), predictor, momentum=config.target_momentum,
                    moves=config.moves)

    return pretraining.fit(make, train, test, config, run)
