"""The U-Net of GUE: from images to a perturbation of each.

Names and shapes of the weights are those of the release's code, whose file was not at hand;
DeepConfuse's network is the same. Source: code hong-xian/gue, models/unet.py.
"""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 64              # channels of the first level; GUE's
HALVED = 3              # times, on the way down
SIDES = 1 << HALVED     # of images must be multiples of this


class NoiseUNet(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> (B, 3, H, W) in (-1, 1); 7,788,681 parameters at width 64.

    Four levels of 1, 2, 4 and 8 times `width` channels; H and W are multiples of 8. `momentum` is
    that of batch norm's running statistics.
    """

    def __init__(self, width: int = WIDTH, momentum: float = 0.1) -> None:
        super().__init__()
        one, two, three, four = (width << level for level in range(HALVED + 1))
        self.dconv_down1 = two_convolutions(3, one, momentum)
        self.dconv_down2 = two_convolutions(one, two, momentum)
        self.dconv_down3 = two_convolutions(two, three, momentum)
        self.dconv_down4 = two_convolutions(three, four, momentum)
        self.dconv_up3 = two_convolutions(four + three, three, momentum)
        self.dconv_up2 = two_convolutions(three + two, two, momentum)
        self.dconv_up1 = two_convolutions(two + one, one, momentum)
        self.conv_last = nn.Sequential(nn.Conv2d(one, 3, 1), nn.BatchNorm2d(3, momentum=momentum))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = self.dconv_down1(images)
        second = self.dconv_down2(F.avg_pool2d(first, 2))
        third = self.dconv_down3(F.avg_pool2d(second, 2))
        x = self.dconv_down4(F.avg_pool2d(third, 2))
        x = self.dconv_up3(torch.cat([twice(x), third], 1))
        x = self.dconv_up2(torch.cat([twice(x), second], 1))
        x = self.dconv_up1(torch.cat([twice(x), first], 1))
        return self.conv_last(x).tanh()


def two_convolutions(inputs: int, out: int, momentum: float) -> nn.Sequential:
    """3x3, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, out):
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out, momentum=momentum),
                   nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def twice(x: torch.Tensor) -> torch.Tensor:
    """As high and wide again; the corners stay where they are."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
