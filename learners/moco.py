"""MoCo v2: a query of one view meets the key of the other among a queue of earlier keys.

Source: He et al., CVPR 2020, and Chen et al. 2020 (arXiv 2003.04297); the protocol is that of He,
Zha and Katabi, ICLR 2023 (CP; see learners.pretraining): not symmetric, a head of two layers.

Deviations: see learners.pretraining; keys are not shuffled (core.contrastive says why).
"""

from dataclasses import dataclass

from core.contrastive import LOSS_SCALE, MOMENTA, QUEUE, RATES, TEMPERATURES, MoCo, check_queue
from core.imageset import ImageSet
from core.ranges import BelowOne, Count, Positive
from core.run import Run
from core.training import Result
from learners import pretraining
from models.contrastive import Projected, head

VERSION = 1
SMOKE = {**pretraining.SMOKE, "queue": 192}
SHARED = True
EVAL = "mocov2-linear"


@dataclass(frozen=True)
class Config(pretraining.Pretraining):
    learning_rate: Positive = RATES["moco"]         # that the cosine falls from; CP, MoCo: 0.3
    loss_scale: Positive = LOSS_SCALE["moco"]       # factor on the plain loss; CP: 0.2/0.07
    temperature: Positive = TEMPERATURES["moco"]    # of the cosines; CP: 0.2
    queue: Count = QUEUE                # keys; a multiple of batch_size; CP: 4,096
    # share of the key encoder that a step keeps; CP: 0.99
    key_momentum: BelowOne = MOMENTA["moco"]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_queue(self.queue, self.batch_size)


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train an encoder on the images of `train` and probe it on the clean `test`."""
    def make(network, channels):
        return MoCo(Projected(network, head(channels)), run.stream("queue"), queue=config.queue,
                    temperature=config.temperature, momentum=config.key_momentum)

    return pretraining.fit(make, train, test, config, run)
