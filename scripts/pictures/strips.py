"""Pictures of images: rows of them with their residuals, tiled and labelled."""

from dataclasses import dataclass

import numpy as np

from core.artefact import read_array
from core.datasets import clean_of
from core.imageset import ImageSet
from scripts.pictures.style import INK, plain_label
from scripts.tables import plan
from scripts.tables.measure import records_of, sets_of

GAINS = (10, 5, 2, 1)           # residual magnifications to choose from


def image_strips(clean: ImageSet, sets: list[tuple[str, ImageSet]], rows: slice
                 ) -> list[tuple[str, np.ndarray]]:
    """(label, (n, H, W, 3) in [0, 1]) for every row of the picture."""
    original = clean.images[rows] / 255.0
    strips = [("clean", original)]
    for name, other in sets:
        name = plain_label(name)
        images = other.images[rows] / 255.0
        residual = images - original
        gain = symmetric_gain(residual)
        strips.append((name, images))
        strips.append((f"{name} − clean\n× {gain}", np.clip(0.5 + gain * residual, 0, 1)))
    return strips


def symmetric_gain(residual: np.ndarray) -> int:
    """The largest magnification around mid-grey that clips at most 2 % of the values."""
    reach = np.quantile(np.abs(residual), 0.98)
    return next((gain for gain in GAINS if gain * reach <= 0.5), GAINS[-1])


def show_strips(axis, strips: list[tuple[str, np.ndarray]]) -> None:
    """Tile the strips into one image with white gaps, a label left of each."""
    count, height, width, _ = strips[0][1].shape
    gap = max(1, height // 12)
    canvas = np.ones((len(strips) * (height + gap) - gap, count * (width + gap) - gap, 3))
    for i, (_, images) in enumerate(strips):
        for j, image in enumerate(images):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = image
    axis.imshow(canvas, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([i * (height + gap) + height / 2 for i in range(len(strips))],
                    [label for label, _ in strips], fontsize=9, color=INK)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


@dataclass(frozen=True)
class Strip:
    """A row of fig4: some images at one point of the way, float (n, H, W, 3)."""

    label: str
    images: np.ndarray | None       # in [0, 1]; None: it is no image
    residual: np.ndarray | None     # to clean; None: it is the clean image


def strips_of(cells: list[plan.Cell], root: str, rows: slice) -> list[Strip]:
    """Of one poison: clean, then each column's set with its accuracy, and p_hat before the set of
    the column that saved it."""
    clean = None
    strips = []
    for ((cell, record),) in records_of(cells).values():
        chain = sets_of(cell.record)
        final = ImageSet.load(chain[-1].out)
        if clean is None:
            clean = clean_of(final, root).images[rows] / 255.0
            strips.append(Strip("clean", clean, None))
        saved = chain[-1].out / "p_hat1.npy"
        if saved.exists():
            p_hat = read_array(saved, final.meta)[rows].astype(np.float64)
            strips.append(Strip("p_hat of stage 1", None, p_hat))
        name = "poisoned" if len(chain) == 1 else cell.column.name
        images = final.images[rows] / 255.0
        strips.append(Strip(f"{name}\n{100 * record['accuracy_last']:.1f} %", images,
                            images - clean))
    return strips


def common_scale(strips: list[Strip]) -> tuple[float, list[np.ndarray]]:
    """One gain around mid-grey for all residuals, which clips 2 % of their values, and these in
    [0, 1]."""
    residuals = [strip.residual for strip in strips if strip.residual is not None]
    gain = 0.5 / max(np.quantile(np.abs(residuals), 0.98), 1e-9)
    return gain, [np.clip(0.5 + gain * residual, 0, 1) for residual in residuals]


def own_scales(strips: list[Strip]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The gain of every residual (n,), and these from their own minimum (0) to maximum (1)."""
    residuals = [strip.residual for strip in strips if strip.residual is not None]
    low = [residual.min(axis=(1, 2, 3), keepdims=True) for residual in residuals]
    reach = [np.maximum(residual.max(axis=(1, 2, 3), keepdims=True) - start, 1e-9)
             for residual, start in zip(residuals, low, strict=True)]
    scaled = [(residual - start) / r
              for residual, start, r in zip(residuals, low, reach, strict=True)]
    return [1 / r.ravel() for r in reach], scaled
