"""Named random streams: each (seed, name, step) has a generator of its own.

Adding a stream shifts no other, and a resumed run needs no saved generator. Two habits draw
per-image noise that depends on neither resume nor job count:

* by block, for sweeps in index order: `step` is the number of a block of BLOCK rows;
* by step or epoch, for shuffled minibatches: drawn for the global batch, then sliced.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

BLOCK = 256     # rows per block of noise; part of every swept result: changing it changes bytes


def by_block(rows: slice, draw: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """What `draw(block)` gives for the BLOCK rows of each block, cut to `rows`: (n, ...)."""
    first, last = rows.start // BLOCK, -(-rows.stop // BLOCK)
    drawn = torch.cat([draw(block) for block in range(first, last)])
    return drawn[rows.start - first * BLOCK : rows.stop - first * BLOCK]


def derive(seed: int, name: str, step: int = 0) -> int:
    """A 63-bit seed from (seed, name, step). torch's CPU generator keeps its low 32 bits."""
    digest = hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(
    seed: int, name: str, step: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """torch's generator of (seed, name, step). Other devices draw other numbers."""
    return torch.Generator(device).manual_seed(derive(seed, name, step))


def rng(seed: int, name: str, step: int = 0) -> np.random.Generator:
    """NumPy's generator of (seed, name, step)."""
    return np.random.Generator(np.random.SFC64(derive(seed, name, step)))


@contextlib.contextmanager
def initialisation(seed: int, name: str) -> Iterator[None]:
    """Seed torch's global CPU generator inside the block and restore it after.

    For torch's default weight initialisation, which takes no generator. Build modules on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, name))
        yield
