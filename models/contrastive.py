"""What contrastive learning trains: an encoder (a network of models.classifiers without its head)
and the small heads behind it.

Source: He, Zha and Katabi, ICLR 2023 (CP), code kaiwenzha/contrastive-poisoning, resnet.py and
cl_algs.py: Kaiming's initialisation of the convolutions, a head of 512-512-128 for SimCLR and MoCo,
and of 512-4096-256 and 256-4096-256 with batch norm for BYOL.
"""

import copy
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from models.classifiers import WIDTH, Architecture, Stem, classifier

PROJECTED = 128         # channels behind the head of SimCLR and MoCo
BYOL_PROJECTED = 256    # behind BYOL's
BYOL_HIDDEN = 4096      # inside them
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Norms = Literal["clean", "attacked"]


class Unit(nn.Module):
    """Scales vectors (B, D) to length 1, in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(x.float(), dim=1)


class Projected(nn.Module):
    """An encoder with a head behind its features."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, D) of images (B, 3, H, W) in [0, 1]."""
        return self.head(self.encoder.features(images))


def encoder(name: Architecture, num_classes: int, shape: tuple[int, int], width: int = WIDTH,
            stem: Stem = "auto") -> tuple[nn.Module, int]:
    """A fresh network whose `features` are trained, and their channels; it has no weights of a
    head. Arguments and ValueError are classifier's (`num_classes` is the rank of two_linear)."""
    network = classifier(name, num_classes, shape, width, stem)
    channels, network.linear = network.linear.in_features, nn.Identity()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network, channels


def head(channels: int, out: int = PROJECTED) -> nn.Sequential:
    """SimCLR's and MoCo's: to unit vectors (B, out)."""
    return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(inplace=True),
                         nn.Linear(channels, out), Unit())


def norm_head(channels: int) -> nn.Sequential:
    """AdvCL's: as SimCLR's, with batch norm (code LijieFan/AdvCL)."""
    return nn.Sequential(nn.Linear(channels, channels), nn.BatchNorm1d(channels),
                         nn.ReLU(inplace=True), nn.Linear(channels, PROJECTED), Unit())


def byol_head(channels: int, hidden: int = BYOL_HIDDEN, out: int = BYOL_PROJECTED
              ) -> nn.Sequential:
    """BYOL's projector; its predictor is one of the projector's `out` channels."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.BatchNorm1d(hidden),
                         nn.ReLU(inplace=True), nn.Linear(hidden, out))


# --- batch norms of shares of a batch --------------------------------------------------------


class SplitNorm(nn.Module):
    """Batch norm whose statistics are of `images` of a batch together, in all its `views`, as where
    each of several GPUs has its share of the batch. The running ones are of the first share."""

    def __init__(self, norm: nn.Module, images: int, views: int) -> None:
        super().__init__()
        self.norm, self.images, self.views = norm, images, views

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(views * B, C, ...), one view after the other, in training; any batch in eval mode."""
        if not self.training:
            return self.norm(x)
        shares = x.unflatten(0, (self.views, -1)).split(self.images, 1)
        first, *rest = (share.flatten(0, 1) for share in shares)
        normed = [self.norm(first), *(
            F.batch_norm(share, None, None, self.norm.weight, self.norm.bias, True,
                         eps=self.norm.eps) for share in rest)]
        return torch.cat([one.unflatten(0, (self.views, -1)) for one in normed], 1).flatten(0, 1)


def split_norms(network: nn.Module, images: int, views: int) -> None:
    """Put SplitNorm in the place of every batch norm."""
    replace(network, NORMS, lambda norm: SplitNorm(norm, images, views))


# --- batch norms of two kinds of images ------------------------------------------------------


class TwoNorms(nn.Module):
    """Two batch norms, for images as they are and for attacked ones; `which` is in use."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.clean, self.attacked = norm, copy.deepcopy(norm)
        self.which: Norms = "attacked"      # what is probed, also by a run that resumes there

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.clean if self.which == "clean" else self.attacked)(x)


def double_norms(network: nn.Module) -> None:
    """Put TwoNorms in the place of every batch norm."""
    replace(network, NORMS, TwoNorms)


def use_norms(network: nn.Module, which: Norms) -> None:
    """Let `network` compute with these of its TwoNorms."""
    for module in network.modules():
        if isinstance(module, TwoNorms):
            module.which = which


def single_norms(network: nn.Module, which: Norms) -> nn.Module:
    """A copy with these norms alone, under the names of a plain network."""
    network = copy.deepcopy(network)
    replace(network, TwoNorms, lambda norms: getattr(norms, which))
    return network


def replace(network: nn.Module, kind: type | tuple[type, ...],
            make: Callable[[nn.Module], nn.Module]) -> None:
    """Put make(part) in the place of every part of this kind."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, make(child))
