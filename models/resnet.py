"""ResNet-18 for images in [0, 1], with the CIFAR stem or the ImageNet stem.

Source: He et al. 2016 (arXiv 1512.03385), table 1 (ResNet-18); the CIFAR stem (3x3, stride 1, no
max-pooling) is the one of the released code of the poisons, e.g. yuyi-sd/D-VAE,
configs/models/resnet.py.
Deviations: torch's default initialisation with either stem, where torchvision's ImageNet network
begins with He et al.'s fan-out; no normalisation of the input.
"""

import torch
import torch.nn.functional as F
from torch import nn

IMAGENET_STEM = 96      # pixels: from here on `auto` takes the ImageNet stem


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, plus the input (projected where shapes differ)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # In place where batch norm's backward does not need the value: saves memory traffic.
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        # The 1x1 convolution's stride is taken here: torch 2.15's own corrupts memory in backward
        # (CPU, channels-last, 8 channels, 64x64).
        skipped = self.shortcut(x[:, :, :: self.stride, :: self.stride])
        out = self.bn2(self.conv2(out)).add_(skipped)
        return F.relu(out, inplace=True)


def make_stem(kind: str, width: int) -> nn.Sequential:
    """First layers, 3 -> width channels. "cifar" keeps the size, "imagenet" divides it by 4."""
    if kind == "cifar":
        conv, pool = nn.Conv2d(3, width, 3, stride=1, padding=1, bias=False), []
    elif kind == "imagenet":
        conv = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        pool = [nn.MaxPool2d(3, stride=2, padding=1)]
    else:
        raise ValueError(f"stem is {kind!r}; it must be 'cifar' or 'imagenet'")
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True), *pool)


class ResNet(nn.Module):
    """Four groups of two BasicBlocks of width `width * 2**i`, average pooling and a linear head."""

    def __init__(self, num_classes: int, width: int, stem: str):
        super().__init__()
        self.stem = make_stem(stem, width)
        blocks, channels = [], width
        for group in range(4):
            for index in range(2):
                stride = 2 if group > 0 and index == 0 else 1
                blocks.append(BasicBlock(channels, width << group, stride))
                channels = width << group
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, num_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Pooled features (B, 8 * width) of images (B, 3, H, W) in [0, 1], H and W >= 8."""
        return self.blocks(self.stem(x)).mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) of images (B, 3, H, W) in [0, 1]."""
        return self.linear(self.features(x))


def resnet18(num_classes: int = 10, width: int = 64, stem: str = "cifar") -> ResNet:
    """ResNet-18 (11,173,962 parameters by default). Raises ValueError on an unknown stem."""
    return ResNet(num_classes, width, stem)
