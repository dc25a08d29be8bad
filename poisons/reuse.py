"""Re-use of a disentangled perturbation as an attack: clean images plus the p_hat of a D-VAE.

If p_hat carries the shortcut, it poisons the clean images anew. Source: Yu et al., ICML 2024,
table 1. Needs a set purified with `dvae.save_perturbation=true`.

Deviations: pixels are rounded (release: down, `rounding: floor`); p_hat was stored in float16.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from core.artefact import read_array, read_meta
from core.config import Place
from core.errors import UserError
from core.imageset import ImageSet, Rounding
from core.ranges import Count, Keys
from core.run import Run

VERSION = 1
SMOKE: dict = {}
PATHS = ("source",)             # counts by its content


@dataclass(frozen=True)
class Config(Keys):
    # folder of the purified set that holds p_hat; the first thing to name
    source: Place = ""
    stage: Count = 1                # whose p_hat: 1 is that of the poisoned images themselves
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down, as D-VAE's release


def bound(config: Config) -> None:
    """None: a network's output has no budget."""


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus row i of p_hat, clipped.

    Raises UserError if `source` holds no such p_hat, or one of another shape.
    """
    path = Path(config.source) / f"p_hat{config.stage}.npy"
    meta = read_meta(path.parent, "imageset")
    if path.name not in meta["digests"]:
        raise UserError(f"{path}: no such file; purify with dvae.save_perturbation=true")
    p_hat = read_array(path, meta)
    if p_hat.shape != clean.images.shape:
        raise UserError(f"{path} is {p_hat.shape}, but the clean images are {clean.images.shape}")
    return clean.map_rows(
        lambda images, rows: images.add_(torch.from_numpy(np.array(p_hat[rows]))), run,
        rounding=config.rounding)
