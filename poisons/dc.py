"""DC: DeepConfuse, by its released generator.

A U-Net makes the noise of every image from the image. It was trained so that a classifier, one step
after having met its noise, errs on clean images: twenty passes over CIFAR-10 for each of 1,000
classifiers, which takes days (release) and is not here. `weights` names the release's file.
Source: Feng, Cai and Zhou, NeurIPS 2019; code kingfengji/DeepConfuse, CIFAR, and lafeat/apbench,
attack/dc_poisons.py.

Deviations: the release trains its victims on floats; what is stored here is rounded as by APBench,
which takes 8/255 of the generator that was trained at 0.032 (`preset=apbench`).
"""

from dataclasses import dataclass
from pathlib import Path

from core.config import Place
from core.imageset import ImageSet, Rounding
from core.ranges import Keys, LinfRadius
from core.run import Run
from models.noise_unet import WIDTH
from poisons.generated import add_generated, check_sides, load_generator

VERSION = 1
SMOKE: dict = {}
PATHS = ("weights",)


@dataclass(frozen=True)
class Config(Keys):
    epsilon: LinfRadius = 0.032     # L-inf budget, [0, 1] units; release: 0.032, APBench: 8/255
    # the released generator's file, atk.0.032.best.pth; the first thing to name
    weights: Place = ""
    rounding: Rounding = "round"    # to whole grey levels: nearest, as APBench, or down

    def check_images(self, shape: tuple[int, int]) -> None:
        """Before anything begins."""
        check_sides(shape)


def bound(config: Config) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus the noise that the generator makes of it."""
    config.check_images(clean.image_shape)
    generator = load_generator(Path(config.weights), WIDTH, run)
    return add_generated(clean, generator, config.epsilon, config.rounding, run)
