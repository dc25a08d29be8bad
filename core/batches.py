"""Augmented minibatches of a whole set, shuffled unless told otherwise: indices and batched tensor
ops, no workers.

The set stays uint8: on the device if it fits there, else in memory or in its memory map. What is
larger than STREAMED is read by a thread, some batches ahead, while the step before computes. What
is drawn depends on the seed and on epoch or step alone, so an epoch can start in its middle; where
the set lies changes nothing.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from core import gathered
from core.device import Device
from core.errors import UserError
from core.imageset import ImageSet, to_floats
from core.run import Run
from core.views import Views, fresh

DEVICE_BYTES = 32 << 30     # larger sets, and those above half of what the card has free, stay in
                            # the memory map and are sent batch by batch
STREAMED = 1 << 28          # bytes: larger sets, if not on the device, are read by a thread
AHEAD = 2                   # batches that it has ready
WINDOW = 16                 # blocks whose rows are mixed with each other


@dataclass(frozen=True)
class Augmentation:
    """Random crop after zero padding, and horizontal flip: the field's standard for CIFAR. Or, in
    their place, views: its standard for images of 224 pixels."""

    crop_padding: int = 0
    flip: bool = False
    views: Views | None = None


def steps_an_epoch(rows: int, batch_size: int, drop_last: bool) -> int:
    """How many minibatches so many rows give: a last one of a single image never counts."""
    whole, rest = divmod(rows, batch_size)
    return whole + (rest > 1 and not drop_last)


class Batches:
    """Minibatches (images float32 (B, 3, H, W) in [0, 1], channels-last; labels int64 (B,)).

    Every epoch is a new permutation, or the index order without `shuffle`; with `shuffle_block`
    one of blocks (`order_of_blocks`). A last batch of one image is dropped even without
    `drop_last`: batch normalisation has no statistics for it.
    `before_crop(images, step)` gives what is cropped and mirrored in place of the stored pixels,
    uint8 (B, H, W, 3), or floats in grey levels; `step` counts on over the epochs. Without
    `resident` the set is not put on the device though it fits. Raises UserError if no full batch
    fits.
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
        shuffle_block: int = 0,
        drop_last: bool = True,
        last_step: int | None = None,
        before_crop: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
        resident: bool = True,
    ) -> None:
        self.device: Device = run.device
        self.before_crop = before_crop
        self.run, self.name = run, name
        self.batch_size, self.augmentation = batch_size, augmentation
        self.shuffle, self.shuffle_block = shuffle, shuffle_block
        self.rows, self.last_step = len(data), last_step
        self.length = steps_an_epoch(self.rows, batch_size, drop_last)
        if self.length == 0:
            raise too_few(self.rows, batch_size, run)
        self.images = data.images
        self.labels = torch.from_numpy(np.array(data.labels)).to(self.device.torch)
        if resident and self.device.kind == "cuda" and self.images.nbytes <= min(
            DEVICE_BYTES, torch.cuda.mem_get_info(self.device.torch)[0] // 2
        ):
            self.images = on_device(data, self.device)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self.length

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The minibatches of one epoch from step `start` on."""
        generator = self.run.stream(f"{self.name}/batches", epoch)
        host_order = self._order(generator)
        order = host_order.to(self.device.torch)
        draws = [draw.to(self.device.torch) for draw in self._draw(generator)]
        stop = self.length
        if self.last_step is not None:
            stop = min(stop, self.last_step - epoch * self.length)
        parts = [slice(step * self.batch_size, (step + 1) * self.batch_size)
                 for step in range(start, stop)]
        stored = self._stored(order, host_order, parts)
        for step, part, images in zip(range(start, stop), parts, stored, strict=True):
            rows = order[part]
            if self.before_crop is not None:
                images = self.before_crop(images, epoch * self.length + step)
            images = to_floats(augment(images, *(draw[rows] for draw in draws),
                                       padding=self.augmentation.crop_padding))
            if self.augmentation.views is not None:
                images = fresh(images, self.augmentation.views, self.run.stream(
                    f"{self.name}/views", epoch * self.length + step))
            yield images, self.labels[rows]

    def _order(self, generator: torch.Generator) -> torch.Tensor:
        """The epoch's order of the rows, int64 (N,)."""
        if not self.shuffle:
            return torch.arange(self.rows)
        if self.shuffle_block:
            return order_of_blocks(self.rows, self.shuffle_block, generator)
        return torch.randperm(self.rows, generator=generator)

    def _stored(self, order: torch.Tensor, host_order: torch.Tensor, parts: list[slice]
                ) -> Iterator[torch.Tensor]:
        """The stored images of each part of the order, uint8 (B, H, W, 3), on the device."""
        if isinstance(self.images, torch.Tensor):       # there: no step waits for its row numbers
            return (self.images[order[part]] for part in parts)
        rows = (host_order[part].numpy() for part in parts)
        if self.images.nbytes <= STREAMED:
            return (torch.from_numpy(self.images[one]).to(self.device.torch) for one in rows)
        return ahead(Stream(self.images, self.device).read, rows)

    def _draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Offsets (N, 2) and mirrored (N,) for every row of an epoch, or nothing to do."""
        padding = self.augmentation.crop_padding
        if not padding and not self.augmentation.flip:
            return ()
        offsets = torch.randint(0, 2 * padding + 1, (self.rows, 2), generator=generator)
        mirrored = torch.rand(self.rows, generator=generator) < 0.5
        return offsets, mirrored & self.augmentation.flip


def too_few(rows: int, batch_size: int, run: Run) -> UserError:
    """What to raise for a set without a full batch. The batches of --smoke are its own: no key
    helps."""
    if rows < 2:
        return UserError("the set has one image, and training needs two")
    if run.job.settings.get("smoke"):
        return UserError(f"the set has {rows} rows, and --smoke takes batches of {batch_size}: "
                         "leave data= out, for embedded digits, or leave --smoke out and lower "
                         "batch_size")
    return UserError(f"the set has {rows} rows, too few for a batch of {batch_size}: lower "
                     "batch_size")


def order_of_blocks(rows: int, block: int, generator: torch.Generator) -> torch.Tensor:
    """Row numbers in blocks of `block` that follow each other in the file: the blocks in random
    order, the rows of each WINDOW of them mixed. For disks that are slow at single rows; a set that
    is ordered by class gives minibatches of few classes."""
    numbers = torch.arange(rows).split(block)
    mixed = [numbers[i] for i in torch.randperm(len(numbers), generator=generator).tolist()]
    windows = (torch.cat(mixed[i : i + WINDOW]) for i in range(0, len(mixed), WINDOW))
    return torch.cat([window[torch.randperm(len(window), generator=generator)]
                      for window in windows])


def on_device(data: ImageSet, device: Device) -> torch.Tensor:
    """All images, uint8 (N, H, W, 3), copied slice by slice."""
    images = torch.empty(data.images.shape, dtype=torch.uint8, device=device.torch)
    for rows in data.slices():
        images[rows] = torch.from_numpy(np.array(data.images[rows])).to(device.torch)
    return images


def ahead(read: Callable, items: Iterable) -> Iterator:
    """read(item) for each item, in order, by a thread that is AHEAD of who takes them."""
    reader, waiting = ThreadPoolExecutor(1, "reader"), deque()
    try:
        for item in items:
            waiting.append(reader.submit(read, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()()
        while waiting:
            yield waiting.popleft().result()()
    finally:
        reader.shutdown(cancel_futures=True)


class Stream:
    """Rows of a large array on their way to the device. On CUDA through pinned memory and by a
    stream of their own, so that the copy too goes on while the step computes."""

    def __init__(self, images: np.ndarray, device: Device) -> None:
        self.images, self.device = images, device
        self.copies = torch.cuda.Stream(device.torch) if device.kind == "cuda" else None

    def read(self, rows: np.ndarray) -> Callable[[], torch.Tensor]:
        """Read these rows and begin to copy them; the function that is returned waits for that."""
        gathered.announce(self.images, rows)
        images = torch.from_numpy(self.images[rows])
        if self.copies is None:
            return lambda: images
        with torch.cuda.stream(self.copies):
            copied = images.pin_memory().to(self.device.torch, non_blocking=True)
            done = self.copies.record_event()
        return functools.partial(self._take, copied, done)

    def _take(self, copied: torch.Tensor, done: torch.cuda.Event) -> torch.Tensor:
        now = torch.cuda.current_stream(self.device.torch)
        now.wait_event(done)
        copied.record_stream(now)       # its memory is another's only after the step that reads it
        return copied


def augment(
    images: torch.Tensor,
    offsets: torch.Tensor | None = None,
    mirrored: torch.Tensor | None = None,
    *,
    padding: int = 0,
) -> torch.Tensor:
    """Crop (B, H, W, 3) of any dtype at `offsets` (B, 2) of its zero-padded frame, then mirror.

    With padding one gather: output (i, j) reads padded (i + dy, j + dx), columns counted from the
    right where `mirrored`.
    """
    if offsets is None:
        return images
    if padding == 0:        # a third of the gather's time, which shows at 224x224
        return torch.where(mirrored[:, None, None, None], images.flip(2), images)
    batch, height, width, _ = images.shape
    rows = torch.arange(height, device=images.device) + offsets[:, :1]               # (B, H)
    columns = torch.arange(width, device=images.device).expand(batch, width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + offsets[:, 1:]
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    stride = width + 2 * padding
    base = torch.arange(batch, device=images.device)[:, None] * (height + 2 * padding)
    flat = ((base + rows) * stride)[:, :, None] + columns[:, None, :]                # (B, H, W)
    return padded.reshape(-1, 3)[flat.view(-1)].view(images.shape)
