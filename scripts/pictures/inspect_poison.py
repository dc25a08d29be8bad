"""What a poison is: numbers to stdout, one picture.

    python scripts/inspect_poison.py SET [CLEAN] [--out poison.png]

Norms, changed pixels and rows, how well a line and the nearest class mean tell the classes from the
perturbation alone, where in the spectrum it lives, the mean perturbation of each class, and images
with their residuals. CLEAN is another set to compare with; by default the one that SET was made
from.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core import streams
from core.command import command
from core.config import as_path, expand
from core.datasets import DataSettings, clean_of, load
from core.errors import UserError
from core.imageset import SLICE_ROWS, ImageSet
from core.names import printable
from core.perturbation import difference, linear_probe, measure, nearest_mean
from scripts.pictures.strips import image_strips, show_strips
from scripts.pictures.style import (
    BAD,
    INK,
    MUTED,
    axis_style,
    picture_path,
    plain_label,
    pyplot,
    save,
)

SPECTRUM_ROWS = 2000
SHOWN_CLASSES = 10
BANDS = (("low", 0, 1 / 8), ("middle", 1 / 8, 1 / 4), ("high", 1 / 4, 1))  # cycles a pixel


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python scripts/inspect_poison.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=expand, metavar="SET",
                        help="a poisoned (or purified) image set")
    parser.add_argument("clean", type=expand, metavar="CLEAN", nargs="?",
                        help="the set to compare with, as data= takes it")
    parser.add_argument("--out", type=as_path, help="the PNG to write (SET's name beside it)")
    parser.add_argument("--root", type=expand, default="data",
                        help="where torchvision's data sets are")
    arguments = parser.parse_args(argv)
    out = picture_path(arguments.out or f"{Path(arguments.set).name}.png")
    poison = ImageSet.load(arguments.set)
    clean = load(DataSettings(arguments.clean, root=arguments.root), "CLEAN") if arguments.clean \
        else clean_of(poison, arguments.root)
    found = measure(clean, poison)
    if not np.array_equal(clean.labels, poison.labels):
        raise UserError(f"{arguments.clean} has other labels than {arguments.set}: row i of one is "
                        "not row i of the other")
    if found.changed_rows == 0:
        raise UserError(f"{arguments.set} does not differ from the set it is compared with")
    spectra = Spectra.of(clean, poison)
    means = class_means(clean, poison)
    print_summary(arguments.set, poison, clean, found, spectra, means)
    save(draw(poison, clean, spectra, means), out)
    print(out, file=sys.stderr)


# --- numbers ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spectra:
    """Power at each radius (cycles a pixel), as shares of the whole, of the perturbation and of the
    clean images without their mean."""

    radius: np.ndarray
    perturbation: np.ndarray
    images: np.ndarray

    @classmethod
    def of(cls, clean: ImageSet, poison: ImageSet) -> "Spectra":
        rows = np.sort(streams.rng(0, "spectrum").permutation(len(clean))[:SPECTRUM_ROWS])
        images = clean.images[rows].astype(np.float32)
        images -= images.mean((1, 2), keepdims=True)
        delta = difference(clean, poison, rows).astype(np.float32)
        return cls(*radial(delta), radial(images)[1])

    def share(self, low: float, high: float) -> float:
        return float(self.perturbation[(self.radius >= low) & (self.radius < high)].sum())


def radial(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radii and the share of power of (n, H, W, 3) in rings one frequency step wide."""
    _, height, width, _ = images.shape
    power = np.zeros((height, width))
    for start in range(0, len(images), 256):
        part = np.fft.fft2(images[start : start + 256], axes=(1, 2))
        power += (np.abs(part) ** 2).sum((0, 3))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    step = 1 / min(height, width)
    rings = np.round(frequency / step).astype(int)
    total = np.bincount(rings.ravel(), power.ravel())
    return np.arange(len(total)) * step, total / max(total.sum(), 1e-12)


def class_means(clean: ImageSet, poison: ImageSet) -> np.ndarray:
    """The mean perturbation of each class, in grey levels (K, H, W, 3)."""
    total = np.zeros((clean.num_classes, *clean.images.shape[1:]))
    for start in range(0, len(clean), SLICE_ROWS):
        rows = slice(start, start + SLICE_ROWS)
        delta = difference(clean, poison, rows)
        for label in np.unique(clean.labels[rows]):
            total[label] += delta[clean.labels[rows] == label].sum(0)
    counts = np.bincount(clean.labels, minlength=clean.num_classes).clip(1)
    return total / counts[:, None, None, None]


def print_summary(path: str, poison: ImageSet, clean: ImageSet, found, spectra: Spectra,
                  means: np.ndarray) -> None:
    chance = 100 / clean.num_classes
    probe = linear_probe(clean, poison, streams.rng(0, "probe"))
    nearest = nearest_mean(clean, poison, streams.rng(0, "probe"))
    shared = np.square(means).mean() / max(mean_square(clean, poison), 1e-12)
    steps = " > ".join(poison.made_by) or "clean"
    print(printable(f"{path}: {steps}; {len(poison)} images of {clean.num_classes} classes"))
    for name, text in (
        ("Linf", f"{found.linf * 255:.0f}/255"),
        ("L2 (mean, most)", f"{found.l2:.4f}, {found.l2_max:.4f}"),
        ("L0 (most)", f"{found.l0} pixels"),
        ("mean |delta|", f"{found.mean_abs * 255:.2f}/255"),
        ("PSNR", f"{found.psnr:.2f} dB"),
        ("pixels changed", f"{found.changed_pixels:.1%}"),
        ("images changed", f"{found.changed_rows:.1%}"),
        ("linear probe", "too few rows" if probe is None
         else f"{probe:.1%} held out (chance {chance:.1f} %)"),
        ("nearest class mean", "too few rows" if nearest is None else f"{nearest:.1%} held out"),
        ("shared by the class", f"{shared:.1%} of the power"),
        ("power by frequency", ", ".join(f"{band} {spectra.share(low, high):.0%}"
                                         for band, low, high in BANDS)),
    ):
        print(f"  {name:20} {text}")


