"""What a poison did to the pixels: norms after rounding, and how well a line tells its classes."""

import math
from dataclasses import dataclass

import numpy as np

from core.errors import UserError
from core.imageset import ImageSet, rows_at_once

PROBE_SIDE = 32
PROBE_ROWS = 3000       # enough for a linear probe in 3,072 dimensions; seconds on a CPU
Bound = tuple[str, float] | None


@dataclass(frozen=True)
class Perturbation:
    """Statistics of (perturbed - original) over all rows. Norms are in [0, 1] units."""

    linf: float             # largest over all images
    l2: float               # mean over images
    l2_max: float
    l0: int                 # most pixels (of H x W) changed in one image
    mean_abs: float
    changed_pixels: float   # share of all pixels
    changed_rows: float     # share of all images
    psnr: float             # of the whole set, dB; inf if nothing changed

    def as_record(self) -> dict:
        """For JSON, which has no infinity."""
        return {**vars(self), "psnr": min(self.psnr, 999.0)}

    def in_words(self) -> str:
        """One line for people, in grey levels where the field uses them."""
        return (f"Linf {self.linf * 255:.0f}/255, L2 mean {self.l2:.4f} max {self.l2_max:.4f}, "
                f"mean |delta| {self.mean_abs * 255:.2f}/255, {self.changed_pixels:.1%} of the "
                f"pixels in {self.changed_rows:.1%} of the images changed, PSNR {self.psnr:.2f} dB")


def measure(original: ImageSet, perturbed: ImageSet) -> Perturbation:
    """Compare two sets of equal shape, slice by slice."""
    if original.images.shape != perturbed.images.shape:
        raise UserError(f"the sets have different shapes: {original.images.shape} and "
                        f"{perturbed.images.shape}")
    linf = l0 = changed = rows = total = 0
    squares = []
    for part in original.slices():
        delta = difference(original, perturbed, part)
        magnitude = np.abs(delta)
        touched = magnitude.any(axis=3)
        per_image = touched.sum(axis=(1, 2))
        linf = max(linf, int(magnitude.max()))
        l0 = max(l0, int(per_image.max()))
        changed += int(per_image.sum())
        rows += int((per_image > 0).sum())
        total += int(magnitude.sum(dtype=np.int64))
        squares.append(np.square(magnitude, dtype=np.int32).sum(axis=(1, 2, 3), dtype=np.int64))
    squares = np.concatenate(squares)
    l2 = np.sqrt(squares) / 255
    count, pixels = original.images.size, original.images.size // 3
    mse = squares.sum() / count / 255**2
    return Perturbation(
        linf / 255, float(l2.mean()), float(l2.max()), l0, total / count / 255,
        changed / pixels, rows / len(original), 10 * math.log10(1 / mse) if mse else math.inf,
    )


def difference(original: ImageSet, perturbed: ImageSet, rows: slice | np.ndarray) -> np.ndarray:
    """perturbed - original in grey levels, int16 (n, H, W, 3)."""
    return perturbed.images[rows].astype(np.int16) - original.images[rows]


def check_bound(bound: Bound, found: Perturbation, image_size: int, rounding: str) -> None:
    """Raise RuntimeError if a poison broke its own budget (a fault of the attack, not the user's).
    """
    if bound is None:
        return
    value, limit = limit_of(bound, found, image_size, rounding)
    if value > limit:
        raise RuntimeError(f"the poison's {bound[0]} is {value:.5g}, above its budget of "
                           f"{bound[1]:.5g}")


def limit_of(bound: tuple[str, float], found: Perturbation, image_size: int, rounding: str
             ) -> tuple[float, float]:
    """The norm that was found, and the most it may be: rounding may move a pixel by half a grey
    level (`floor`: one). `image_size` = 3HW."""
    norm, radius = bound
    slack = (1.0 if rounding == "floor" else 0.5) / 255
    limits = {"linf": (found.linf, radius + slack),
              "l2": (found.l2_max, radius + slack * math.sqrt(image_size)),
              "l0": (found.l0, radius)}
    value, limit = limits[norm]
    return value, limit * (1 + 1e-6)


def linear_probe(original: ImageSet, perturbed: ImageSet, rng: np.random.Generator) -> float | None:
    """Held-out accuracy of logistic regression on the perturbation: near 1 for a linearly
    separable shortcut, near chance for noise where few pixels clip. None where there is nothing to
    tell apart (`halves`).

    Clipping leaks the image, and with it the label: random signs score 11 % on CIFAR-10, but 48 %
    on digits, most of whose pixels are black or white.

    Half of PROBE_ROWS random rows train the probe and the other half test it. Source: the LSP
    paper's probe, made held-out because 3,072 dimensions fit any labels.
    """
    split = halves(original, perturbed, rng)
    if split is None:
        return None
    from sklearn.linear_model import LogisticRegression

    train, held_out = split
    probe = LogisticRegression(max_iter=50, tol=1e-2).fit(*train)
    return float(probe.score(*held_out))


def nearest_mean(original: ImageSet, perturbed: ImageSet, rng: np.random.Generator
                 ) -> float | None:
    """Held-out accuracy of the nearest class mean of the perturbation, over the probe's rows."""
    split = halves(original, perturbed, rng)
    if split is None:
        return None
    (delta, labels), (unseen, expected) = split
    classes = np.unique(labels)
    means = np.stack([delta[labels == label].mean(0) for label in classes])
    distances = (means**2).sum(1) - 2 * unseen @ means.T
    return float((classes[distances.argmin(1)] == expected).mean())


def halves(original: ImageSet, perturbed: ImageSet, rng: np.random.Generator):
    """PROBE_ROWS random perturbations scaled to [-1, 1], and labels: two halves of (n, features)
    and (n,). The features are pixels, of large images the means of blocks. None of one class, of
    too few rows for two, and where nothing differs."""
    chosen = np.sort(rng.permutation(len(original))[:PROBE_ROWS])
    step = rows_at_once(original.image_shape)
    side = max(1, min(original.image_shape) // PROBE_SIDE)
    delta = np.concatenate([
        block_means(difference(original, perturbed, chosen[start : start + step]), side)
        for start in range(0, len(chosen), step)]).reshape(len(chosen), -1)
    scale, labels = np.abs(delta).max(), original.labels[chosen]
    order = rng.permutation(len(chosen))
    train, held_out = np.array_split(order, 2)
    if scale == 0 or len(np.unique(labels[train])) < 2:
        return None
    return (delta[train] / scale, labels[train]), (delta[held_out] / scale, labels[held_out])


def block_means(images: np.ndarray, size: int) -> np.ndarray:
    """(..., H, W, 3) as float32 means of the whole blocks of size x size."""
    *rest, height, width, _ = images.shape
    rows, columns = height // size, width // size
    whole = images[..., : rows * size, : columns * size, :].astype(np.float32)
    return whole.reshape(*rest, rows, size, columns, size, 3).mean((-4, -2))
