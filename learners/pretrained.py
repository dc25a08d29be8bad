"""Fine-tuning: training starts from weights that other images, or other labels, have made.

`weights` is the folder of a record whose network `evaluate.py ... keep_network=true` kept, or a
file of torchvision's ImageNet weights (.pth, .safetensors). The head is new, unless those weights
are of the same data set. A record says what the weights saw: ImageNet's labels are supervision that
no other learner has. Source: BAIT, its main.py and configs (torchvision's ResNet-18, all layers
trained); freezing as in arXiv 2605.05224.

Deviations: BAIT also rotates CIFAR-100's images by up to 20 degrees; else none for `weights` and
an ImageNet stem, which leaves a 32x32 image one position in the last group. Its runs from scratch
also take the rate of 0.001, as `weights: null` does; their YAML's is 0.1.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from core import pretrained
from core.config import Place, suggest
from core.distributed import note
from core.errors import UserError
from core.imageset import ImageSet
from core.ranges import Positive
from core.run import Run
from core.splits import identified, share_images
from core.training import Result, cross_entropy, train_classifier
from learners import standard
from models.classifiers import Stem

VERSION = 1
SMOKE = standard.SMOKE
PATHS = ("weights",)


@dataclass(frozen=True)
class Config(standard.Config):
    learning_rate: Positive = 0.001     # at the start; BAIT's script
    # of resnet18 and torchvision's: cifar keeps a small image's size; auto: by the size; what
    # torchvision's weights fit, and BAIT's: imagenet
    stem: Stem = "imagenet"
    # where training starts: the folder of a record with its network, or a file of torchvision's
    # ImageNet weights; null: a fresh network, for comparison
    weights: Place | None = None
    # name of the last module that is not trained, such as stem, blocks.3 (resnet18) or body.layer2
    # (resnet50); null: all are, as in BAIT
    freeze: str | None = None


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Fine-tune the given weights on `train` and score them on the clean `test`. Raises UserError
    for weights that cannot be read or are of another network, and for no module to freeze."""
    network, saw = standard.build(train, config, run), ()
    if config.weights is None:
        run.say("pretrained.weights is null: a fresh network is trained")
    else:
        saw = pretrained.load(network, Path(config.weights), train, config, "pretrained")
        if any("root" in one and share_images(identified(one), identified(test.meta))
               for one in saw):
            note(f"{config.weights} learned from images of the test set: accuracy on it is not of "
                 "unseen images")
    frozen = [] if config.freeze is None else freeze(network, config.freeze)

    def loss(model, images, labels, step):
        for module in frozen:       # its batch norm too: the loop sets the whole to train mode
            module.eval()
        return cross_entropy(model, images, labels, step)

    _, result = train_classifier(network, train, test, config, run, loss=loss)
    return dataclasses.replace(result, saw=saw)


# --- freezing --------------------------------------------------------------------------------


def freeze(network: nn.Module, name: str) -> list[nn.Module]:
    """Take no steps on the parameters up to the last one of the module `name`, in the network's
    order; the modules that hold them."""
    names = [key for key, module in network.named_modules() if key and [*module.parameters()]]
    if name not in names:
        raise UserError(f"pretrained.freeze: the network has no module '{name}' with weights"
                        + suggest(name, names, "modules"))
    last = [key for key, _ in network.get_submodule(name).named_parameters(name)][-1]
    parameters = dict(network.named_parameters())
    for key, parameter in parameters.items():
        parameter.requires_grad_(False)
        if key == last:
            break
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(f"pretrained.freeze: nothing is left to train behind '{name}'")
    return [module for module in network.modules()
            if (own := list(module.parameters(recurse=False)))
            and not any(parameter.requires_grad for parameter in own)]
