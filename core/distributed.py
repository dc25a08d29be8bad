"""What a process started by torchrun needs to know; in a process of its own there is nothing to do.

Rank 0 leads: it locks, logs, says and finishes. What all share travels over gloo, gradients on a
GPU over NCCL.
"""

import atexit
import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from core.errors import PeerLost

# Waiting for a slow process is no failure: one that died is noticed by its closed socket.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class World:
    """How many processes work on this run, and which one this is."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's share of a batch that `size` divides."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def barrier(self) -> None:
        """Wait for the others. Raises PeerLost, as all of these, if one of them ended."""
        if self.size > 1:
            with peers():
                torch.distributed.all_reduce(torch.zeros(1))        # on the CPU: gloo

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """What rank 0 may have to download, the others find on the disk."""
        if not self.leads:
            self.barrier()
        yield
        if self.leads:
            self.barrier()

    def from_leader(self, value: Any) -> Any:
        """What rank 0 has."""
        box = [value]
        if self.size > 1:
            with peers():
                torch.distributed.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Every process's equal share of a batch, in order."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part.contiguous()) for _ in range(self.size)]
        with peers():
            torch.distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def share(self, model: nn.Module) -> None:
        """Give every process rank 0's weights: equal work may round differently on two devices."""
        if self.size > 1:
            with peers():
                for tensor in model.state_dict().values():
                    torch.distributed.broadcast(tensor, 0)

    def average(self, model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        """Make the gradients of equal shares of a batch those of the batch; returns its loss."""
        if self.size == 1:
            return loss.detach()
        parts = [p.grad for p in model.parameters() if p.grad is not None]
        parts.append(loss.detach().to(parts[0]).reshape(1))
        flat = torch.cat([part.flatten() for part in parts])
        with peers():
            torch.distributed.all_reduce(flat)
        means = flat.div_(self.size).split([part.numel() for part in parts])
        for part, mean in zip(parts, means, strict=True):
            part.copy_(mean.view_as(part))
        return parts[-1].squeeze(0)


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Around what all processes do together."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLost("another process of this run ended, and its own message says why; the same "
                       f"line resumes ({str(error).splitlines()[0][:80]})") from None


def started() -> bool:
    """Whether torchrun started several processes."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and {"RANK", "MASTER_ADDR"} <= os.environ.keys()


def local_rank() -> int:
    """Which of this machine's GPUs is ours."""
    return int(os.environ.get("LOCAL_RANK", 0)) if started() else 0


@functools.cache
def world() -> World:
    """Joins the others at the first call."""
    if not started():
        return World()
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(local_rank())
    torch.distributed.init_process_group(backend, timeout=TIMEOUT)
    atexit.register(torch.distributed.destroy_process_group)
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())
