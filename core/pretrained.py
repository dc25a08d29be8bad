"""Weights that were trained before: a record's network that was kept, or torchvision's ImageNet
weights, under the names of models.classifiers. Learners begin with them; UC takes their features.
"""

import re
from pathlib import Path
from typing import Protocol

import torch

from core import reading, records, torchfile
from core.artefact import read_meta, verify
from core.config import plain
from core.errors import UserError
from core.imageset import ImageSet

Weights = dict[str, torch.Tensor]
MOST = 1 << 30                  # bytes of a file of weights; torchvision's vgg19_bn has 575 MB
HEAD = "linear."                # of every network in models.classifiers
HEADS = ("fc.", "classifier.", "heads.")    # of torchvision's
CLASSES = 1000                  # ImageNet's


class Network(Protocol):
    """The keys that say which network it is: of a learner's Config, or of a surrogate's."""

    architecture: str
    width: int
    stem: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def load(network: torch.nn.Module, path: Path, train: ImageSet, config: Network, section: str
         ) -> tuple[dict, ...]:
    """Load what lies at `path` into `network`, which keeps its fresh head if that is of other data;
    returns what the weights saw. `section` is where the keys of `config` stand. Raises UserError
    for what cannot be read or is of another network."""
    found, saw = kept(path, train, config, section) if path.is_dir() else imagenet(path, config)
    which = f"{config.architecture} of width {config.width}, stem {config.stem},"
    network.load_state_dict(completed(found, network.state_dict(), path, which))
    return saw


def kept(path: Path, train: ImageSet, config: Network, section: str
         ) -> tuple[Weights, tuple[dict, ...]]:
    """The weights that a record's folder holds, without the head if that is of other data, and what
    they saw."""
    record, meta, file = records.load(path), read_meta(path, "record"), path / "network.safetensors"
    of = record["train"]
    if file.name not in meta["digests"] or "shape" not in of:
        raise UserError(f"{file}: no such file; evaluate again with keep_network=true")
    verify(file, meta)
    theirs = record["config"]
    for key, value in plain(config).items():
        if key in ("architecture", "width", "mean", "std") and theirs.get(key) != value:
            raise UserError(f"{path} has {key} {theirs.get(key)}, but this training has {value}: "
                            f"set {section}.{key}")
    weights = reading.safetensors(file)
    own = train.meta["root"].get("data")
    if own is None or own != of["root"]["data"] or of["num_classes"] != train.num_classes:
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(HEAD)}
    saw = {key: of[key] for key in ("name", "fingerprint", "shape", "num_classes", "root")}
    probed = record.get("probe") is not None        # an encoder, which saw no labels
    saw |= {"lineage": [step["method"] for step in of["lineage"]], "labelled": not probed}
    if of.get("root_digest"):
        saw["root_digest"] = of["root_digest"]
    beside = [] if probed else record.get("learner_saw", [])    # of an encoder: its probe's
    return weights, (saw, *record["purifier_trained_on"], *beside)


def imagenet(path: Path, config: Network) -> tuple[Weights, tuple[dict, ...]]:
    """torchvision's weights of a file, under the names of models.classifiers and without their
    head, and what they saw."""
    found = by_name(path)
    heads = [tensor for name, tensor in found.items()
             if name.startswith(HEADS) and name.endswith(".weight")]
    if not heads or heads[-1].shape[:1] != (CLASSES,):
        raise UserError(f"{path} has no head of ImageNet's 1,000 classes, as torchvision's weights "
                        "have; of a network that was trained here, name the record's folder")
    body = {renamed(name, config.architecture): tensor for name, tensor in found.items()
            if not name.startswith(HEADS)}
    return body, ({"name": "ImageNet labels"},)


def by_name(path: Path) -> Weights:
    """The tensors of a file, checked: finite, and not too large."""
    with reading.regular(path) as file:
        if file.size > MOST:
            raise UserError(f"{path}: {file.size:,} bytes are too many for weights of a network "
                            f"here (at most {MOST:,})")
    if path.suffix.lower() == ".safetensors":
        return reading.safetensors(path)
    found = torchfile.load(path)
    if not isinstance(found, dict) or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor)
            for name, tensor in found.items()):
        raise UserError(f"{path} holds more, or other things, than a network's tensors by name")
    reading.finite(found, path)
    return found


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


def completed(found: Weights, fresh: Weights, path: Path, which: str) -> Weights:
    """The weights found, with a fresh head if they have none, and counts of 0 that files older than
    torch 0.4.1 lack. `fresh` may be on the meta device, but for its head. Raises UserError if they
    are of another network than `which`."""
    lacking = {name: tensor for name, tensor in fresh.items() if name not in found}
    heads = {name: tensor for name, tensor in lacking.items() if name.startswith(HEAD)}
    counts = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in lacking.items()
              if name.endswith("num_batches_tracked")}
    found = found | heads | counts
    check_tensors(found, fresh, path, which)
    return found


def check_tensors(found: Weights, fresh: Weights, path: Path, which: str) -> None:
    """Raise UserError that names the first tensor that is missing, too many or of another shape."""
    for name in fresh | found:
        theirs, ours = (described(weights.get(name)) for weights in (found, fresh))
        if theirs != ours:
            raise UserError(f"{path} holds the weights of another network: {name} is {theirs}, "
                            f"but in {which} it is {ours}")


def described(tensor: torch.Tensor | None) -> str:
    """'64x3x7x7 float32'"""
    if tensor is None:
        return "not there"
    shape = "x".join(map(str, tensor.shape)) or "one number"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"
