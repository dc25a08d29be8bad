"""A surrogate that is trained on the clean images before the crafting begins."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from core.errors import ConfigError
from core.imageset import ImageSet
from core.ranges import Count
from core.run import Run
from core.training import Protocol, Transform, train_classifier
from models.classifiers import Architecture, Stem, check_images, classifier


@dataclass(frozen=True)
class Training(Protocol):
    """Keys under `surrogate`: the network and how it is trained on the clean images."""

    # the network; resnet18 where the attack says nothing else
    architecture: Architecture = "resnet18"
    # channels of resnet18's first group, He et al. 2016: 64; others have width / 64 of their own
    width: Count = 64
    # cifar keeps a small image's size, imagenet quarters it; auto: by the size
    stem: Stem = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_every != type(self).test_every:
            raise ConfigError("test_every", "a surrogate meets no test set; leave it out")

    def check_images(self, shape: tuple[int, int]) -> None:
        check_images(self.architecture, shape, self.stem)


def train_surrogate(clean: ImageSet, config: Training, run: Run, *,
                    transform: Transform | None = None,
                    after_epoch: Callable[[int, nn.Module], None] | None = None) -> nn.Module:
    """The trained network, in eval mode and with equal weights in every process; resumable."""
    with run.initialisation("surrogate"):
        model = classifier(config.architecture, clean.num_classes, clean.image_shape, config.width,
                           config.stem)
    model, result = train_classifier(model, clean, None, config, run, "surrogate",
                                     transform=transform, after_epoch=after_epoch)
    run.say(f"surrogate: {result.train_accuracy:.1%} on its own training images after "
            f"{result.epochs} epochs")
    run.world.share(model)
    return model.eval()
