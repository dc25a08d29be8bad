"""TrivialAugment as kornia 0.6.12 runs it, for UEraser: one of twelve operations on a whole batch,
each image at a magnitude of its own.

Floats (n, 3, H, W) in [0, 1]. Other than Pillow's of the same names (`learners/operations.py`),
values are no whole levels, geometry is bilinear, brightness adds, contrast multiplies and knows no
mean, posterising keeps 0 to 4 bits, and 0 give a black image. There is no identity and no colour.
kornia's table says rotation by 30 degrees, shears of 0.3 and translation by half a side, either way
each; it does something else, as its policy takes the operations' own magnitudes and skips the
wrapper that would turn half of them round and scale the shears. What runs is rotation by 0 to 30
degrees counter-clockwise, translation by 0 to half a side to the right or downwards, and shears by
0 to 0.3 *degrees*, which blur a little. The published numbers come from that, and so it is here.
Source: Mueller and Hutter, ICCV 2021; code kornia/kornia 0.6.12, augmentation/auto.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from core.device import to_device
from learners.operations import counted, flat_table


def trivial_augment(images: torch.Tensor, draw: np.random.Generator) -> torch.Tensor:
    """One operation for all, drawn from the twelve, at a magnitude for each (n,)."""
    operation, (low, high) = TWELVE[draw.integers(len(TWELVE))]
    magnitudes = draw.uniform(low, high, len(images)).astype(np.float32)
    return operation(images, to_device(magnitudes, images.device).view(-1, 1, 1, 1))


def auto_contrast(images: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return ((images - low) / (high - low + 1e-6)).clamp_(0, 1)


def equalize(images: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
    """By a histogram of 256 bins over 0..255, each 255/256 wide, that is read at whole levels."""
    levels = 255 * images.reshape(3 * len(images), -1)
    bins = (levels * (256 / 255)).long().clamp_(max=255)
    table = flat_table(bins, counted(bins))
    unchanged = (table == torch.arange(256, device=table.device)).all(1, keepdim=True)
    flat = torch.where(unchanged, levels, table.gather(1, levels.long()).float())
    return (flat / 255).view(images.shape)


def posterize(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Rounded to whole bits. kornia's divisions by 255 between its shifts lose some levels."""
    bits = bits.round()
    unit = 2 ** (8 - bits)
    top = ((255 * images).floor() / unit / 255 * 255).floor()
    return torch.where(bits > 0, top * unit / 255, 0)


def solarize(images: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return torch.where(images < threshold, images, 1 - images)


def contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (images * factor).clamp_(0, 1)


def brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (images + (factor - 1)).clamp_(0, 1)


def sharpness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Away from a 3x3 mean with five times the middle, or towards it; the rim stays."""
    kernel = images.new_ones(3, 1, 3, 3)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel / 13, groups=3).clamp_(0, 1)
    return (smooth + (images - smooth) * factor).clamp_(0, 1)


def rotate(images: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    return sampled(images, lambda x, y: (cos * x - sin * y, sin * x + cos * y))


def shear_x(images: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    slope = torch.tan(torch.deg2rad(degrees))
    return sampled(images, lambda x, y: (x + slope * y, y))


def shear_y(images: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    slope = torch.tan(torch.deg2rad(degrees))
    return sampled(images, lambda x, y: (x, y + slope * x))


def translate_x(images: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    return sampled(images, lambda x, y: (x - share * side_counted(images.shape[3]), y))


def translate_y(images: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    return sampled(images, lambda x, y: (x, y - share * side_counted(images.shape[2])))


def side_counted(side: int) -> float:
    """A side as a translation counts it: in kornia between the middles of the outer pixels, and
    applied between their edges."""
    return side * side / max(side - 1, 1)


def sampled(images: torch.Tensor, source: Callable) -> torch.Tensor:
    """Each image read at source(x, y), in pixels from its middle; bilinear, black outside."""
    height, width = images.shape[2:]
    middle = (width - 1) / 2, (height - 1) / 2
    x = torch.arange(width, device=images.device).view(1, 1, 1, width) - middle[0]
    y = torch.arange(height, device=images.device).view(1, 1, height, 1) - middle[1]
    grid = [at[:, 0] / max(half, 0.5) for at, half in zip(source(x, y), middle, strict=True)]
    grid = torch.stack(torch.broadcast_tensors(*grid), 3).expand(len(images), height, width, 2)
    return F.grid_sample(images, grid, align_corners=True)


# (operation, its least and largest magnitude)
TWELVE = [(auto_contrast, (0, 1)), (equalize, (0, 1)), (rotate, (0, 30)), (posterize, (0, 4)),
          (solarize, (0, 1)), (contrast, (0.1, 1.9)), (brightness, (0.1, 1.9)),
          (sharpness, (0.1, 1.9)), (shear_x, (0, 0.3)), (shear_y, (0, 0.3)),
          (translate_x, (0, 0.5)), (translate_y, (0, 0.5))]
