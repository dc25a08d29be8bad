"""What the optimised attacks share beside the engine: rows on the device, sweeps over the set."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from core.device import to_device
from core.errors import UserError
from core.files import RowFile
from core.imageset import SLICE_ROWS, ImageSet, Rounding, to_floats
from core.run import Run
from core.training import count_right

# Rows of 32x32 a PGD pass, and the fewest of larger images. They change speed, and results by
# rounding alone.
CRAFT_BATCH = {"cpu": (128, 8), "cuda": (SLICE_ROWS, 128)}

# (images (B, 3, H, W) in [0, 1], labels, their rows) -> noise like the images
Craft = Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor]


def craft_rows(shape: tuple[int, int], kind: str) -> int:
    """Rows of images of this (height, width) that fit one PGD pass of a 'cpu' or 'cuda'."""
    rows, fewest = CRAFT_BATCH[kind]
    return min(rows, max(fewest, rows * 32 * 32 // (shape[0] * shape[1])))


def slices(start: int, stop: int, clean: ImageSet, run: Run) -> Iterator[slice]:
    """Slices of rows that fit one PGD pass."""
    size = craft_rows(clean.image_shape, run.device.kind)
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def on_device(clean: ImageSet, rows: slice | np.ndarray, run: Run
              ) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 (B, 3, H, W) in [0, 1], channels-last, and labels, on the run's device."""
    images = to_device(np.array(clean.images[rows]), run.device.torch)
    return to_floats(images), to_device(clean.labels_at(rows), run.device.torch)


def say_not_shared(run: Run) -> None:
    """Of an optimisation that every process does whole."""
    if run.world.size > 1:
        run.say(f"{run.job.method}: each of the {run.world.size} processes does all of this work; "
                "one is as fast")


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


def require_classes(clean: ImageSet, why: str = "the loss of its only label is 0, whatever the "
                                                "noise") -> None:
    """Raise UserError for a set of one class."""
    if clean.num_classes < 2:
        raise UserError(f"{clean.meta['name']} has one class: {why}; take a set of two or more")


def targets_of(clean: ImageSet, run: Run, *, targeted: bool) -> torch.Tensor:
    """The labels (N,) whose loss the noise moves: each the class after its own, or its own. Raises
    UserError for a set of one class."""
    if targeted:
        return other_class(clean, 1, run)
    require_classes(clean)
    return clean.labels_at()


def other_class(clean: ImageSet, shift: int, run: Run) -> torch.Tensor:
    """The class (N,) `shift` after each row's own; says for how many rows that has no image. Raises
    UserError for a set of one class."""
    require_classes(clean, "there is no other for the noise to lead to")
    targets = (clean.labels_at() + shift) % clean.num_classes
    empty = ~np.isin(targets, clean.labels)
    if empty.any():
        run.say(f"{empty.mean():.1%} of the images are led to a class that has no image")
    return targets


@torch.no_grad()
def report_seen(what: str, poisoned: ImageSet, logits: Callable, labels: torch.Tensor, run: Run
                ) -> None:
    """Log and print for what share of the images a surrogate says `labels` (N,)."""
    labels = labels.to(run.device.torch)
    batches = ((on_device(poisoned, rows, run)[0], labels[rows])
               for rows in slices(0, len(poisoned), poisoned, run))
    share = count_right(logits, batches) / len(poisoned)
    run.log_once("seen", what=what, share=share)
    run.say(f"on {share:.1%} of the poisoned images the surrogate {what}")
