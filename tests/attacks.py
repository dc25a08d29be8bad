"""What the tests of attacks share: small sets, and an attack in double precision.

Most of them type a release's attack again as a plain loop. Both sides then compute in double
precision, so that they have to give the same bytes.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from conftest import CONFIGS, as_floats, as_set, log_of, new_run, succeed
from torch import nn

from core.imageset import ImageSet
from core.request import parse
from core.streams import BLOCK, generator
from core.training import Normalised
from models.resnet import resnet18
from poisons.__main__ import main as poison_main
from poisons.tap import CIFAR_MEAN, CIFAR_STD

# A surrogate that learns digits in a second, as the keys of an attack.
LINEAR = ["surrogate.architecture=linear", "surrogate.epochs=10", "surrogate.batch_size=32",
          "surrogate.schedule=onecycle", "surrogate.milestones=[]", "surrogate.crop_padding=0",
          "surrogate.flip=false"]


def random_set(rows: int, low: int, high: int, classes: int = 4) -> ImageSet:
    """Images of 8x8 whose levels are random in [low, high), clipped to black and white; as many of
    each class, in random order."""
    random = np.random.default_rng(0)
    images = np.clip(random.integers(low, high, (rows, 8, 8, 3)), 0, 255).astype(np.uint8)
    return as_set(images, random.permutation(np.arange(rows) % classes), classes)


def tensors(clean: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, float32 (N, 3, H, W) in [0, 1], and labels."""
    return as_floats(clean.images), torch.from_numpy(np.array(clean.labels))


def doubles(clean: ImageSet) -> tuple[torch.Tensor, torch.Tensor]:
    """The same floats in double precision."""
    images, labels = tensors(clean)
    return images.double(), labels


def to_pixels(floats: torch.Tensor) -> np.ndarray:
    """Clipped to [0, 1] and rounded to the nearest level: uint8 (N, H, W, 3)."""
    return np.rint(floats.clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)


def random_network(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network for images of 8x8 with statistics of its own, in double precision and eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build().train()
        network(torch.rand(64, 3, 8, 8))
    return network.double().eval()


def takes_double(function: Callable) -> Callable:
    """The function, given what it takes first in double precision."""
    def inner(first, *rest, **keys):
        return function(first.double(), *rest, **keys)

    return inner


def makes_double(function: Callable) -> Callable:
    """The function, but what it makes, or the first of several, is in double precision."""
    def inner(*values, **keys):
        made = function(*values, **keys)
        return (made[0].double(), *made[1:]) if isinstance(made, tuple) else made.double()

    return inner


def to_double(monkeypatch, module, *, makes: Sequence[str] = (), takes: Sequence[str] = ()) -> None:
    """A module computes in double precision: by its functions that make tensors or networks, those
    that take them, and add_noise, which gives images to be crafted for. report_seen is left out: it
    scores float images."""
    for names, changed in ((makes, makes_double), (takes, takes_double)):
        for name in names:
            monkeypatch.setattr(module, name, changed(getattr(module, name)))
    if hasattr(module, "add_noise"):
        add_noise = module.add_noise
        monkeypatch.setattr(module, "add_noise", lambda clean, craft, *rest, **keys: add_noise(
            clean, takes_double(craft), *rest, **keys))
    if hasattr(module, "report_seen"):
        monkeypatch.setattr(module, "report_seen", lambda *_: None)


def contrasts() -> ImageSet:
    """20 images of 8x8 in four classes, a third of their values black and a third white."""
    return random_set(20, -255, 511)


def network_of(seed: int = 0) -> nn.Module:
    """A random ResNet-18 of width 4 with statistics of its own, behind CIFAR's mean and std."""
    return random_network(lambda: Normalised(resnet18(4, 4), CIFAR_MEAN, CIFAR_STD), seed)


def drawn(draw: Callable, name: str, rows: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """The first rows of a block of noise, in double precision."""
    return draw(BLOCK, *shape, generator=generator(seed, name))[:rows].double()


def craft_in_double(monkeypatch, module, network: nn.Module) -> None:
    """An attack crafts in double precision, on this network."""
    monkeypatch.setattr(module, "train_surrogate", lambda *_, **__: network.double().eval(),
                        raising=False)      # SEP's is its ensemble's
    to_double(monkeypatch, module)


def poisoned_by(attack, clean: ImageSet, config, out: Path, method: str = "test") -> np.ndarray:
    """The images that an attack makes, in a run of its own."""
    with new_run(out, method=method) as run:
        return np.array(attack.poison(clean, config, run).images)


def poison(name: str, data: Path, *keys: str) -> Path:
    """The folder that an attack's command makes of a set, with these keys of its own."""
    return succeed(poison_main, f"method={name}", f"data={data}", "threads=1",
                   *(f"{name}.{key}" for key in keys))


def made(name: str, data: Path, *keys: str) -> tuple[np.ndarray, list[dict]]:
    """The images and the log of such a folder."""
    out = poison(name, data, *keys)
    return np.load(out / "images.npy"), log_of(out)


def share_seen(log: list[dict]) -> float:
    """Of the images, how many the surrogate takes for what was meant."""
    [share] = [line["share"] for line in log if line["loop"] == "seen"]
    return share


def config_by(name: str, *words: str):
    """The Config that an attack's YAML and these words give."""
    return parse([str(CONFIGS / f"poisons/{name}.yaml"), *words], "", "poison").config