def mean_square(clean: ImageSet, poison: ImageSet) -> float:
    total = 0
    for start in range(0, len(clean), SLICE_ROWS):
        delta = difference(clean, poison, slice(start, start + SLICE_ROWS))
        total += int(np.square(delta, dtype=np.int64).sum())
    return total / clean.images.size


# --- picture ---------------------------------------------------------------------------------


def draw(poison: ImageSet, clean: ImageSet, spectra: Spectra, means: np.ndarray):
    """Sixteen images with their residuals; class means, spectrum and histogram beside them."""
    name = (poison.made_by or [poison.meta["name"]])[-1]
    chosen = np.sort(streams.rng(0, "shown").permutation(len(clean))[:16])
    strips = [strip for rows in (chosen[:8], chosen[8:]) if len(rows)
              for strip in image_strips(pick(clean, rows), [(name, pick(poison, rows))],
                                        slice(None))]
    figure = pyplot().figure(figsize=(13.5, 6.3))
    grid = figure.add_gridspec(3, 2, width_ratios=(2.1, 1), height_ratios=(1.15, 1, 1),
                               hspace=0.62, wspace=0.16)
    images = figure.add_subplot(grid[:, 0])
    show_strips(images, level(strips))
    images.set_title(plain_label(f"{name} on {poison.meta['name']}, {len(poison)} images"),
                     fontsize=12, color=INK, loc="left", pad=10)
    show_means(figure.add_subplot(grid[0, 1]), means)
    show_spectrum(figure.add_subplot(grid[1, 1]), spectra, name)
    show_histogram(figure.add_subplot(grid[2, 1]), clean, poison)
    return figure


def level(strips: list[tuple[str, np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """Strips of one length, the last ones filled up with white."""
    longest = max(len(images) for _, images in strips)
    return [(label, np.concatenate([images, np.ones((longest - len(images), *images.shape[1:]))]))
            for label, images in strips]


def pick(images: ImageSet, rows: np.ndarray) -> ImageSet:
    import dataclasses

    return dataclasses.replace(images, images=np.asarray(images.images[rows]),
                               labels=images.labels[rows])


def show_means(axis, means: np.ndarray) -> None:
    """The mean perturbation of the first classes, around mid-grey at one scale."""
    shown = means[:SHOWN_CLASSES]
    gain = 0.5 / (np.quantile(np.abs(shown), 0.99) or np.abs(shown).max() or 1.0)
    images = np.clip(0.5 + gain * shown, 0, 1)
    show_strips(axis, level([("", images[start : start + 5])
                             for start in range(0, len(images), 5)]))
    which = "each class" if len(means) <= SHOWN_CLASSES else f"the first {SHOWN_CLASSES} classes"
    axis.set_title(f"mean perturbation of {which}, × {255 * gain:.3g}", fontsize=9.5, color=INK,
                   loc="left")


def show_spectrum(axis, spectra: Spectra, name: str) -> None:
    radius, images, own = (values[1:] for values in (spectra.radius, spectra.images,
                                                     spectra.perturbation))
    axis.plot(radius, images, color=MUTED, linewidth=1.2, label="clean images")
    axis.plot(radius, own, color=BAD, linewidth=1.8, label=plain_label(name))
    axis.set_yscale("log")
    axis.set_ylim(1e-4, 1)
    axis.set_xlim(0, radius[-1])
    axis.set_xlabel("frequency (cycles a pixel)")
    axis.legend(fontsize=8, loc="lower left", labelcolor="linecolor", frameon=False)
    axis.set_title("share of power", fontsize=9.5, color=INK, loc="left")
    axis_style(axis)


def show_histogram(axis, clean: ImageSet, poison: ImageSet) -> None:
    """How often each value of the perturbation occurs in images that have one, a channel a line."""
    changed = np.flatnonzero([(clean.images[row] != poison.images[row]).any()
                              for row in range(len(clean))])
    delta = difference(clean, poison, changed[:SPECTRUM_ROWS])
    reach = int(np.quantile(np.abs(delta[delta != 0]), 0.9995)) + 1
    step = -(-reach // 40)
    edges = np.arange(-(reach // step) * step, reach + step + 1, step) - step / 2
    least = 1.0
    for channel, colour in enumerate((BAD, "#2a7f62", "#5b7ea4")):
        counts, _ = np.histogram(delta[..., channel], edges)
        shares = np.where(counts, counts / delta[..., channel].size, np.nan)
        axis.plot(edges[:-1] + step / 2, shares, ".-", color=colour, linewidth=1.2, markersize=3)
        least = min(least, np.nanmin(shares))
    axis.set_yscale("log")
    axis.set_ylim(10 ** np.floor(np.log10(least)))
    axis.yaxis.set_minor_formatter("")
    axis.set_xlabel("perturbation (grey levels) in red, green and blue")
    axis.set_title("share of values", fontsize=9.5, color=INK, loc="left")
    axis_style(axis)
