"""The visual tower of CLIP's ResNets: images (B, 3, S, S), normalised, to features (B, channels).

Source: Radford et al. 2021 (arXiv 2103.00020), section 2.4; layers and names as in code openai/CLIP
(RN50: width 64, depths 3 4 6 3, 1024 channels of 224x224 images; 38,316,896 parameters).
Deviations: none. `poisons.clip` reads its weights.
"""

import torch
import torch.nn.functional as F
from torch import nn

EXPANSION = 4           # of a bottleneck's channels
SHRINKS = 32            # an image's side is so many positions of the pooling's grid
HEAD_CHANNELS = 64


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions plus the input; where it shrinks, by a mean of 2x2 pixels
    before the last of them and before the projection."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shrink = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, EXPANSION * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(EXPANSION * planes)
        self.downsample = None
        if stride > 1 or channels != EXPANSION * planes:
            self.downsample = nn.Sequential()           # "-1" has no weights; CLIP's names
            self.downsample.add_module("-1", nn.AvgPool2d(stride))
            self.downsample.add_module("0", nn.Conv2d(channels, EXPANSION * planes, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(EXPANSION * planes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.shrink(F.relu(self.bn2(self.conv2(out))))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class AttentionPool(nn.Module):
    """What the mean of all positions sees of them and of itself by one layer of attention."""

    def __init__(self, grid: int, inside: int, channels: int) -> None:
        super().__init__()
        self.heads = inside // HEAD_CHANNELS
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, inside) / inside**0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(inside, inside) for _ in range(3))
        self.c_proj = nn.Linear(inside, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels) of (B, inside, grid, grid)."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        query, key, value = (
            of.unflatten(2, (self.heads, HEAD_CHANNELS)).transpose(1, 2)
            for of in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)))
        pooled = F.scaled_dot_product_attention(query, key, value)
        return self.c_proj(pooled.flatten(1))


class ClipResNet(nn.Module):
    """`depths[i]` bottlenecks of `width * 2**i` planes behind three convolutions, for images of
    32 * grid pixels a side."""

    def __init__(self, depths: tuple[int, ...], width: int, grid: int, channels: int) -> None:
        super().__init__()
        self.size = SHRINKS * grid
        self.conv1 = nn.Conv2d(3, width // 2, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        before = width
        for group, depth in enumerate(depths):
            planes, blocks = width << group, []
            for index in range(depth):
                blocks.append(Bottleneck(before, planes, 2 if group > 0 and index == 0 else 1))
                before = EXPANSION * planes
            setattr(self, f"layer{group + 1}", nn.Sequential(*blocks))
        self.attnpool = AttentionPool(grid, before, channels)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels) of images (B, 3, size, size)."""
        for number in (1, 2, 3):
            conv, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.attnpool(x)

    forward = features
