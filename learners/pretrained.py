"""Fine-tuning: training starts from weights that other images, or other labels, have made.

`weights` is the folder of a record whose network `evaluate.py ... keep_network=true` kept, or a
file of torchvision's ImageNet weights (.pth, .safetensors). The head is new, unless those weights
are of the same data set. A record says what the weights saw: ImageNet's labels are supervision that
no other learner has. Source: BAIT, its main.py and configs (torchvision's ResNet-18, all layers
trained); freezing as in arXiv 2605.05224.

Deviations: none for `weights` and an ImageNet stem, which leaves a 32x32 image one position in the
last group. BAIT's runs from scratch also take its rate of 0.001, as `weights: null` does; their
YAML's is 0.1.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from core import reading, records, torchfile
from core.artefact import read_meta, verify
from core.config import Place, plain, suggest
from core.errors import UserError
from core.imageset import ImageSet
from core.ranges import Positive
from core.run import Run
from core.training import Result, cross_entropy, train_classifier
from learners import standard
from models.classifiers import Stem

VERSION = 1
SMOKE = standard.SMOKE
PATHS = ("weights",)
Weights = dict[str, torch.Tensor]
MOST = 1 << 30                  # bytes of a file of weights; torchvision's vgg19_bn has 575 MB
HEAD = "linear."                # of every network in models.classifiers
HEADS = ("fc.", "classifier.", "heads.")    # of torchvision's
CLASSES = 1000                  # ImageNet's


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
        path = Path(config.weights)
        found, saw = kept(path, train, config) if path.is_dir() else imagenet(path, config)
        network.load_state_dict(completed(found, network.state_dict(), path, config))
    frozen = [] if config.freeze is None else freeze(network, config.freeze)

    def loss(model, images, labels, step):
        for module in frozen:       # its batch norm too: the loop sets the whole to train mode
            module.eval()
        return cross_entropy(model, images, labels, step)

    _, result = train_classifier(network, train, test, config, run, loss=loss)
    return dataclasses.replace(result, saw=saw)


# --- weights ---------------------------------------------------------------------------------


def kept(path: Path, train: ImageSet, config: Config) -> tuple[Weights, tuple[dict, ...]]:
    """The weights that a record's folder holds, without the head if that is of other data, and what
    they saw."""
    record, meta, file = records.load(path), read_meta(path, "record"), path / "network.safetensors"
    of = record["train"]
    if file.name not in meta["digests"] or "shape" not in of:
        raise UserError(f"{file}: no such file; evaluate again with keep_network=true")
    verify(file, meta)
    theirs = record.get("config", {})
    for key, value in plain(config).items():
        if key in ("architecture", "width", "mean", "std") and theirs.get(key) != value:
            raise UserError(f"{path} has {key} {theirs.get(key)}, but this training has {value}: "
                            f"set pretrained.{key}")
    weights = reading.safetensors(file)
    own = train.meta["root"].get("data")
    if own is None or own != of["root"]["data"] or of["num_classes"] != train.num_classes:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(HEAD)}
    saw = {key: of[key] for key in ("name", "fingerprint", "shape", "num_classes", "root")}
    saw |= {"lineage": [step["method"] for step in of["lineage"]], "labelled": True}
    if of.get("root_digest"):
        saw["root_digest"] = of["root_digest"]
    return weights, (saw, *record["purifier_trained_on"], *record.get("learner_saw", []))


def imagenet(path: Path, config: Config) -> tuple[Weights, tuple[dict, ...]]:
    """torchvision's weights of a file, under the names of models.classifiers and without their
    head, and what they saw."""
    with reading.regular(path) as file:
        if file.size > MOST:
            raise UserError(f"{path}: {file.size:,} bytes are too many for weights of a network "
                            f"here (at most {MOST:,})")
    if path.suffix.lower() == ".safetensors":
        found = reading.safetensors(path)
    else:
        found = torchfile.load(path)
        if not isinstance(found, dict) or not all(
                isinstance(name, str) and isinstance(tensor, torch.Tensor)
                for name, tensor in found.items()):
            raise UserError(f"{path} holds more, or other things, than a network's tensors by name")
        reading.finite(found, path)
    heads = [tensor for name, tensor in found.items()
             if name.startswith(HEADS) and name.endswith(".weight")]
    if not heads or heads[-1].shape[:1] != (CLASSES,):
        raise UserError(f"{path} has no head of ImageNet's 1,000 classes, as torchvision's weights "
                        "have; of a network that was trained here, name the record's folder")
    body = {renamed(name, config.architecture): tensor for name, tensor in found.items()
            if not name.startswith(HEADS)}
    return body, ({"name": "ImageNet labels"},)


def renamed(name: str, architecture: str) -> str:
    """torchvision's name of a tensor -> its name in models.classifiers."""
    if architecture != "resnet18":
        # as its densenet.py does: its file is older than its names
        return "body." + re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
    for theirs, ours in (("conv1.", "stem.0."), ("bn1.", "stem.1.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    block = re.fullmatch(r"layer([1-4])\.([01])\.(.+)", name)
    if block is None:
        return name
    number = 2 * (int(block[1]) - 1) + int(block[2])
    return f"blocks.{number}.{block[3].replace('downsample.', 'shortcut.')}"


def completed(found: Weights, fresh: Weights, path: Path, config: Config) -> Weights:
    """The weights found, with a fresh head if they have none, and counts that files older than
    torch 0.4.1 lack. Raises UserError that names the first that is missing, too many or of
    another shape."""
    added = {name: tensor for name, tensor in fresh.items() if name not in found
             and (name.startswith(HEAD) or name.endswith("num_batches_tracked"))}
    found = found | added
    for name in fresh | found:
        theirs, ours = (described(weights.get(name)) for weights in (found, fresh))
        if theirs != ours:
            raise UserError(
                f"{path} holds the weights of another network: {name} is {theirs}, but in "
                f"{config.architecture} of width {config.width}, stem {config.stem}, it is {ours}")
    return found


def described(tensor: torch.Tensor | None) -> str:
    """'64x3x7x7 float32'"""
    if tensor is None:
        return "not there"
    shape = "x".join(map(str, tensor.shape)) or "one number"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


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
