"""Batch norm whose statistics are of the whole batch, where several processes share it.

torch's own (SyncBatchNorm) computes on GPUs alone; this one also on CPUs, and rounds otherwise.
"""

import torch
from torch import nn

from core.distributed import World


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context, values: torch.Tensor, world: World) -> torch.Tensor:
        context.world = world
        return world.total(values)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return context.world.total(gradient), None


def synchronise(model: nn.Module, world: World) -> None:
    """Let all batch norms of `model` take their statistics from the equal shares of all processes,
    in training mode. With one process there is nothing to do."""
    if world.size == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.forward = _Synchronised(module, world)


class _Synchronised:
    """The forward of one batch norm."""

    def __init__(self, norm: nn.Module, world: World) -> None:
        self.norm, self.world = norm, world

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        norm, world = self.norm, self.world
        if not norm.training:
            return type(norm).forward(norm, x)
        with torch.autocast(x.device.type, enabled=False):
            axes, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
            full = x.float()
            mean = _Sum.apply(full.mean(axes), world) / world.size
            centred = full - mean.view(shape)
            variance = _Sum.apply(centred.square().mean(axes), world) / world.size
            self.remember(mean, variance, x.numel() // x.shape[1] * world.size)
            scale = norm.weight * (variance + norm.eps).rsqrt()
            return (centred * scale.view(shape) + norm.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def remember(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Move the running statistics, as torch does: of the unbiased variance."""
        norm = self.norm
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / max(count - 1, 1)), norm.momentum)
