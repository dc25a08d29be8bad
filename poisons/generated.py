"""What GUE and DC share: a U-Net from a file, and images with the noise that it makes of them."""

from pathlib import Path

import torch
from torch import nn

from core import pretrained
from core.errors import UserError
from core.imageset import ImageSet, Rounding
from core.run import Run
from models.noise_unet import SIDES, NoiseUNet
from poisons.crafting import add_noise
from poisons.noise import lifted


def check_sides(shape: tuple[int, int]) -> None:
    """Raise UserError unless the network takes images of this (height, width)."""
    if shape[0] % SIDES or shape[1] % SIDES:
        raise UserError(f"images of {shape[0]}x{shape[1]} pixels do not fit the generator, which "
                        f"halves them three times: their sides must be multiples of {SIDES}")


def load_generator(path: Path, width: int, run: Run) -> nn.Module:
    """The generator of a state dict, as both releases keep theirs. Raises UserError for what cannot
    be read or is of another network."""
    found = pretrained.by_name(path)
    with torch.device("meta"):
        generator = NoiseUNet(width)
    weights = pretrained.completed(found, generator.state_dict(), path,
                                   f"a generator of width {width}")
    generator.load_state_dict(weights, assign=True)
    return run.device.place(generator)


def add_generated(clean: ImageSet, generator: nn.Module, epsilon: float, rounding: Rounding,
                  run: Run) -> ImageSet:
    """clip(x + epsilon G(x)), G in eval mode, in which no image has a part in another's noise."""
    generator.eval()

    @torch.no_grad()
    def noise(images: torch.Tensor, *_) -> torch.Tensor:
        return lifted(epsilon * generator(images), rounding)

    return add_noise(clean, noise, run, rounding=rounding)
