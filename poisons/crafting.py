"""What the optimised attacks share beside the engine: rows on the device, sweeps over the set, and
random transforms that gradients pass through."""

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
    with `fill` (3, 1, 1) from outside, then mirrored. Two matrix products an image, so that its
    gradient is deterministic on every device."""
    _, _, height, width = images.shape
    rows = interpolation(height, shifts[:, 1], torch.zeros_like(mirrored))
    columns = interpolation(width, shifts[:, 0], mirrored)
    moved = rows[:, None] @ (images - fill) @ columns[:, None].mT + fill
    return moved.contiguous(memory_format=torch.channels_last)


def interpolation(size: int, shifts: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """(B, size, size): weights of each source position for each output position."""
    source = torch.arange(size, device=shifts.device)
    output = torch.where(mirrored[:, None], size - 1 - source, source) + shifts[:, None]
    return (1 - (output[:, :, None] - source).abs()).clamp_(min=0)
