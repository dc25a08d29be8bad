"""Classifiers by name: ResNet-18, WideResNet-28-10 and torchvision's architectures, each of any
width. Images below 96 pixels meet a stem of stride 1 without pooling, and patches of 4 pixels.

Each has `features(x)`, what its linear head sees, and takes images (B, 3, H, W) in [0, 1].
Source: the adaptations usual for CIFAR; weights are never downloaded. `vit_small` is as wide as
ViT-S (Touvron et al., ICML 2021, DeiT-S: 384, 6 heads, MLP of four times that) and as deep as the
ViTs for CIFAR of code lafeat/apbench and EhanW/bridge-pure (6), whose other parts (shifted patches,
learnt temperatures, dropout, an MLP of 512) it does not have.
"""

from typing import Literal

import torch
from torch import nn

from models.resnet import IMAGENET_STEM, resnet18
from models.wideresnet import wrn28

Architecture = Literal["resnet18", "resnet50", "wrn28_10", "vgg11", "vgg16", "vgg19", "densenet121",
                       "mobilenet_v2", "vit_small", "linear", "two_linear"]
Stem = Literal["auto", "cifar", "imagenet"]
WIDTH = 64              # of each architecture as published
PATCH = {"cifar": 4, "imagenet": 16}        # pixels a side of vit_small's


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


def classifier(name: Architecture, num_classes: int, shape: tuple[int, int], width: int = WIDTH,
               stem: Stem = "auto") -> nn.Module:
    """A fresh network for images of this (height, width). `width` is the channels of resnet18's
    first group; others have width / 64 of their own channels, the linear ones all. Raises
    ValueError for an unknown name and for images that the network cannot take."""
    check_images(name, shape, stem)
    stem = stem_for(shape, stem)
    if name == "resnet18":
        return resnet18(num_classes, width, stem)
    pixels = 3 * shape[0] * shape[1]
    if name == "linear":
        return Headed(nn.Flatten(), pixels, num_classes)
    if name == "two_linear":        # PIL's: one linear map, in two factors
        first = nn.Linear(pixels, num_classes, bias=False)
        return Headed(nn.Sequential(nn.Flatten(), first), num_classes, num_classes, bias=False)
    if name == "wrn28_10":
        return Headed(*wrn28(10 * width / WIDTH, stem), num_classes)
    body, channels = torchvision_body(name, shape, width, small=stem == "cifar")
    return Headed(body, channels, num_classes)


def stem_for(shape: tuple[int, int], stem: Stem) -> Stem:
    if stem == "auto":
        return "imagenet" if min(shape) >= IMAGENET_STEM else "cifar"
    return stem


def check_images(name: Architecture, shape: tuple[int, int], stem: Stem = "auto") -> None:
    """Raise ValueError unless a network can be made for images of this (height, width)."""
    small = stem_for(shape, stem) == "cifar"
    if name == "densenet121" and min(shape) < (8 if small else 32):
        raise ValueError(f"densenet121 halves images three times"
                         f"{'' if small else ', after its first layers took a quarter'}, and "
                         f"of {shape[0]}x{shape[1]} pixels nothing is left")
    patch = PATCH["cifar" if small else "imagenet"]
    if name == "vit_small" and (shape[0] != shape[1] or shape[0] % patch):
        raise ValueError(f"vit_small cuts square images into patches of {patch}x{patch} pixels: "
                         f"their side must be a multiple of {patch}, and these have "
                         f"{shape[0]}x{shape[1]}")


def torchvision_body(name: str, shape: tuple[int, int], width: int, *, small: bool
                     ) -> tuple[nn.Module, int]:
    """torchvision's network without its head, and the channels that it gives."""
    from torchvision import models

    if name.startswith("vgg"):
        cfg = models.vgg.cfgs[{"vgg11": "A", "vgg16": "D", "vgg19": "E"}[name]]
        body = models.VGG(models.vgg.make_layers(
            [part if part == "M" else part * width // WIDTH for part in cfg], batch_norm=True))
        body.avgpool, body.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
        pools = [i for i, layer in enumerate(body.features) if isinstance(layer, nn.MaxPool2d)]
        for i in pools[min(shape).bit_length() - 1 :]:  # below 32 pixels there is nothing left
            body.features[i] = nn.Identity()
        return body, 8 * width
    if name == "resnet50":
        body = resnet50(width)
        if small:
            body.conv1, body.maxpool = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.Identity()
        return body, 32 * width
    if name == "densenet121":
        body = models.DenseNet(max(1, width // 2), (6, 12, 24, 16), width)
        channels, body.classifier = body.classifier.in_features, nn.Identity()
        if small:
            body.features.conv0 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
            body.features.pool0 = nn.Identity()
        return body, channels
    if name == "mobilenet_v2":
        body = models.MobileNetV2(width_mult=width / WIDTH)
        channels, body.classifier = body.last_channel, nn.Identity()
        if small:       # 4x4 positions of 32x32 are left, as in code kuangliu/pytorch-cifar
            body.features[0][0].stride = body.features[2].conv[1][0].stride = (1, 1)
        return body, channels
    if name == "vit_small":
        patch = PATCH["cifar" if small else "imagenet"]
        body = models.VisionTransformer(shape[0], patch, num_layers=6, num_heads=6,
                                        hidden_dim=6 * width, mlp_dim=24 * width)
        body.heads = nn.Identity()
        return body, 6 * width
    raise ValueError(f"there is no architecture '{name}'")


def resnet50(width: int) -> nn.Module:
    """torchvision's ResNet-50 without its head, of another width, which its class does not take."""
    from torchvision.models.resnet import Bottleneck, ResNet

    class OfWidth(ResNet):
        def _make_layer(self, block, planes, *rest, **options):
            if planes == WIDTH:             # the first group: behind the stem
                self.inplanes = width
            return super()._make_layer(block, planes * width // WIDTH, *rest, **options)

    body = OfWidth(Bottleneck, [3, 4, 6, 3])
    if width != WIDTH:
        body.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        body.bn1 = nn.BatchNorm2d(width)
    body.fc = nn.Identity()
    return body
