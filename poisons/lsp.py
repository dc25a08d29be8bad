"""LSP: linearly separable synthetic shortcuts.

Every image of a class gets its own sample of a class-wise Gaussian in a coarse colour grid, blown
up to blocks. No surrogate: seconds on a CPU. Source: Yu et al., KDD 2022; code
dayu11/Availability-Attacks-Create-Shortcuts.

Deviations: K times the largest class is drawn, so that unequal classes are served: where classes
are unequal, no seed gives the release's samples (it draws N, or 2N for SVHN). Rounding is to the
nearest level, of sums in single precision (the release truncates sums in double: `rounding: floor`;
with it and seed 1, CIFAR-10's images are the release's but for some 60 of 153.6 million values,
which are a level apart).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from core.errors import UserError
from core.imageset import ImageSet, Rounding
from core.ranges import Count, Keys, Positive
from core.run import Run

VERSION = 2     # 1: norms in float32, off by 2e-6
SMOKE = {"patch": 8}


@dataclass(frozen=True)
class Config(Keys):
    # L2 of an image's noise, [0, 1] units; release: 6/255 sqrt(3072), ISS and D-VAE: 1
    radius: Positive = 6 / 255 * math.sqrt(3 * 32 * 32)
    # pixels a side of a block of one colour; release: 8 at 32x32, APBench: 32 at 224x224
    patch: Count = 8
    # class centres lie at +- this in each of the grid's F values, within-class sd sqrt(F / 3), 4 at
    # 32x32; release: 10
    class_sep: Positive = 10.0
    positive_only: bool = False     # drop negative noise, as EM's released loaders do
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down, as the release


def bound(config: Config) -> tuple[str, float]:
    return "l2", config.radius


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Add to image i of class c the i-th sample drawn for class c, scaled to L2 norm `radius`.

    Row i of the result is row i of `clean`. Seed 1 is the release's if all classes are equally
    large. Raises UserError if the grid is too coarse to hold so many classes.
    """
    height, width = clean.image_shape
    grid = math.ceil(height / config.patch), math.ceil(width / config.patch)
    features, labels = draw_samples(clean, grid[0] * grid[1] * 3, config, run.seed)
    cells = torch.from_numpy(assign(features, labels, clean.labels)).view(-1, *grid, 3)

    def rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        return images.add_(perturbation(cells[rows], height, width, config))

    # double: as the release, whose bytes `floor` is for
    dtype = torch.float64 if config.rounding == "floor" else torch.float32
    return clean.map_rows(rows, run, rounding=config.rounding, dtype=dtype)


def draw_samples(clean: ImageSet, features: int, config: Config, seed: int
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Samples (n, features) and their labels, equally many per class, at least the largest's."""
    from sklearn.datasets import make_classification

    if 2**features < clean.num_classes:
        raise UserError(f"lsp.patch: blocks of {config.patch} leave {features} features, too few "
                        f"for {clean.num_classes} classes; use smaller blocks")
    largest = int(np.bincount(clean.labels).max())
    return make_classification(
        n_samples=clean.num_classes * largest, n_features=features, n_classes=clean.num_classes,
        n_informative=features, n_redundant=0, n_repeated=0, n_clusters_per_class=1,
        class_sep=config.class_sep,
        flip_y=0,                   # sklearn's default flips 1 % of the labels
        random_state=seed)


def assign(features: np.ndarray, feature_labels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Row i gets the next unused sample of its class, in index order: (N, features) float32."""
    assigned = np.empty((len(labels), features.shape[1]), np.float32)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        assigned[rows] = features[feature_labels == label][: len(rows)]
    return assigned


def perturbation(cells: torch.Tensor, height: int, width: int, config: Config) -> torch.Tensor:
    """Cells (n, gh, gw, 3) blown up to blocks, cut to the image, scaled to the radius."""
    blocks = cells.repeat_interleave(config.patch, 1).repeat_interleave(config.patch, 2)
    delta = blocks[:, :height, :width]
    norms = delta.flatten(1).norm(dim=1, dtype=torch.float64)   # float32 is off by up to 4e-5
    delta = delta * (config.radius / norms).float()[:, None, None, None]
    return delta.clamp_(min=0) if config.positive_only else delta
