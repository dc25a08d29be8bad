"""Boxes of pixels, one an image: cutout's hole, cutmix's cut."""

import numpy as np
import torch

from core.device import to_device


def inside(corners: np.ndarray, sides: np.ndarray, shape: tuple[int, int],
           device: torch.device) -> torch.Tensor:
    """bool (n, 1, *shape): the pixels of boxes given by upper left corner and sides (n, 2; rows,
    columns). What reaches over the rim is cut off."""
    rows, columns = ((np.arange(size) >= start) & (np.arange(size) < start + side)
                     for size, start, side in zip(shape, np.hsplit(corners, 2),
                                                  np.hsplit(sides, 2), strict=True))
    return to_device(rows[:, None, :, None] & columns[:, None, None, :], device)
