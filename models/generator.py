"""The generator of Unlearnable Clusters: from noise to a perturbation of an image's size.

Source: Zhang et al., CVPR 2023 (UC), code jiamingzhang94/Unlearnable-Clusters, models/generator.py:
Johnson et al.'s network for style transfer with batch norm. Deviations: sides that are no multiple
of 4 are padded at the right and below, and cut again.
"""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 64              # channels behind the first layer; UC's
BLOCKS = 6              # residual, at a quarter of the size
SMALLEST = 8            # pixels a side: a quarter of fewer cannot be mirrored at its border


class Residual(nn.Module):
    """x plus two 3x3 convolutions of it, with mirrored borders and batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False),
            nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False),
            nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class Generator(nn.Module):
    """Noise (1, 3, H, W) -> (1, 3, H, W) in (-1, 1); 7,841,411 parameters at width 64.

    Always in train mode: its batch is one image, so batch norm's statistics are over its pixels,
    and running ones would be of the weights that it had while it was trained.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7, bias=False), *norm_relu(width)]
        for channels in (width, 2 * width):
            layers += [nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False),
                       *norm_relu(2 * channels)]
        layers += [Residual(4 * width) for _ in range(BLOCKS)]
        for channels in (4 * width, 2 * width):
            layers += [nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, 1, bias=False),
                       *norm_relu(channels // 2)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def eval(self) -> "Generator":
        raise RuntimeError("a generator stays in train mode: see its docstring")

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        height, width = noise.shape[2:]
        padded = F.pad(noise, (0, -width % 4, 0, -height % 4), mode="replicate")
        return self.layers(padded)[:, :, :height, :width]


def norm_relu(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
