"""A training step as one CUDA graph: recorded once, then started by a single call of the driver.

A step of a ResNet-18 starts some 300 kernels, and starting them takes the host four times as long
as computing them takes an H100 (docs/evidence/gpu.md).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from core.device import Device

WARM_UP = 3     # steps before the recording: cuDNN chooses, torch compiles, optimisers build state

# (tensors) -> a dict of detached tensors. What it draws from torch's default generator may differ
# from call to call; everything else that changes must be a tensor, and is changed in place.
Step = Callable[..., dict[str, torch.Tensor]]


class Recorded:
    """`step`, replayed as a CUDA graph where the run records them; elsewhere called as it is.

    The first calls are real steps; another is recorded. Inputs of another shape (a short last
    batch) are computed without the graph. What is returned is overwritten by the next call.
    """

    def __init__(self, step: Step, device: Device) -> None:
        self.step, self.device = step, device
        self.shapes: list | None = None
        self.alike = 0                      # calls in a row of these shapes
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: list[torch.Tensor] = []
        self.outputs: dict[str, torch.Tensor] = {}
        self.stream = recording_stream(device.torch) if device.graphs else None

    def __call__(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Take a step."""
        if self.stream is None:
            return self.step(*inputs)
        shapes = [(x.shape, x.stride(), x.dtype) for x in inputs]
        if self.graph is None:
            self.alike = self.alike + 1 if shapes == self.shapes else 1
            self.shapes = shapes
            if self.alike <= WARM_UP:
                return self._aside(inputs)
            self._record(inputs)
        elif shapes != self.shapes:
            return self._aside(inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.outputs

    def _aside(self, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """On the stream of the recording: autograd remembers where a weight was first used."""
        current = torch.cuda.current_stream(self.device.torch)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = self.step(*inputs)
        current.wait_stream(self.stream)
        return outputs

    def _record(self, inputs: tuple[torch.Tensor, ...]) -> None:
        """Nothing is computed here, and no weight changes."""
        self.inputs = [x.clone() for x in inputs]       # as they lie in memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.outputs = self.step(*self.inputs)
        self.graph = graph


@functools.cache
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One a process: a graph cannot be recorded on the default stream."""
    return torch.cuda.Stream(device)


def sgd(model: nn.Module, device: Device, **options: Any) -> torch.optim.SGD:
    """torch's SGD over all parameters; on CUDA in one kernel."""
    return torch.optim.SGD(model.parameters(), **options, **_fused(device))


def adam(model: nn.Module, device: Device, **options: Any) -> torch.optim.Adam:
    """torch's Adam over all parameters; on CUDA in one kernel that a graph can hold."""
    capturable = {"capturable": True} if device.kind == "cuda" else {}
    return torch.optim.Adam(model.parameters(), **options, **_fused(device), **capturable)


def _fused(device: Device) -> dict[str, bool]:
    return {"fused": True} if device.kind == "cuda" else {}


def set_rate(optimizer: torch.optim.Optimizer, rate: float, device: Device) -> None:
    """Of the next step. On CUDA it lives in a tensor, where a graph reads it at every replay."""
    for group in optimizer.param_groups:
        if device.kind != "cuda":
            group["lr"] = rate
        elif isinstance(group["lr"], torch.Tensor) and group["lr"].device.type == "cuda":
            group["lr"].fill_(rate)
        else:                               # new, or loaded from a file
            group["lr"] = torch.tensor(rate, dtype=torch.float32, device=device.torch)
