"""Colour normalisations of single images, for a whole batch: uint8 (n, H, W, 3) to the same.

DUNE's code calls OpenCV for them. Its integer arithmetic is repeated here: beside OpenCV 4.11 and
5.0, 4 million random colours have the same bytes in YUV, from YUV and from Lab; in Lab 1 in 10,000
is a level apart.
"""

import functools

import numpy as np
import torch

from learners.operations import histograms

# 8-bit YUV in 1/16384: weights of R, G, B in Y; of B - Y in U and R - Y in V; and back.
Y_OF = (4899, 9617, 1868)
U_OF_B, V_OF_R = 8061, 14369
R_OF_V, G_OF_U, G_OF_V, B_OF_U = 18678, -6472, -9519, 33292


def whitened(images: torch.Tensor) -> torch.Tensor:
    """Each channel to mean 0 and deviation 1, then all three together stretched to 0..255."""
    return stretched(standardised(images), (1, 2, 3)).to(torch.uint8)


def equalized(images: torch.Tensor) -> torch.Tensor:
    """Each channel's histogram made flat, as OpenCV's equalizeHist; Pillow's rounds otherwise."""
    levels, counts = histograms(images)
    total = levels.shape[1]
    up_to = counts.cumsum(1)
    darkest = counts.gather(1, levels.amin(1, keepdim=True))
    scale = torch.full_like(darkest, 255, dtype=torch.float32) / (total - darkest)
    table = ((up_to - darkest) * scale).round_().clamp_(0, 255)
    flat = torch.where(darkest < total, table.gather(1, levels), levels).to(torch.uint8)
    count, height, width, _ = images.shape
    return flat.view(count, 3, height, width).permute(0, 2, 3, 1).contiguous()


def stretched_in_yuv(images: torch.Tensor) -> torch.Tensor:
    """Each channel of YUV stretched to 0..255."""
    return from_yuv(stretched(standardised(to_yuv(images))))


def stretched_in_lab(images: torch.Tensor) -> torch.Tensor:
    """Each channel of CIE Lab stretched to 0..255."""
    return from_lab(stretched(standardised(to_lab(images))))


def standardised(values: torch.Tensor) -> torch.Tensor:
    """Each channel of each image to mean 0 and deviation 1, a constant one to 0; float32."""
    values = values.float()
    deviation = values.std((1, 2), correction=0, keepdim=True)
    return (values - values.mean((1, 2), keepdim=True)) / deviation.masked_fill(deviation < 1e-6, 1)


def stretched(values: torch.Tensor, over: tuple[int, ...] = (1, 2)) -> torch.Tensor:
    """Each image's channels (or, over 1, 2, 3, all of them together) from 0 to 255, down to whole
    levels; all 0 where there is but one value."""
    low, high = values.amin(over, keepdim=True), values.amax(over, keepdim=True)
    scaled = (values - low) / (high - low).clamp(min=1e-6) * 255
    return scaled.clamp_(0, 255).int()


# --- colour spaces: channels last, int32 from 0 to 255 -----------------------------------------


