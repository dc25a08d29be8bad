"""WideResNet-28 for images in [0, 1]: pre-activation blocks, wide and few.

Source: Zagoruyko & Komodakis, BMVC 2016 (arXiv 1605.07146), table 1, and code szagoruyko/
wide-residual-networks (its initialisation); of the paper's two forms the one without dropout.
"""

import torch
import torch.nn.functional as F
from torch import nn

STEM = 16               # channels before the first group; table 1


class WideBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice; plus the input (projected, after its ReLU, where shapes
    differ)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.stride = stride
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.bn1(x), inplace=True)
        if self.shortcut is not None:       # the stride is taken here: see models/resnet.py
            x = self.shortcut(active[:, :, :: self.stride, :: self.stride])
        return self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True)).add_(x)


def wrn28(widen: float = 10, stem: str = "cifar") -> tuple[nn.Module, int]:
    """WRN-28 without its head, (B, 3, H, W) -> (B, channels), and the channels: 64 `widen`. The
    stem "imagenet" divides the size by 4 first (ours)."""
    first = [nn.Conv2d(3, STEM, 3, padding=1, bias=False)]
    if stem == "imagenet":
        first = [nn.Conv2d(3, STEM, 7, stride=2, padding=3, bias=False),
                 nn.MaxPool2d(3, stride=2, padding=1)]
    layers, channels = first, STEM
    for group in range(3):
        out = max(1, round((STEM << group) * widen))
        for index in range(4):              # (28 - 4) / 6
            layers.append(WideBlock(channels, out, 2 if group and not index else 1))
            channels = out
    body = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body, channels
