"""What a process started by torchrun needs to know; in a process of its own there is nothing to do.

Rank 0 leads: it locks, logs, says and finishes. What all share travels over gloo, gradients on a
GPU over NCCL.
"""

import functools
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


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
        """Wait for the others."""
        if self.size > 1:
            torch.distributed.all_reduce(torch.zeros(1))        # on the CPU: gloo

    def from_leader(self, value: Any) -> Any:
        """What rank 0 has."""
        box = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def average_gradients(self, model: nn.Module) -> None:
        """The mean over the processes, of equal shares of a batch, is the batch's."""
        if self.size > 1:
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            parts = flat.div_(self.size).split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


def started() -> bool:
    """Whether torchrun started several processes."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def local_rank() -> int:
    """Which of this machine's GPUs is ours."""
    return int(os.environ.get("LOCAL_RANK", 0)) if started() else 0


@functools.cache
def world() -> World:
    """Joins the others at the first call."""
    if not started():
        return World()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend)
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())
