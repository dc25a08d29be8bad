"""Where and how we compute, decided once per run: device, precision, layout, compile, threads."""

import contextlib
import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from core import distributed
from core.errors import UserError


@dataclass(frozen=True)
class DeviceSettings:
    """Keys that every command takes at the top level of its YAML. None enters a fingerprint."""

    device: str = "auto"                                # auto, cpu, cuda, cuda:1
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile; auto: on CUDA only
    threads: int | None = None                          # CPU threads; null: torch's default
    deterministic: bool = False                         # CUDA: repeatable kernels, slower
    # signed gradient steps; auto: float32, by `precision` in TF32 or not
    craft_precision: Literal["auto", "bf16"] = "auto"


@dataclass(frozen=True)
class Device:
    """The resolved answer. `kind` is 'cpu' or 'cuda'; `name` says which for records."""

    name: str
    precision: str
    compile: bool
    threads: int
    deterministic: bool
    craft_precision: str

    @property
    def torch(self) -> torch.device:
        """As torch names it."""
        return torch.device(self.name)

    @property
    def kind(self) -> str:
        """'cpu' or 'cuda'"""
        return self.torch.type

    def autocast(self) -> contextlib.AbstractContextManager:
        """Convolutions and matrix products in bf16 where asked; losses stay the caller's fp32."""
        if self.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.kind, torch.bfloat16)

    def crafting(self) -> contextlib.AbstractContextManager:
        """The same for the network of signed gradient steps; the steps stay float32."""
        if self.craft_precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.kind, torch.bfloat16)

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Inside, float32 is float32 (no TF32) and a shape always meets the same algorithm,
        whatever the run's precision: two commands can compute the same bytes."""
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True,
                                            allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(precision)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model here, channels-last: NHWC images then need no copy and convolutions are
        faster on both CPUs and tensor cores."""
        return model.to(self.torch, memory_format=torch.channels_last)

    def maybe_compile(self, function):
        """torch.compile for a hot function, if this run compiles; once for each shape it meets."""
        return torch.compile(function, dynamic=False) if self.compile else function

    def describe(self) -> dict:
        """What a record says of the machine."""
        if self.kind == "cuda":
            hardware = torch.cuda.get_device_name(self.torch)
        else:
            hardware = cpu_name()
        return {**dataclasses.asdict(self), "hardware": hardware, "cores": os.cpu_count()}

    def as_settings(self) -> DeviceSettings:
        """Settings that resolve to this device again: a resumed run replays them."""
        return DeviceSettings(self.name, self.precision, str(self.compile).lower(),
                              self.threads, self.deterministic, self.craft_precision)


def resolve(settings: DeviceSettings) -> Device:
    """Decide `auto`s and apply the process-wide switches (threads, TF32, determinism).

    Raises UserError for a device that this machine lacks.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and distributed.started():
        name = f"cuda:{distributed.local_rank()}"       # to each process its own
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: '{name}' is not a device; write auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device: '{name}' is not supported; write auto, cpu or cuda")
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(f"device: '{name}' is not on this machine; write device=auto or device=cpu")

    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    keep_freed_memory()
    if settings.threads is not None:
        if settings.threads < 1:
            raise UserError("threads: must be at least 1")
        torch.set_num_threads(settings.threads)
    precision = settings.precision
    if precision == "auto":
        precision = auto_precision(device)
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = not settings.deterministic
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    compiled = settings.compile == "true" or (settings.compile == "auto" and can_compile(device))
    return Device(name, precision, compiled, torch.get_num_threads(), settings.deterministic,
                  settings.craft_precision)


def kind_of(settings: DeviceSettings) -> str:
    """'cpu' or 'cuda', before anything is resolved."""
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.device.partition(":")[0]


def keep_freed_memory(keep: bool = True) -> None:
    """Tell glibc not to hand large freed blocks back to the kernel.

    By default every large activation is mapped, faulted in page by page and unmapped again, at
    each layer of each step: that made CPU training 1.3-1.6 times slower (docs/evidence/issue-8.md).
    """
    import ctypes

    trim_threshold, mmap_max = -1, -4               # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):               # not glibc
        return
    mallopt(mmap_max, 0 if keep else 65536)
    mallopt(trim_threshold, -1 if keep else 128 << 10)


def auto_precision(device: torch.device) -> str:
    """bf16 where the hardware has it (GPUs from Ampere on, CPUs with AMX tiles): without the
    instructions it is 7-10 times slower than fp32."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_bf16 else "fp32"
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16" if has_amx else "fp32"


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile is worth it here and works: on GPUs that Triton knows (from Volta on),
    with Triton and a C compiler."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    return bool(compiler) and importlib.util.find_spec("triton") is not None


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine()
