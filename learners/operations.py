"""Pillow's image operations for a whole batch, each image with a magnitude of its own.

They take uint8 (n, H, W, 3) on any device and a magnitude float64 (n,), and give the bytes that
Pillow gives image by image (13.0; `ImageOps`, `ImageEnhance`, and its nearest-pixel affine
transform, which counts in 1/65536 of a pixel and fills with black). AutoAugment applies them to the
stored images. kornia's of the same names, which UEraser applies, are others: `learners/trivial.py`.
"""

import math

import numpy as np
import torch

from core.device import to_device
from core.luma import luma

FILL = (125, 123, 114)          # of Fast AutoAugment's cutout: CIFAR's mean colour


def auto_contrast(images: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
    """Each channel stretched to 0..255."""
    low, high = (edge(images, (1, 2), keepdim=True).double() for edge in (torch.amin, torch.amax))
    # A number over a tensor would be multiplied by the reciprocal, whose last bit may differ.
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    stretched = (images * scale + -low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def equalize(images: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
    """Each channel's histogram made flat."""
    count, height, width, _ = images.shape
    levels, histogram = histograms(images)
    flat = flat_table(levels, histogram).gather(1, levels).to(torch.uint8)
    return flat.view(count, 3, height, width).permute(0, 2, 3, 1)


def invert(images: torch.Tensor, unused: torch.Tensor) -> torch.Tensor:
    return 255 - images


def posterize(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """The top bits of every value, 1 to 8; a fraction of a bit counts as none."""
    mask = 256 - 2 ** (8 - bits.long())
    return images & mask.to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Values from the threshold on (0 to 256) are inverted."""
    return torch.where(images < threshold.view(-1, 1, 1, 1), images, 255 - images)


def brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Away from black (factor above 1) or towards it."""
    return blend(torch.zeros_like(images), images, factor)


def contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Away from the image's mean luma or towards it."""
    pixels = images.shape[1] * images.shape[2]
    total = luma(images).sum((1, 2, 3), keepdim=True)
    return blend((2 * total + pixels) // (2 * pixels), images, factor)


def color(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Away from each pixel's luma or towards it."""
    return blend(luma(images), images, factor)


def sharpness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Away from the mean of 3x3 pixels, in which the middle counts five times, or towards it. Those
    at the rim stay."""
    inner = images[:, 1:-1, 1:-1]
    rows = images.int()
    rows = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner.int()
    result = images.clone()
    result[:, 1:-1, 1:-1] = blend((2 * total + 13) // 26, inner, factor)
    return result


def shear_x(images: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Each row is read `slope` pixels further right than the one above it."""
    return affine(images, b=slope)


def shear_y(images: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Each column is read `slope` pixels further down than the one left of it."""
    return affine(images, d=slope)


def translate_x(images: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Read so many pixels further right: what is seen moves left."""
    return affine(images, c=(pixels + 0.5).floor())


def translate_y(images: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Read so many pixels further down: what is seen moves up."""
    return affine(images, f=(pixels + 0.5).floor())


def rotate(images: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Counter-clockwise about the middle."""
    y, x = images.shape[1] / 2, images.shape[2] / 2
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    return affine(images, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def cutout(images: torch.Tensor, side: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """A square of FILL, floor(side) + 1 pixels wide, as Pillow's rectangles include both ends; none
    where side is 0. `centre` (n, 2: x, y) in [0, 1) lies between the last pixel's far edge and 1:
    the release calls NumPy's uniform(width), whose interval ends at 1. The rim cuts it off."""
    colour = to_device(torch.tensor(FILL, dtype=torch.uint8), images.device)
    where = torch.ones_like(images[..., 0], dtype=torch.bool)
    for axis, size in ((2, images.shape[2]), (1, images.shape[1])):
        middle = size - (size - 1) * centre[:, 2 - axis]
        first = (middle - side / 2).clamp(min=0).floor()
        last = (first + side).clamp(max=size).floor()
        at = torch.arange(size, device=images.device)
        inside = (at >= first[:, None]) & (at <= last[:, None]) & (side > 0)[:, None]
        where &= inside[:, None, :] if axis == 2 else inside[:, :, None]
    return torch.where(where[..., None], colour, images)


# --- what they are made of -------------------------------------------------------------------


def histograms(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The levels (3n, H * W) of each channel of uint8 (n, H, W, 3), and how often each of the 256
    is there (3n, 256); both int64."""
    count, height, width, _ = images.shape
    levels = images.permute(0, 3, 1, 2).reshape(3 * count, height * width).long()
    return levels, counted(levels)


def counted(levels: torch.Tensor) -> torch.Tensor:
    """How often each of 256 levels is in each row of int64 (channels, pixels): (channels, 256)."""
    counts = levels.new_zeros(len(levels), 256)
    return counts.scatter_add_(1, levels, torch.ones_like(levels))


def flat_table(levels: torch.Tensor, histogram: torch.Tensor) -> torch.Tensor:
    """The level that each of 256 becomes in each channel, int64 (channels, 256); where too few
    pixels are below the brightest, the same."""
    step = (levels.shape[1] - histogram.gather(1, levels.amax(1, keepdim=True))) // 255
    below = histogram.cumsum(1) - histogram
    table = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, table, torch.arange(256, device=levels.device))


def blend(start: torch.Tensor, images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """start + factor (n,) * (images - start) in float32, down to whole levels, clipped."""
    start = start.float()
    moved = (images.float() - start).mul_(factor.float().view(-1, 1, 1, 1)).add_(start)
    return moved.clamp_(0, 255).to(torch.uint8)


def affine(images: torch.Tensor, a: torch.Tensor | float = 1.0, b: torch.Tensor | float = 0.0,
           c: torch.Tensor | float = 0.0, d: torch.Tensor | float = 0.0,
           e: torch.Tensor | float = 1.0, f: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Pillow's: the pixel at (x, y) is that of the source at (a x + b y + c, d x + e y + f), each
    (n,) or one number, at pixel centres; black outside."""
    count, height, width, _ = images.shape

    def source(along: torch.Tensor | float, across: torch.Tensor | float,
               offset: torch.Tensor | float) -> torch.Tensor:
        """(n, H, W) whole positions of x * along + y * across + offset."""
        offset = offset + along * 0.5 + across * 0.5
        along, across, offset = map(in_65536ths, (along, across, offset))
        x = torch.arange(width, device=images.device)
        y = torch.arange(height, device=images.device)[:, None]
        return (along * x + across * y + offset) >> 16

    columns, rows = torch.broadcast_tensors(source(a, b, c), source(d, e, f))
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    flat = torch.where(inside, rows * width + columns, 0).view(-1, height * width, 1)
    moved = images.reshape(count, height * width, 3).gather(1, flat.expand(count, -1, 3))
    return moved.view(images.shape) * inside[..., None]


def in_65536ths(value: torch.Tensor | float) -> torch.Tensor | int:
    """To the nearest whole one; of a tensor (n,), (n, 1, 1)."""
    if isinstance(value, float):
        return math.floor(65536 * value + 0.5)
    return (65536 * value + 0.5).floor().long().view(-1, 1, 1)


# By the names that AutoAugment's tables use.
OPERATIONS = {
    "ShearX": shear_x, "ShearY": shear_y, "TranslateX": translate_x, "TranslateY": translate_y,
    "Rotate": rotate, "AutoContrast": auto_contrast, "Invert": invert, "Equalize": equalize,
    "Solarize": solarize, "Posterize": posterize, "Contrast": contrast, "Color": color,
    "Brightness": brightness, "Sharpness": sharpness, "Cutout": cutout}


def apply_each(images: torch.Tensor, which: np.ndarray, magnitudes: np.ndarray,
               centres: np.ndarray) -> torch.Tensor:
    """Each image with the operation that `which` (n,) names, by its index in OPERATIONS (-1: none),
    at its own of `magnitudes` (n,); `centres` (n, 2) are cutout's. One call an operation: images
    are sorted by it, and sorted back."""
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which + 1, minlength=len(OPERATIONS) + 1))
    drawn = np.column_stack([magnitudes, centres])[order]
    drawn, order = to_device(drawn, images.device), to_device(order, images.device)
    result = images[order]
    for operation, start, end in zip(OPERATIONS.values(), ends[:-1], ends[1:], strict=True):
        if start < end:
            arguments = [drawn[start:end, 0]]
            if operation is cutout:
                arguments.append(drawn[start:end, 1:])
            result[start:end] = operation(result[start:end], *arguments)
    return torch.empty_like(result).index_copy_(0, order, result)
