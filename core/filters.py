"""Filters of a batch, with a draw of its own for every image: a purifier applies them once, a
learner anew at every step.

Images are float (B, H, W, 3) in [0, 1], on any device. Sources: at each.
"""

import math

import torch

from core.device import to_device
from core.errors import ConfigError

# a of COIN's shifts U(-a, a), in pixels, at severity 1 to 7 (code wxldragon/COIN)
COIN_REACH = (0.8, 1.2, 1.6, 2.0, 2.4, 2.8, 3.2)


def check_mirrored(key: str, size: int, shape: tuple[int, int]) -> None:
    """Raise ConfigError unless images of this (height, width) can be mirrored at their border as
    far as a filter of `size` pixels a side, the value of `key`, reaches."""
    if size // 2 >= min(shape):
        raise ConfigError(key, f"{size} is too large to be mirrored at the border of images of "
                               f"{shape[0]}x{shape[1]}")


def warp(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Every pixel is what lies at its own place moved by `shifts` (B, 2, H, W: down, to the right;
    in pixels), bilinear between four pixels; one shift for the three channels.

    Outside, an image of side n goes on with period n - 1, as SciPy's `wrap`: position n is pixel 1,
    -1 is pixel n - 2. Source: COIN (Li et al., AAAI 2025), code wxldragon/COIN.
    """
    height, width = images.shape[1:3]
    rows = torch.arange(height, device=images.device)[:, None] + shifts[:, 0]
    columns = torch.arange(width, device=images.device) + shifts[:, 1]
    top, bottom, down = neighbours(rows, height)
    left, right, across = neighbours(columns, width)
    first = torch.arange(len(images), device=images.device)[:, None, None] * (height * width)
    flat = images.reshape(-1, 3)

    def row_of(row: torch.Tensor) -> torch.Tensor:
        one, other = (flat[(first + row * width + column).view(-1)].view(images.shape)
                      for column in (left, right))
        return one.lerp(other, across)              # a constant stays what it is, to the bit

    return row_of(top).lerp(row_of(bottom), down)


def neighbours(positions: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Pixels below and above each of the positions (B, H, W), and the share of the one above with a
    last axis for channels."""
    outside = (positions < 0) | (positions > size - 1)
    positions = torch.where(outside, positions.remainder(max(size - 1, 1)), positions)
    low = positions.long()
    return low, (low + 1).clamp_(max=size - 1), (positions - low)[..., None]


def check_kept(keep: float, shape: tuple[int, int]) -> None:
    """Raise ConfigError unless a part `keep` of the frequencies of sharpened images (height, width)
    is one at least."""
    height, width = shape
    if int(min(shape) * keep) < 1:
        raise ConfigError("keep", f"{keep:g} of the rows of the {height}x{width} pixels that the "
                                  "kernel leaves of an image is none; raise it")


def sharpen_and_low_pass(images: torch.Tensor, drawn: torch.Tensor, *, centre: float,
                         spread: float, keep: float) -> torch.Tensor:
    """RSK + FF (arXiv 2411.01742, code aseriesof-tubes/RSK): a kernel an image by normal draws
    (B, 5), clipped, then the low frequencies of what is left, (B, H - 2, W - 2, 3), clipped."""
    sharp = sharpen(images, sharpening_kernels(to_device(drawn, images.device), centre, spread))
    return low_pass(sharp, keep).clamp_(0, 1)


def sharpening_kernels(drawn: torch.Tensor, centre: float, spread: float) -> torch.Tensor:
    """Kernels (B, 5: the middle, then its four neighbours, which are subtracted) from normal draws
    (B, 5): the middle is N(centre, spread), a neighbour N((middle - 1) / 4, spread). This is RSK;
    without spread it is SSK, which leaves a constant as it is."""
    middle = centre + spread * drawn[:, :1]
    return torch.cat([middle, (middle - 1) / 4 + spread * drawn[:, 1:]], 1)


def sharpen(images: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Each image through its own kernel of `sharpening_kernels`, clipped: (B, H - 2, W - 2, 3)."""
    middle, above, left, right, below = kernels[:, :, None, None, None].unbind(1)
    sharp = middle * images[:, 1:-1, 1:-1]
    sharp -= above * images[:, :-2, 1:-1] + below * images[:, 2:, 1:-1]
    sharp -= left * images[:, 1:-1, :-2] + right * images[:, 1:-1, 2:]
    return sharp.clamp_(0, 1)


def low_pass(images: torch.Tensor, keep: float) -> torch.Tensor:
    """Keep int(side * keep) rows and columns of the orthonormal DCT-II: FF, not clipped."""
    rows, columns = (to_device(dct_projection(side, keep).to(images.dtype), images.device)
                     for side in images.shape[1:3])
    return columns @ (rows @ images.flatten(2)).view(images.shape)


def dct_projection(side: int, keep: float) -> torch.Tensor:
    """(side, side), float64: into the DCT-II, its lowest int(side * keep) coefficients, and back.
    """
    kept = torch.arange(int(side * keep), dtype=torch.float64)[:, None]
    places = torch.arange(side, dtype=torch.float64) + 0.5
    basis = torch.cos(math.pi / side * kept * places) * math.sqrt(2 / side)
    basis[:1] /= math.sqrt(2)
    return basis.T @ basis
