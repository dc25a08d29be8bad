"""Classifiers by name: ResNet-18 of any width, and torchvision's architectures. Images below 96
pixels meet a stem of stride 1 without pooling.

Each has `features(x)`, what its linear head sees, and takes images (B, 3, H, W) in [0, 1].
Source: the adaptations usual for CIFAR; weights are never downloaded.
"""

from typing import Literal

import torch
from torch import nn

from models.resnet import IMAGENET_STEM, resnet18

Architecture = Literal["resnet18", "resnet50", "vgg11", "vgg16", "vgg19", "densenet121",
                       "mobilenet_v2", "linear", "two_linear"]
Stem = Literal["auto", "cifar", "imagenet"]


class Headed(nn.Module):
    """A feature extractor and a linear head."""

    def __init__(self, body: nn.Module, channels: int, num_classes: int, bias: bool = True) -> None:
        super().__init__()
        self.body, self.linear = body, nn.Linear(channels, num_classes, bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels)."""
        return self.body(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes)."""
        return self.linear(self.features(x))


def classifier(name: Architecture, num_classes: int, shape: tuple[int, int], width: int = 64,
               stem: Stem = "auto") -> nn.Module:
    """A fresh network for images of this (height, width). `width` is resnet18's alone. Raises
    ValueError for an unknown name."""
    if stem == "auto":
        stem = "imagenet" if min(shape) >= IMAGENET_STEM else "cifar"
    if name == "resnet18":
        return resnet18(num_classes, width, stem)
    pixels = 3 * shape[0] * shape[1]
    if name == "linear":
        return Headed(nn.Flatten(), pixels, num_classes)
    if name == "two_linear":        # PIL's: one linear map, in two factors
        first = nn.Linear(pixels, num_classes, bias=False)
        return Headed(nn.Sequential(nn.Flatten(), first), num_classes, num_classes, bias=False)
    body, channels = torchvision_body(name, min(shape), small=stem == "cifar")
    return Headed(body, channels, num_classes)


def torchvision_body(name: str, side: int, *, small: bool) -> tuple[nn.Module, int]:
    """torchvision's network without its head, and the channels that it gives."""
    from torchvision import models

    if name.startswith("vgg"):
        body = getattr(models, f"{name}_bn")()
        body.avgpool, body.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
        pools = [i for i, layer in enumerate(body.features) if isinstance(layer, nn.MaxPool2d)]
        for i in pools[side.bit_length() - 1 :]:        # below 32 pixels there is nothing left
            body.features[i] = nn.Identity()
        return body, 512
    if name == "resnet50":
        body = models.resnet50()
        channels, body.fc = body.fc.in_features, nn.Identity()
        if small:
            body.conv1, body.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
        return body, channels
    if name == "densenet121":
        body = models.densenet121()
        channels, body.classifier = body.classifier.in_features, nn.Identity()
        if small:
            body.features.conv0 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
            body.features.pool0 = nn.Identity()
        return body, channels
    if name == "mobilenet_v2":
        body = models.mobilenet_v2()
        channels, body.classifier = body.last_channel, nn.Identity()
        if small:
            body.features[0][0].stride = (1, 1)
        return body, channels
    raise ValueError(f"there is no architecture '{name}'")
