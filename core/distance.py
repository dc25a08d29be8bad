"""LPIPS: how far two batches of images are apart, float (B, 3, H, W) in [-1, 1]."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from core import outlines, reading, torchfile
from core.distributed import note
from core.errors import UserError

Net = Literal["alex", "vgg", "squeeze"]
# LPIPS's trunk -> torchvision's name, smallest side that reaches its last layer
TRUNKS = {"alex": ("alexnet", 31), "vgg": ("vgg16", 16), "squeeze": ("squeezenet1_1", 17)}
WEIGHTS = {"alex": "alexnet-owt-7be5be79", "vgg": "vgg16-397923af",
           "squeeze": "squeezenet1_1-b8a52dc0"}
SQUEEZE = Path(__file__).parent / "weights" / "squeezenet1_1.npz"   # torchvision's, as float16


def build_lpips(net: Net, weights: str | None, resize: int | None, shape: tuple[int, int],
                device: torch.device | str = "cpu"
                ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """LPIPS v0.1 of images of this (height, width): a differentiable function from two batches in
    [-1, 1] to distances (B,). Zhang et al. 2018, package lpips.

    `weights` is a file with the trunk's ImageNet weights (.npz, .safetensors or .pth, torchvision's
    names); without it, squeeze has its own here and the others are downloaded. `resize` enlarges
    images to that side first. Raises UserError if the images are too small, or without weights.
    """
    import lpips

    check_side(net, resize or min(shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # lpips builds its trunks the way torchvision used to
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    load_trunk(model.net, net, weights)
    model = model.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if resize:
            a, b = (F.interpolate(x, size=(resize, resize), mode="bilinear") for x in (a, b))
        return model(a, b).flatten()

    return distance


def check_side(net: Net, side: int) -> None:
    """Raise UserError for images that are too small for a trunk."""
    smallest = TRUNKS[net][1]
    if side < smallest:
        raise UserError(f"lpips_net: {net} takes images of at least {smallest} pixels, not {side}: "
                        f"set lpips_resize to {smallest} or more"
                        + ("" if net == "squeeze" else ", or lpips_net=squeeze (17)"))


def check_lpips(net: Net, weights: str | None, resize: int | None, shape: tuple[int, int]) -> None:
    """Raise UserError where `build_lpips` does; but where nothing is to be downloaded
    (core.outlines), say what will be."""
    check_side(net, resize or min(shape))
    if net == "squeeze" and weights is None:        # its weights are here: nothing can be missing
        return
    if outlines.are_allowed() and weights is None and not cached(net).exists():
        note_download(net)
    else:
        build_once(net, weights, resize, shape)


@functools.cache
def build_once(*arguments) -> None:
    """Whether it can be built; once for what passed."""
    build_lpips(*arguments)


@functools.cache
def note_download(net: Net) -> None:
    note(f"lpips_net: {net} needs {url_of(net)}, which is not in {cached(net).parent}: "
         "it will be downloaded")


def load_trunk(trunk: torch.nn.Module, net: Net, path: str | None) -> None:
    """ImageNet weights into a trunk of the lpips package, whose names put a slice before the
    layer's number in torchvision's `features`."""
    if path is None and net == "squeeze":
        path = str(SQUEEZE)
    found = read_weights(Path(path)) if path else download(net)
    found = found if isinstance(found, dict) else {}
    wanted = {name: "features." + name.partition(".")[2] for name in trunk.state_dict()}
    try:
        weights = {name: found[source].float() for name, source in wanted.items()}
        reading.finite(weights, Path(path or net))
        trunk.load_state_dict(weights)
    except (KeyError, RuntimeError, AttributeError):
        raise UserError(f"lpips_weights: {path} does not hold torchvision's {TRUNKS[net][0]} "
                        "weights") from None


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from .npz, .safetensors or .pth, without running a pickle."""
    try:
        if path.suffix == ".npz":
            return {name: torch.from_numpy(array) for name, array in reading.npz(path).items()
                    if array.dtype.kind in "fiu"}
        read = reading.safetensors if path.suffix == ".safetensors" else torchfile.load
        return read(path)
    except UserError as error:
        raise UserError(f"lpips_weights: {error}; it takes a .npz, .safetensors or .pth of plain "
                        "weights") from None


def url_of(net: Net) -> str:
    """Where torchvision has a trunk's weights: said here too, so that a plan need not import it."""
    return f"https://download.pytorch.org/models/{WEIGHTS[net]}.pth"


def cached(net: Net) -> Path:
    """Where torchvision keeps a trunk's weights."""
    return Path(torch.hub.get_dir(), "checkpoints", url_of(net).rpartition("/")[2])


def download(net: Net) -> dict[str, torch.Tensor]:
    """torchvision's ImageNet weights, from its cache or the network."""
    from torchvision.models import get_model_weights

    try:
        return get_model_weights(TRUNKS[net][0]).DEFAULT.get_state_dict(
            progress=False, check_hash=True)
    except (OSError, RuntimeError):
        raise UserError(f"lpips_net: {net} needs {url_of(net)}, which could not be downloaded: put "
                        f"that file into {cached(net).parent}, name it with lpips_weights=, or set "
                        "lpips_net=squeeze, which needs none") from None
