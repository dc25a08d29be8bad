"""What a process started by torchrun needs to know; in a process of its own there is nothing to do.

Rank 0 leads: it locks, logs, says and finishes. What all share travels over gloo, gradients on a
GPU over NCCL.
"""

import atexit
import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from core.errors import UserError
from core.names import printable

# Waiting for a slow process is no failure: over gloo a closed socket tells that one died. NCCL has
# none: there another's compiling or saving may take ten minutes, and no longer.
TIMEOUT = timedelta(days=7)
GPU_TIMEOUT = timedelta(minutes=10)
LOST = ("closed by peer", "reset by peer", "timed out", "broken pipe")      # what gloo says then


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
        """Wait for the others. Raises UserError, as all of these, if one of them ended."""
        if self.size > 1:
            with peers():
                torch.distributed.all_reduce(torch.zeros(1))        # on the CPU: gloo

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """What rank 0 may have to download, the others find on the disk, or fail at as it did."""
        if not self.leads:
            self.barrier()
        try:
            yield
        except UserError:           # who called may go on without it
            if self.leads:
                self.barrier()
            raise
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
            torch.distributed.all_gather(parts, part.contiguous(), group=group_of(part))
        return torch.cat(parts)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of every process's values."""
        values = values.detach().clone()
        if self.size > 1:
            with peers():
                torch.distributed.all_reduce(values, group=group_of(values))
        return values

    def share(self, model: nn.Module) -> None:
        """Give every process rank 0's weights: equal work may round differently on two devices."""
        if self.size > 1:
            with peers():
                for tensor in model.state_dict().values():
                    torch.distributed.broadcast(tensor, 0, group=group_of(tensor))

    def average(self, model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
        """Make the gradients of equal shares of a batch those of the batch; returns its loss."""
        if self.size == 1:
            return loss.detach()
        parts = [p.grad for p in model.parameters() if p.grad is not None]
        parts.append(loss.detach().to(parts[0]).reshape(1))
        flat = torch.cat([part.flatten() for part in parts])
        with peers():
            torch.distributed.all_reduce(flat, group=group_of(flat))
        means = flat.div_(self.size).split([part.numel() for part in parts])
        torch._foreach_copy_(parts, [mean.view_as(part)
                                     for mean, part in zip(means, parts, strict=True)])
        return parts[-1].squeeze(0)


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Around what all processes do together."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).strip()
        if any(words in text.lower() for words in LOST):
            raise UserError("another process of this run ended, and its own message says why; the "
                           f"same line resumes ({text.splitlines()[0][:80]})") from None
        raise UserError("the processes of this run do not reach each other; the same line resumes "
                       f"({'; '.join(text.splitlines()[-2:])[:300]})") from None


def started() -> bool:
    """Whether torchrun started several processes."""
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1
    return several and {"RANK", "MASTER_ADDR"} <= os.environ.keys()


def rank() -> int:
    """Which of them this is, also where they do not reach each other."""
    return int(os.environ["RANK"]) if started() else 0


@functools.cache
def world() -> World:
    """Joins the others at the first call. Raises UserError if they cannot be reached."""
    if not started():
        return World()
    try:
        torch.distributed.init_process_group("gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise UserError("the processes that torchrun started do not find each other "
                        f"({str(error).splitlines()[0][:200]})") from None
    atexit.register(torch.distributed.destroy_process_group)
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())


def say(text: str) -> None:
    """A line on stderr, above a progress bar if there is one; from rank 0 alone."""
    from tqdm import tqdm

    if world().leads:
        tqdm.write(printable(text), file=sys.stderr)


def note(text: str) -> None:
    """A line that a person should not overlook."""
    say(f"note: {text}")


def group_of(tensor: torch.Tensor) -> torch.distributed.ProcessGroup | None:
    """Who carries a tensor: NCCL between GPUs, gloo (the default group) between CPUs."""
    return between_gpus(tensor.device) if tensor.is_cuda else None


@functools.cache
def between_gpus(device: torch.device) -> torch.distributed.ProcessGroup:
    """The group of NCCL, made when the first tensor on a GPU travels: by then `device.resolve` has
    given each process its own."""
    return torch.distributed.new_group(backend="nccl", timeout=GPU_TIMEOUT)
