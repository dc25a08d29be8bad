"""Standard training: cross-entropy on the set as it is, crop and flip. The field's yardstick.

Protocols of other studies are YAMLs of this learner; each says whose it is.

Deviations: on a GPU the network computes in bf16, where those studies have float32 (`precision:
fp32`).
"""

from dataclasses import dataclass

from core.imageset import ImageSet
from core.ranges import Count
from core.run import Run
from core.training import Protocol, Result, train_classifier
from models.classifiers import Architecture, Stem, check_images, classifier

VERSION = 1
SMOKE = {"width": 8, "epochs": 2, "steps": None, "batch_size": 64}


@dataclass(frozen=True)
class Config(Protocol):
    architecture: Architecture = "resnet18"     # the network; EM's release: resnet18
    # channels of resnet18's first group, He et al. 2016: 64; others have width / 64 of their own
    width: Count = 64
    # of resnet18 and torchvision's: cifar keeps a small image's size; auto: by the size
    stem: Stem = "auto"

    def check_images(self, shape: tuple[int, int]) -> None:
        check_images(self.architecture, shape, self.stem)


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run, **changes) -> Result:
    """Train a fresh classifier on `train` and score it on the clean `test`. `changes` are what
    other learners put in the place of its parts: a `loss`, a `transform` (`train_classifier`)."""
    _, result = train_classifier(build(train, config, run), train, test, config, run, **changes)
    return result


def build(train: ImageSet, config: Config, run: Run):
    """The freshly initialised network for such images."""
    with run.initialisation("classifier"):
        return classifier(config.architecture, train.num_classes, train.image_shape, config.width,
                          config.stem)
