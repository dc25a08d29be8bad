"""Random transforms that gradients pass through: TAP's shift and flip, REM's crops and flip, AUE's
and AAP's strong augmentation.

Each takes what was drawn, one draw an image, and moves a whole batch at once. Sources: at each.
"""

import torch

from core.batches import augment
from core.views import Views


def crop_and_flip(images: torch.Tensor, offsets: torch.Tensor, mirrored: torch.Tensor,
                  padding: int) -> torch.Tensor:
    """Each image (B, 3, H, W) cropped at its own `offsets` (B, 2) of its zero-padded frame, then
    mirrored where `mirrored` (B,): one gather, channels-last. Differentiable."""
    rows = augment(images.permute(0, 2, 3, 1), offsets, mirrored, padding=padding)
    return rows.permute(0, 3, 1, 2)


def shift_and_flip(images: torch.Tensor, shifts: torch.Tensor, mirrored: torch.Tensor,
                   fill: torch.Tensor) -> torch.Tensor:
    """Each image (B, 3, H, W) moved by its own `shifts` (B, 2: columns, rows; in pixels), bilinear,
    with `fill` (3, 1, 1) from outside, then mirrored."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=shifts.device) + shifts[:, 1:]
    columns = torch.arange(width, device=shifts.device).expand(len(images), width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + shifts[:, :1]
    return resampled(images - fill, rows, columns) + fill


def resized_crop_and_flip(images: torch.Tensor, boxes: torch.Tensor, mirrored: torch.Tensor
                          ) -> torch.Tensor:
    """Each image (B, 3, H, W) cropped to its own box (B, 4: top, left, height, width), resized to
    (H, W), bilinear without antialiasing, then mirrored."""
    height, width = images.shape[2:]
    rows = places_in(boxes[:, 0::2], height)
    columns = places_in(boxes[:, 1::2], width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    return resampled(images, rows, columns)


def places_in(spans: torch.Tensor, size: int) -> torch.Tensor:
    """(B, size): where `size` outputs lie in each image's span (B, 2: start, length); pixels are
    points at their centres."""
    start, length = spans[:, :1], spans[:, 1:]
    centres = (torch.arange(size, device=spans.device) + 0.5) * (length / size) - 0.5
    return start + torch.minimum(centres.clamp(min=0), length - 1)


def resampled(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) read between pixels at the positions rows (B, h) x columns (B, w), 0
    outside. Two matrix products an image, so that its gradient is deterministic on every device (in
    TF32, where a GPU computes those so: up to about 0.2 grey levels)."""
    height, width = images.shape[2:]
    moved = bilinear(rows, height)[:, None] @ images @ bilinear(columns, width)[:, None].mT
    return moved.contiguous(memory_format=torch.channels_last)


def bilinear(positions: torch.Tensor, size: int) -> torch.Tensor:
    """(B, n, size): the share of each source pixel in each of the positions (B, n), bilinear."""
    source = torch.arange(size, device=positions.device)
    return (1 - (positions[:, :, None] - source).abs()).clamp_(min=0)


def contrastive_views(strength: float, flip: bool) -> Views:
    """SimCLR's augmentation in the strength s of AUE and AAP (Wang, Zhu and Gao, NeurIPS 2024; code
    EhanW/AUE-AAP): at 1 crops of a tenth of the area and more, and colours as in CP's views."""
    return Views(scale=(max(1 - 0.9 * strength, 0.05), 1.0), flip=0.5 if flip else 0.0,
                 jitter=min(0.99, 0.8 * strength), brightness=0.4 * strength,
                 contrast=0.4 * strength, saturation=0.4 * strength, hue=0.1 * strength,
                 grey=0.2 * strength)
