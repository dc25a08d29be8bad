"""AutoAugment: two operations on each stored image, by a sub-policy that is drawn for it.

Standard training otherwise; the operations come before crop and flip. What the papers of the field
(EM, AVATAR, BAIT) call AutoAugment is Fast AutoAugment: the 493 sub-policies that Lim et al.
(NeurIPS 2019) found for a reduced CIFAR-10, in fast_autoaugment_cifar10.csv. torchvision's
policies, which are those of Cubuk et al. (CVPR 2019), go by its name. Source: code
kakaobrain/fast-autoaugment; torchvision.transforms.AutoAugment. The operations are Pillow's, byte
for byte (`learners/operations.py`).
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from core.errors import UserError
from core.imageset import ImageSet
from core.run import Run
from core.training import Result
from learners import standard
from learners.operations import OPERATIONS, apply_each

VERSION = 1
SMOKE = standard.SMOKE
TABLE = Path(__file__).with_name("fast_autoaugment_cifar10.csv")
COLUMNS = ["op1", "prob1", "level1", "op2", "prob2", "level2"]
MOST_ROWS = 10_000              # of a table
# Magnitudes at levels 0 and 1; those of MIRRORED are turned round for half of the images. Shears in
# pixels a pixel, translations in sides, degrees, grey levels, bits (code FastAutoAugment/
# augmentations.py)
RANGES = {"ShearX": (-0.3, 0.3), "ShearY": (-0.3, 0.3), "TranslateX": (-0.45, 0.45),
          "TranslateY": (-0.45, 0.45), "Rotate": (-30, 30), "AutoContrast": (0, 1),
          "Invert": (0, 1), "Equalize": (0, 1), "Solarize": (0, 256), "Posterize": (4, 8),
          "Contrast": (0.1, 1.9), "Color": (0.1, 1.9), "Brightness": (0.1, 1.9),
          "Sharpness": (0.1, 1.9), "Cutout": (0, 0.2)}
MIRRORED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}
NAMES = list(OPERATIONS)


@dataclass(frozen=True)
class Config(standard.Config):
    # whose sub-policies: Fast AutoAugment's 493 for CIFAR-10, which the papers' column is, or
    # torchvision's 25 for CIFAR-10, for SVHN or for ImageNet
    policy: Literal["fast", "torchvision", "torchvision_svhn", "torchvision_imagenet"] = "fast"


@dataclass(frozen=True)
class Policy:
    """Sub-policies of two operations, as arrays (sub-policies, 2, ...)."""

    operations: np.ndarray          # (S, 2): indices into NAMES
    probabilities: np.ndarray       # (S, 2): of applying each
    magnitudes: np.ndarray          # (S, 2, 2): of each, as it is and turned round


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on `train` under the policy and score it on the clean `test`."""
    policy = policy_of(config.policy, *train.image_shape)

    def before_crop(images: torch.Tensor, step: int) -> torch.Tensor:
        return augmented(images, policy, run.rng("autoaugment", step))

    return standard.fit(train, test, config, run, before_crop=before_crop)


def augmented(images: torch.Tensor, policy: Policy, draw: np.random.Generator) -> torch.Tensor:
    """Each image uint8 (B, H, W, 3) under a sub-policy of its own: its first operation, perhaps,
    and then its second, perhaps."""
    count = len(images)
    chosen = draw.integers(len(policy.operations), size=count)
    for place in (0, 1):
        applied = draw.random(count) <= policy.probabilities[chosen, place]
        turned = draw.integers(2, size=count)
        images = apply_each(images, np.where(applied, policy.operations[chosen, place], -1),
                            policy.magnitudes[chosen, place, turned], draw.random((count, 2)))
    return images


def policy_of(name: str, height: int, width: int) -> Policy:
    """A policy, with its magnitudes for images of this size."""
    if name == "fast":
        return arrays(read(TABLE), lambda operation, level:
                      released_magnitudes(operation, level, height, width))
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    data = name.removeprefix("torchvision").strip("_") or "cifar10"
    return arrays(AutoAugment(AutoAugmentPolicy(data)).policies, lambda operation, level:
                  torchvision_magnitudes(operation, level, height, width))


def arrays(rows, magnitudes_of) -> Policy:
    """From ((operation, probability, level), (operation, probability, level)) for each."""
    return Policy(np.array([[NAMES.index(part[0]) for part in row] for row in rows]),
                  np.array([[part[1] for part in row] for row in rows]),
                  np.array([[magnitudes_of(part[0], part[2]) for part in row] for row in rows]))


def read(path: Path) -> list[tuple[tuple[str, float, float], tuple[str, float, float]]]:
    """The sub-policies of a table. Raises UserError that names the row if one is none."""
    with open(path, newline="") as file:
        lines = csv.reader(line for line in file if not line.startswith("#"))
        rows = [line for line, _ in zip(lines, range(MOST_ROWS + 2), strict=False)]
    if not 2 <= len(rows) <= MOST_ROWS + 1 or rows[0] != COLUMNS:
        raise UserError(f"{path}: not a table of 1 to {MOST_ROWS:,} sub-policies under "
                        f"{','.join(COLUMNS)}")
    return [(part(path, number, row[:3]), part(path, number, row[3:]))
            for number, row in enumerate(rows[1:], 1)]


def part(path: Path, number: int, cells: list[str]) -> tuple[str, float, float]:
    """Operation, probability and level of one half of a row."""
    try:
        name, probability, level = cells[0], float(cells[1]), float(cells[2])
        if len(cells) == 3 and name in RANGES and 0 <= probability <= 1 and 0 <= level <= 1:
            return name, probability, level
    except (ValueError, IndexError):
        pass
    raise UserError(f"{path}: sub-policy {number}: '{','.join(cells)}' is not an operation of "
                    f"{', '.join(RANGES)}, a probability and a level from 0 to 1")


def released_magnitudes(operation: str, level: float, height: int, width: int
                        ) -> tuple[float, float]:
    """Fast AutoAugment's magnitude of a level in [0, 1], and turned round."""
    low, high = RANGES[operation]
    magnitude = level * (high - low) + low
    if operation in ("TranslateX", "Cutout"):
        magnitude *= width
    if operation == "TranslateY":
        magnitude *= height
    return magnitude, -magnitude if operation in MIRRORED else magnitude


def torchvision_magnitudes(operation: str, level: int | None, height: int, width: int
                           ) -> tuple[float, float]:
    """torchvision's magnitude of a level from 0 to 9, and turned round; it is a float32."""
    def at(start: float, end: float) -> float:
        return float(torch.linspace(start, end, 10)[level])

    if operation.startswith("Shear"):
        return at(0, 0.3), -at(0, 0.3)
    if operation.startswith("Translate"):       # whole pixels, of what is seen
        side = width if operation == "TranslateX" else height
        return -int(at(0, 150 / 331 * side)), int(at(0, 150 / 331 * side))
    if operation == "Rotate":
        return at(0, 30), -at(0, 30)
    if operation in ("Brightness", "Color", "Contrast", "Sharpness"):
        return 1 + at(0, 0.9), 1 - at(0, 0.9)
    magnitude = {"Posterize": lambda: 8 - round(level / (9 / 4)),
                 "Solarize": lambda: at(255, 0)}.get(operation, lambda: 0)()
    return magnitude, magnitude
