"""Augmented minibatches of a whole set, shuffled unless told otherwise: indices and batched tensor
ops, no workers.

The set stays uint8, on the device if it fits there. What is drawn depends on (seed, epoch) alone,
so an epoch can start in its middle.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from core.device import Device
from core.errors import UserError
from core.imageset import ImageSet, to_floats
from core.run import Run

DEVICE_BYTES = 16 << 30     # larger sets, and those above half of what the card has free, stay in
                            # the memory map and are sent batch by batch


@dataclass(frozen=True)
class Augmentation:
    """Random crop after zero padding, and horizontal flip: the field's standard for CIFAR."""

    crop_padding: int = 0
    flip: bool = False


def steps_an_epoch(rows: int, batch_size: int, drop_last: bool) -> int:
    """How many minibatches so many rows give: a last one of a single image never counts."""
    whole, rest = divmod(rows, batch_size)
    return whole + (rest > 1 and not drop_last)


class Batches:
    """Minibatches (images float32 (B, 3, H, W) in [0, 1], channels-last; labels int64 (B,)).

    Every epoch is a new permutation, or the index order without `shuffle`. A last batch of one
    image is dropped even without `drop_last`: batch normalisation has no statistics for it.
    `before_crop(images, step)` gives what is cropped and mirrored in place of the stored pixels,
    uint8 (B, H, W, 3), or floats in grey levels; `step` counts on over the epochs. Raises
    UserError if no full batch fits.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        run: Run,
        name: str,
        *,
        augmentation: Augmentation = Augmentation(),
        shuffle: bool = True,
        drop_last: bool = True,
        last_step: int | None = None,
        before_crop: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    ) -> None:
        self.device: Device = run.device
        self.before_crop = before_crop
        self.run, self.name = run, name
        self.batch_size, self.augmentation, self.shuffle = batch_size, augmentation, shuffle
        self.rows, self.last_step = len(data), last_step
        self.length = steps_an_epoch(self.rows, batch_size, drop_last)
        if self.length == 0:
            raise UserError(f"the set has {self.rows} rows, too few for a batch of {batch_size}: "
                            "lower batch_size")
        self.images = np.asarray(data.images)
        self.labels = torch.from_numpy(np.array(data.labels)).to(self.device.torch)
        if self.device.kind == "cuda" and self.images.nbytes <= min(
            DEVICE_BYTES, torch.cuda.mem_get_info(self.device.torch)[0] // 2
        ):
            self.images = torch.from_numpy(np.array(self.images)).to(self.device.torch)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self.length

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The minibatches of one epoch from step `start` on."""
        generator = self.run.stream(f"{self.name}/batches", epoch)
        host_order = (torch.randperm(self.rows, generator=generator) if self.shuffle
                      else torch.arange(self.rows))
        order = host_order.to(self.device.torch)
        draws = [draw.to(self.device.torch) for draw in self._draw(generator)]
        stop = self.length
        if self.last_step is not None:
            stop = min(stop, self.last_step - epoch * self.length)
        for step in range(start, stop):
            part = slice(step * self.batch_size, (step + 1) * self.batch_size)
            rows = order[part]
            if isinstance(self.images, torch.Tensor):
                images = self.images[rows]
            else:
                images = torch.from_numpy(self.images[host_order[part].numpy()])
                images = images.to(self.device.torch)
            if self.before_crop is not None:
                images = self.before_crop(images, epoch * self.length + step)
            images = augment(images, *(draw[rows] for draw in draws),
                             padding=self.augmentation.crop_padding)
            yield to_floats(images), self.labels[rows]

    def _draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Offsets (N, 2) and mirrored (N,) for every row of an epoch, or nothing to do."""
        padding = self.augmentation.crop_padding
        if not padding and not self.augmentation.flip:
            return ()
        offsets = torch.randint(0, 2 * padding + 1, (self.rows, 2), generator=generator)
        mirrored = torch.rand(self.rows, generator=generator) < 0.5
        return offsets, mirrored & self.augmentation.flip


def augment(
    images: torch.Tensor,
    offsets: torch.Tensor | None = None,
    mirrored: torch.Tensor | None = None,
    *,
    padding: int = 0,
) -> torch.Tensor:
    """Crop (B, H, W, 3) of any dtype at `offsets` (B, 2) of its zero-padded frame, then mirror.

    One gather: output (i, j) reads padded (i + dy, j + dx), columns counted from the right where
    `mirrored`.
    """
    if offsets is None:
        return images
    batch, height, width, _ = images.shape
    rows = torch.arange(height, device=images.device) + offsets[:, :1]               # (B, H)
    columns = torch.arange(width, device=images.device).expand(batch, width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + offsets[:, 1:]
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    stride = width + 2 * padding
    base = torch.arange(batch, device=images.device)[:, None] * (height + 2 * padding)
    flat = ((base + rows) * stride)[:, :, None] + columns[:, None, :]                # (B, H, W)
    return padded.reshape(-1, 3)[flat.view(-1)].view(images.shape)
