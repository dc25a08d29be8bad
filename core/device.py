"""Where and how we compute, decided once per run: device, precision, layout, compile, threads."""

import contextlib
import ctypes
import dataclasses
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import nn

from core import distributed
from core.errors import UserError
from core.names import printable
from core.ranges import Keys, Range

# cuBLAS reads it once, when CUDA starts: before any run can ask for repeatable kernels.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

BF16_IS_FASTER = ("precision=bf16 would be faster: this processor has AMX (auto is fp32 on every "
                  "CPU; bf16 gives other bytes)")
_to_say: list[str] = []         # about this machine, should a network compute on it
_said: list[str] = []


@dataclass(frozen=True)
class DeviceSettings(Keys):
    """Keys that every command takes at the top level of its YAML. None enters a fingerprint."""

    device: str = "auto"            # auto, cpu, cuda, cuda:1; auto: CUDA, if there is one
    # of networks; auto: bf16 on CUDA, fp32 on a CPU
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    compile: Literal["auto", "true", "false"] = "auto"  # torch.compile; auto: on CUDA only
    # of the CPU; null: torch's default
    threads: Annotated[int, Range(at_least=1, at_most=1024)] | None = None
    deterministic: bool = False     # CUDA: repeatable kernels, slower
    # of signed gradient steps; auto: float32, by `precision` in TF32 or not
    craft_precision: Literal["auto", "bf16"] = "auto"
    # CUDA: training steps recorded once and replayed; auto: yes
    graphs: Literal["auto", "true", "false"] = "auto"


@dataclass(frozen=True)
class Device:
    """The resolved answer. `kind` is 'cpu' or 'cuda'; `name` says which for records."""

    name: str
    precision: str
    compile: bool
    threads: int
    deterministic: bool
    craft_precision: str
    graphs: bool

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
            advise()
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

    def as_record(self) -> dict:
        """What a record says of the machine."""
        about = dataclasses.asdict(self)
        if self.kind == "cuda":
            about |= {"hardware": torch.cuda.get_device_name(self.torch),
                      "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
                      "driver": nvidia_driver()}
        else:
            about |= {"hardware": cpu_name(),
                      "instructions": torch.backends.cpu.get_cpu_capability()}
        return {**about, "cores": os.cpu_count()}

    def as_settings(self) -> DeviceSettings:
        """Settings that resolve to this device again: a resumed run replays them."""
        return DeviceSettings(self.name, self.precision, str(self.compile).lower(),
                              self.threads, self.deterministic, self.craft_precision,
                              str(self.graphs).lower())


def to_device(values: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """What was drawn on the host, for a step on the device, which it does not wait for: a plain
    `.to` ends after all that a GPU was asked for before."""
    return torch.as_tensor(values).to(device, non_blocking=True)


def resolve(settings: DeviceSettings) -> Device:
    """Decide `auto`s and apply the process-wide switches (threads, TF32, determinism).

    Raises UserError for a device that this machine lacks.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and distributed.started():
        # To each process its own; where a launcher shows each only its own, all are number 0.
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % max(1, torch.cuda.device_count())}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: '{name}' is not a device; write auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda") or name.startswith("cpu:"):
        raise UserError(f"device: '{name}' is not supported; write auto, cpu or cuda")
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise UserError(f"device: '{name}' is not on this machine; write device=auto or device=cpu")

    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    keep_freed_memory()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    precision = settings.precision
    if precision == "auto":
        precision = auto_precision(device)
    unasked = settings.precision == "auto" and device.type == "cpu" and has_amx()
    _to_say[:] = [BF16_IS_FASTER] if unasked and BF16_IS_FASTER not in _said else []
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.benchmark = not settings.deterministic
    # Both ways: the process may have resolved another before. Only where it differs: telling torch
    # imports its compiler, which takes seconds.
    if torch.are_deterministic_algorithms_enabled() != settings.deterministic:
        torch.use_deterministic_algorithms(settings.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False
    if settings.compile == "true" and not compiler(device):
        raise UserError("compile: there is no C compiler here (g++ for a CPU, gcc for CUDA), which "
                        "torch.compile needs; install one, or write compile=false")
    compiled = settings.compile == "true" or (settings.compile == "auto" and can_compile(device))
    if settings.graphs == "true" and device.type != "cuda":
        raise UserError("graphs: only a CUDA device has graphs; write graphs=auto")
    graphs = settings.graphs != "false" and device.type == "cuda"
    return Device(name, precision, compiled, torch.get_num_threads(), settings.deterministic,
                  settings.craft_precision, graphs)


def kind_of(settings: DeviceSettings) -> str:
    """'cpu' or 'cuda', before anything is resolved."""
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return settings.device.partition(":")[0]


def keep_freed_memory() -> None:
    """Tell glibc not to hand large freed blocks back to the kernel.

    By default every large activation is mapped, faulted in page by page and unmapped again, at
    each layer of each step: that made CPU training 1.3-1.6 times slower (docs/evidence/speed.md).
    """
    trim_threshold, mmap_max = -1, -4               # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):               # not glibc
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)                     # never


def auto_precision(device: torch.device) -> str:
    """bf16 on GPUs that have it (from Ampere on). On a CPU fp32, whichever it is: bytes, tests and
    records must not depend on the processor that a run happens to meet."""
    if device.type != "cuda":
        return "fp32"
    with torch.cuda.device(device):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices in tiles. Without, bf16 is 7-10 times slower than
    fp32; with them a ResNet-18 trains 2.5 (width 64) to 8 (width 16) times faster in bf16."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def advise() -> None:
    """Say what `resolve` left to be said, once a process: where a network is about to compute."""
    while _to_say:
        _said.append(_to_say.pop())
        distributed.note(_said[-1])


def unlike(made: dict, settings: DeviceSettings) -> str:
    """How what `settings` ask for differs from how an artefact was `made` (the `device` of its
    meta.json): 'precision=bf16, not fp32', or '' where it does not. An `auto` asks for nothing."""
    asked = {"precision": settings.precision, "craft_precision": settings.craft_precision}
    return ", ".join(f"{key}={printable(made[key])}, not {value}" for key, value in asked.items()
                     if value != "auto" and made.get(key, value) != value)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile is worth it here and works: on GPUs that Triton knows (from Volta on),
    with Triton and a C compiler."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    return bool(compiler(device)) and importlib.util.find_spec("triton") is not None


def compiler(device: torch.device) -> str | None:
    """What torch.compile translates with: C++ for a CPU's kernels, C for what starts a GPU's."""
    variable, names = ("CC", ("gcc", "cc")) if device.type == "cuda" else \
        ("CXX", ("g++", "clang++"))
    return os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)


def cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def nvidia_driver() -> str | None:
    """Version of NVIDIA's driver, as its management library says it."""
    try:
        nvml, text = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.create_string_buffer(80)
        failed = nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, len(text))
    except (OSError, AttributeError):
        return None
    return None if failed else text.value.decode()
