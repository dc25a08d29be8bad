"""What the benches work on: random images, and runs that are never finished."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from core import imageset
from core.device import Device
from core.imageset import ImageSet
from core.job import Job
from core.run import Run


def random_batch(batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, 32, 32) in [0, 1], channels-last in memory, and labels."""
    x = torch.rand(batch, 32, 32, 3, device=device).permute(0, 3, 1, 2)
    return x, torch.arange(batch, device=device) % 10


def random_set(rows: int) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 32, 32, 3), np.uint8)
    labels = np.arange(rows, dtype=np.int64) % 10
    return imageset.from_arrays(pixels, labels, name="random", root={}, test=None,
                                classes=[str(i) for i in range(10)])


@contextlib.contextmanager
def scratch_run(device: Device, method: str = "bench", seed: int = 0) -> Iterator[Run]:
    """A run in a temporary folder that is never finished."""
    job = Job("bench", "bench", method, 1, {}, seed, {})
    with (tempfile.TemporaryDirectory(prefix="bench-") as folder,
          Run(job, out=Path(folder, "run"), device=device.as_settings()) as run):
        yield run