def to_yuv(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images.int().unbind(3)
    luma = descaled(Y_OF[0] * red + Y_OF[1] * green + Y_OF[2] * blue, 14)
    return torch.stack([luma, descaled((blue - luma) * U_OF_B, 14) + 128,
                        descaled((red - luma) * V_OF_R, 14) + 128], 3).clamp_(0, 255)


def from_yuv(values: torch.Tensor) -> torch.Tensor:
    """uint8 RGB."""
    luma, u, v = values.int().unbind(3)
    u, v = u - 128, v - 128
    return torch.stack([luma + descaled(v * R_OF_V, 14),
                        luma + descaled(u * G_OF_U + v * G_OF_V, 14),
                        luma + descaled(u * B_OF_U, 14)], 3).clamp_(0, 255).to(torch.uint8)


def to_lab(images: torch.Tensor) -> torch.Tensor:
    """sRGB under D65; L * 255 / 100, a + 128, b + 128."""
    table = tables(images.device)
    linear = table["linear"][images.long()]
    x, y, z = table["root"][descaled(multiplied(linear, TO_XYZ), 12)].unbind(3)
    return torch.stack([descaled(L_SCALE * y + L_SHIFT, 15), descaled(500 * (x - y), 15) + 128,
                        descaled(200 * (y - z), 15) + 128], 3).clamp_(0, 255)


def from_lab(values: torch.Tensor) -> torch.Tensor:
    """uint8 sRGB; colours that it lacks are clipped channel by channel."""
    table = tables(values.device)
    light, a, b = values.long().unbind(3)
    root = table["root_of_l"][light]
    x = root + (5 * a * 53687 + (1 << 7) >> 13) - 128 * ONE // 500
    z = root - ((b * 41943 + (1 << 4) >> 9) - 128 * ONE // 200 + 1)
    xyz = torch.stack([table["cube"][x - LOWEST], table["y_of_l"][light],
                       table["cube"][z - LOWEST]], 3)
    linear = descaled(multiplied(xyz, FROM_XYZ), 14).clamp_(0, 4095)
    return table["gamma"][linear].to(torch.uint8)


def descaled(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Divided by 2^bits, to the nearest whole number."""
    return values + (1 << bits - 1) >> bits


def multiplied(values: torch.Tensor, matrix: np.ndarray) -> torch.Tensor:
    """The matrix times each colour: whole numbers, which matrix products do not take on a GPU."""
    return torch.stack([sum(int(weight) * values[..., channel]
                            for channel, weight in enumerate(row)) for row in matrix], -1)


# OpenCV's tables for 8-bit Lab. sRGB's linear values in 1/2040, XYZ of white in 1/2040, cube roots
# in 1/32768; on the way back roots and XYZ in 1/16384, linear values in 1/4096.
ONE, LOWEST = 1 << 14, -8145                # of the roots on the way back: 1, and the least of all
WHITE = np.array([0.950456, 1.0, 1.088754])
TO_XYZ = np.rint(4096 / WHITE[:, None] * np.array([
    [0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169],
    [0.019334, 0.119193, 0.950227]])).astype(int)
FROM_XYZ = np.rint(4096 * WHITE * np.array([
    [3.240479, -1.53715, -0.498535], [-0.969256, 1.875991, 0.041556],
    [0.055648, -0.204043, 1.057311]])).astype(int)
L_SCALE, L_SHIFT = (116 * 255 + 50) // 100, -((16 * 255 * (1 << 15) + 50) // 100)


@functools.cache
def tables(device: torch.device) -> dict[str, torch.Tensor]:
    """By what they give; int64."""
    grey = np.arange(256) / 255
    linear = np.where(grey <= 0.04045, grey / 12.92, ((grey + 0.055) / 1.055) ** 2.4)
    part = np.arange(3 * 1024) / 2040
    root = np.where(part < 216 / 24389, part * 841 / 108 + 16 / 116, np.cbrt(part))
    light = np.arange(256) * 100 / 255
    root_of_l = np.where(light <= 8, light * 27 / 24389 * 841 / 108 + 16 / 116, (light + 16) / 116)
    y_of_l = np.where(light <= 8, light * 27 / 24389, root_of_l**3)
    steps = np.arange(LOWEST, LOWEST + ONE * 9 // 4)
    low = np.trunc(steps * 108 / 841).astype(int) - ONE * 16 // 116 * 108 // 841
    cube = np.where(steps <= 3390, low, steps * steps // ONE * steps // ONE)
    level = np.arange(4096) / 4096
    gamma = np.where(level <= 0.0031308, level * 12.92, 1.055 * level ** (1 / 2.4) - 0.055)
    found = {"linear": 2040 * linear, "root": 32768 * root, "root_of_l": ONE * root_of_l,
             "y_of_l": ONE * y_of_l, "cube": cube, "gamma": 255 * gamma}
    return {name: torch.from_numpy(np.rint(table).astype(np.int64)).to(device)
            for name, table in found.items()}
