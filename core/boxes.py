"""Boxes of pixels, one an image: cutout's hole, cutmix's cut."""

import torch


def inside(corners: torch.Tensor, sides: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """bool (n, 1, *shape): the pixels of boxes given by upper left corner and sides (n, 2; rows,
    columns). What reaches over the rim is cut off."""
    at = (torch.arange(size, device=corners.device) for size in shape)
    rows, columns = ((pixels >= start) & (pixels < start + side) for pixels, start, side in zip(
        at, corners.split(1, 1), sides.split(1, 1), strict=True))
    return rows[:, None, :, None] & columns[:, None, None, :]
