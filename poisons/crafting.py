"""What the optimised attacks share beside the engine: rows on the device, sweeps over the set, and
random transforms that gradients pass through."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from core.batches import augment
from core.files import RowFile
from core.imageset import SLICE_ROWS, ImageSet, Rounding
from core.run import Run

# Rows of 32x32 a PGD pass, and the fewest of larger images. They change speed, and results by
# rounding alone.
CRAFT_BATCH = {"cpu": (128, 8), "cuda": (SLICE_ROWS, 128)}
TRIES = 10              # of RandomResizedCrop, for a box that fits

# (images (B, 3, H, W) in [0, 1], labels, their rows) -> noise like the images
Craft = Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor]


def craft_rows(shape: tuple[int, int], kind: str) -> int:
    """Rows of images of this (height, width) that fit one PGD pass of a 'cpu' or 'cuda'."""
    rows, fewest = CRAFT_BATCH[kind]
    return min(rows, max(fewest, rows * 32 * 32 // (shape[0] * shape[1])))


def batches(start: int, stop: int, clean: ImageSet, run: Run) -> Iterator[slice]:
    """Slices of rows that fit one PGD pass."""
    size = craft_rows(clean.image_shape, run.device.kind)
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def take(clean: ImageSet, rows: slice | np.ndarray, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 (B, 3, H, W) in [0, 1], channels-last, and labels, on the run's device."""
    images = torch.from_numpy(np.array(clean.images[rows])).to(run.device.torch)
    return images.permute(0, 3, 1, 2).float().div_(255), clean.labels_at(rows).to(run.device.torch)


def add_noise(clean: ImageSet, craft: Craft, run: Run, *, rounding: Rounding = "round",
              file: str = "images.npy", beside: Sequence[RowFile] = (),
              slice_rows: int | None = None) -> ImageSet:
    """`clean` plus what `craft` makes of every image, batch by batch (of `slice_rows`); resumable.
    """
    slice_rows = slice_rows or craft_rows(clean.image_shape, run.device.kind)

    def rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        x = images.permute(0, 3, 1, 2)
        labels = clean.labels_at(rows).to(x.device)
        return (x + craft(x, labels, rows)).permute(0, 2, 3, 1)

    return clean.map_rows(rows, run, rounding=rounding, device=run.device.torch, file=file,
                          beside=beside, slice_rows=slice_rows, exact=False)


@torch.no_grad()
def seen_as(poisoned: ImageSet, logits: Callable, labels: torch.Tensor, run: Run) -> float:
    """Share of the images that a surrogate takes for `labels` (N,)."""
    hits = 0
    for rows in batches(0, len(poisoned), poisoned, run):
        images, _ = take(poisoned, rows, run)
        hits += int((logits(images).argmax(1).cpu() == labels[rows]).sum())
    return hits / len(poisoned)


def tell(what: str, share: float, run: Run) -> None:
    """Log and print what the surrogate makes of the poisoned images."""
    run.note("surrogate", what=what, share=share)
    run.say(f"on {share:.1%} of the poisoned images the surrogate {what}")


# --- transforms ------------------------------------------------------------------------------


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
    rows = within(boxes[:, 0::2], height)
    columns = within(boxes[:, 1::2], width)
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    return resampled(images, rows, columns)


def within(spans: torch.Tensor, size: int) -> torch.Tensor:
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
    moved = weights(rows, height)[:, None] @ images @ weights(columns, width)[:, None].mT
    return moved.contiguous(memory_format=torch.channels_last)


def weights(positions: torch.Tensor, size: int) -> torch.Tensor:
    """(B, n, size): the share of each source pixel in each of the positions (B, n), bilinear."""
    source = torch.arange(size, device=positions.device)
    return (1 - (positions[:, :, None] - source).abs()).clamp_(min=0)


def random_boxes(drawn: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """RandomResizedCrop's boxes (B, 4: top, left, height, width) by `drawn` (B, 2 * TRIES + 2) in
    [0, 1): 8 to 100 % of the area, sides 3:4 to 4:3; the first try that fits, else the whole image
    (torchvision's constants)."""
    areas, ratios = drawn[:, :TRIES], drawn[:, TRIES : 2 * TRIES]
    areas = height * width * (0.08 + 0.92 * areas)
    ratios = torch.exp((2 * ratios - 1) * math.log(4 / 3))
    sides = torch.stack([(areas / ratios).sqrt(), (areas * ratios).sqrt()], 2).round_()
    whole = sides.new_tensor([height, width])
    fits = (sides <= whole).all(2)
    first = sides[torch.arange(len(drawn), device=drawn.device), fits.byte().argmax(1)]
    size = torch.where(fits.any(1, keepdim=True), first, whole)
    return torch.cat([(drawn[:, 2 * TRIES :] * (whole - size + 1)).floor_(), size], 1)
