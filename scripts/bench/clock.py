"""The clock of the benches: ours and a plain loop in turn, and what the machine could do."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from core.errors import UserError
from core.run import Run
from scripts.bench.scratch import random_batch


@dataclass
class Row:
    """One line of the table. Rates are images a second."""

    name: str
    rate: float
    ratio: float | None = None          # to the plain loop, or as `note` says
    share: float | None = None          # of the matrix-product peak
    memory_gb: float | None = None
    note: str = ""


class Bench:
    """Settings of one call, and the clock."""

    def __init__(self, run: Run, rounds: int, smoke: bool) -> None:
        self.run, self.rounds, self.smoke = run, rounds, smoke
        self.device = run.device
        self.cuda = self.device.kind == "cuda"
        self.steps = 20 if self.cuda and not smoke else 1       # between two waits for the device
        self.peak = self.matrix_peak()

    def seconds(self, *functions: Callable[[], object], steps: int = 1) -> list[float]:
        """Median seconds of a call of each function: `steps` calls, the functions in turn, for
        `rounds` rounds after a warm-up."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device.torch)
        times: list[list[float]] = [[] for _ in functions]
        for round_ in range(self.rounds + 1):
            for function, found in zip(functions, times, strict=True):
                self.wait()
                started = time.perf_counter()
                repeat(function, steps)
                self.wait()
                if round_:
                    found.append((time.perf_counter() - started) / steps)
        return [statistics.median(found) for found in times]

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device.torch)

    def matrix_peak(self) -> float:
        """FLOP/s of the fastest square matrix product here, in the precision of the run."""
        dtype = torch.bfloat16 if self.device.precision == "bf16" else torch.float32
        best, sizes = 0.0, (1024, 2048, 4096, 8192, 16384) if self.cuda else (1024, 2048, 4096)
        for size in sizes[:1] if self.smoke else sizes:
            a, b = (torch.randn(size, size, device=self.device.torch).to(dtype) for _ in "ab")
            torch.mm(a, b)
            for _ in range(5):
                self.wait()
                started = time.perf_counter()
                repeat(lambda a=a, b=b: torch.mm(a, b), self.steps)
                self.wait()
                best = max(best, self.steps * 2 * size**3 / (time.perf_counter() - started))
        return best

    def memory(self) -> float:
        """Peak memory, GB: of the GPU since `seconds` began, or of the process so far."""
        if self.cuda:
            return torch.cuda.max_memory_allocated(self.device.torch) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    def images(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A channels-last batch and its labels."""
        return random_batch(batch, self.device.torch)


def repeat(function: Callable[[], object], steps: int) -> None:
    if isinstance(function, Plain):     # it waits for its device: once, not after every step
        return function.advance(steps)
    for _ in range(steps):
        function()


class Plain:
    """A textbook loop in a process of its own; `advance` lets it take so many steps."""

    def __init__(self, bench: Bench, loop: Callable, *arguments) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve_plain, daemon=True,
            args=(theirs, bench.device.name, bench.device.threads, loop, arguments))
        self.process.start()
        theirs.close()                      # so that its end is the end of the pipe
        self.flop = self.receive()

    def receive(self) -> float | None:
        try:
            return self.pipe.recv()
        except EOFError:
            raise UserError("the plain loop died; it says above why") from None

    def advance(self, steps: int) -> None:
        self.pipe.send(steps)
        self.receive()

    def close(self) -> None:
        self.pipe.send(0)
        self.process.join()


def serve_plain(pipe, device: str, threads: int, loop: Callable, arguments: tuple) -> None:
    torch.set_num_threads(threads)
    step = loop(torch.device(device), *arguments)
    pipe.send(flop(step))
    while steps := pipe.recv():
        repeat(step, steps)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        pipe.send(None)


def flop(function: Callable[[], object]) -> float:
    """Multiply-adds of convolutions and matrix products, times two, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()
