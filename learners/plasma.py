"""Plasma fractals, and brightness and contrast that they vary over an image, as UEraser has them.

Diamond-square noise: from 3x3 points the sides double until they cover the image, and each point
between four others is their mean, moved the more towards uniform noise the coarser the grid is.
Every image and channel has a map of its own, which is not brought to [0, 1]: at 32x32 and
roughness 0.3, 0.5 and 0.7 its mean is 0.44, 0.48 and 0.50 and it reaches 1.2 to 1.4, because at
the rim kornia adds four neighbours and divides by three.
Source: code kornia/kornia 0.6.12, contrib/diamond_square.py and augmentation/_2d/intensity/
plasma.py. Deviation: on images that are not square, kornia begins with 3xN points.
"""

import torch


def brighten(images: torch.Tensor, roughness: torch.Tensor, intensity: torch.Tensor,
             generator: torch.Generator) -> torch.Tensor:
    """Images (n, 3, H, W) in [0, 1] plus intensity (n,) * (2 F - 1), clipped."""
    maps = fractals(images.shape, roughness, generator)
    return (images + intensity.view(-1, 1, 1, 1) * (2 * maps - 1)).clamp_(0, 1)


def vary_contrast(images: torch.Tensor, roughness: torch.Tensor, generator: torch.Generator
                  ) -> torch.Tensor:
    """Images (n, 3, H, W) in [0, 1] as 4 F times their distance from mid-grey, clipped."""
    return ((images - 0.5) * (4 * fractals(images.shape, roughness, generator)) + 0.5).clamp_(0, 1)


def fractals(shape: tuple[int, int, int, int], roughness: torch.Tensor,
             generator: torch.Generator) -> torch.Tensor:
    """Maps F of this shape (n, channels, H, W), the roughness (n,) of each image in [0, 1], on the
    generator's device."""
    count, channels, height, width = shape
    roughness = roughness.view(-1, 1, 1, 1)
    grid = seed(torch.rand(count, channels, 2, 2, generator=generator, device=generator.device))
    share = torch.ones_like(roughness)      # of noise
    while grid.shape[2] < max(height, width):
        share = share * roughness
        side = 2 * grid.shape[2] - 1
        noise = torch.rand(count, channels, side, side, generator=generator,
                           device=generator.device)
        grid = doubled(grid, share, noise)
    return grid[:, :, :height, :width]


def seed(corners: torch.Tensor) -> torch.Tensor:
    """3x3 points from the uniform noise of the four corners (..., 2, 2): a third of these, a third
    of their mean in the middle, and between two corners the mean of both and the middle."""
    a, c, b, d = corners.flatten(-2).unbind(-1)
    middle = (a + b + c + d) / 4
    points = [a, a + b + middle, b,
              a + c + middle, middle, b + d + middle,
              c, b + d + middle, d]         # b + d once more: kornia's slip
    return torch.stack(points, -1).unflatten(-1, (3, 3)) / 3


def doubled(grid: torch.Tensor, share: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """One diamond and one square step: a grid (n, c, k, k) to (n, c, 2 k - 1, 2 k - 1). `share`
    (n, 1, 1, 1) is that of `noise`, which has the new size, in each new point."""
    rest, noise = 1 - share, share * noise
    corners = grid[..., :-1, :-1] + grid[..., :-1, 1:] + grid[..., 1:, :-1] + grid[..., 1:, 1:]
    middles = rest * (corners / 4) + noise[..., 1::2, 1::2]
    part = grid.new_full(grid.shape[-1:], 1 / 4)
    part[0] = part[-1] = 1 / 3      # the rim
    in_rows = part[:, None] * (grid[..., :-1] + grid[..., 1:] + both_sides(middles, -2))
    in_columns = part * (grid[..., :-1, :] + grid[..., 1:, :] + both_sides(middles, -1))
    result = torch.empty_like(noise)
    result[..., ::2, ::2] = grid
    result[..., 1::2, 1::2] = middles
    result[..., ::2, 1::2] = rest * in_rows + noise[..., ::2, 1::2]
    result[..., 1::2, ::2] = rest * in_columns + noise[..., 1::2, ::2]
    return result


def both_sides(middles: torch.Tensor, axis: int) -> torch.Tensor:
    """The sum of those before and after each line of the grid; at the rim the one counts twice."""
    last = middles.shape[axis] - 1
    padded = torch.cat([middles.narrow(axis, 0, 1), middles, middles.narrow(axis, last, 1)], axis)
    return padded.narrow(axis, 0, last + 2) + padded.narrow(axis, 1, last + 2)
