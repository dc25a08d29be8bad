"""What a poison is: numbers to stdout, one picture.

    python scripts/inspect_poison.py SET [CLEAN] [--out poison.png]
    python scripts/inspect_poison.py SET --detect [--like NAME] [--epochs N]

Norms, changed pixels and rows, how well a line and the nearest class mean tell the classes from the
perturbation alone, where in the spectrum it lives, the mean perturbation of each class, and images
with their residuals. CLEAN is another set to compare with; by default the one that SET was made
from.

--detect asks without the clean images whether SET is poisoned, and draws nothing: four probes
(scripts/detection/probes.py), beside what they score on clean sets of the same kind. SET is then
anything that data= takes. Minutes on a CPU; with --epochs 10 less, but two of the probes then have
no clean scores beside them.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core import streams
from core.command import Parser, command, positive
from core.config import as_path, expand
from core.datasets import DataSettings, load
from core.errors import UserError
from core.imageset import ImageSet
from core.names import printable
from core.origins import clean_of
from core.perturbation import difference, linear_probe, measure, nearest_mean
from scripts.detection import verdict
from scripts.detection.probes import EPOCHS, sample, scores
from scripts.pictures import style
from scripts.pictures.strips import (
    WRAP,
    Strip,
    common_gain,
    gain_text,
    show_rows,
    size_of,
    strip_of,
    tile_rows,
)

SPECTRUM_ROWS = 2000
SHOWN_IMAGES = 8
SHOWN_CLASSES = 20
CLASSES_A_ROW = 10
BANDS = (("low", 0, 1 / 8), ("middle", 1 / 8, 1 / 4), ("high", 1 / 4, 1))  # cycles a pixel


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/inspect_poison.py", __doc__)
    parser.add_argument("set", type=expand, metavar="SET",
                        help="a poisoned (or purified) image set")
    parser.add_argument("clean", type=expand, metavar="CLEAN", nargs="?",
                        help="the set to compare with, as data= takes it")
    parser.add_argument("--out", type=as_path,
                        help="the PNG to write (default: SET's name, in this folder)")
    parser.add_argument("--root", type=expand, default="data",
                        help="where torchvision's data sets are")
    parser.add_argument("--detect", action="store_true", help="is SET poisoned?")
    parser.add_argument("--like", metavar="NAME", help="with --detect: the clean data set whose "
                        "scores stand beside (default: the one that SET was made from)")
    parser.add_argument("--epochs", type=positive, help="with --detect: of UDP's two probes "
                        f"(default: {EPOCHS}, UDP's)")
    arguments = parser.parse_args(argv)
    if arguments.detect:
        if arguments.clean or arguments.out:
            parser.error("--detect takes no CLEAN and no --out: it compares with no images and "
                         "draws none")
        detect(arguments)
        return
    if arguments.like or arguments.epochs:
        parser.error("--like and --epochs go with --detect")
    out = style.picture_path(arguments.out or f"{Path(arguments.set).name}.png")
    poison = load(DataSettings(arguments.set, root=arguments.root), "SET")
    clean = load(DataSettings(arguments.clean, root=arguments.root), "CLEAN") if arguments.clean \
        else clean_of(poison, arguments.root)
    found = measure(clean, poison)
    if not np.array_equal(clean.labels, poison.labels):
        raise UserError(f"{arguments.clean} has other labels than {arguments.set}: row i of one is "
                        "not row i of the other")
    if found.changed_rows == 0:
        raise UserError(f"{arguments.set} does not differ from the set it is compared with: name a "
                        "poisoned or purified one, or its clean images as CLEAN")
    spectra = Spectra.of(clean, poison)
    means = class_means(clean, poison)
    print_summary(arguments.set, poison, clean, found, spectra, means)
    style.save(draw(poison, clean, spectra, means), out)
    print(out, file=sys.stderr)


# --- without the clean images ----------------------------------------------------------------


def detect(arguments: argparse.Namespace) -> None:
    """Print the probes' scores and the verdict."""
    epochs = arguments.epochs or EPOCHS
    whole = load(DataSettings(arguments.set, root=arguments.root), "SET")
    suspect = sample(whole)
    reference = verdict.reference_of(suspect, arguments.like)
    lines = verdict.compare(scores(suspect, epochs), len(suspect), epochs, reference)
    parts = f", {len(suspect)} of them looked at" if len(suspect) < len(whole) else ""
    print(printable(f"{arguments.set}: {len(whole)} images of {whole.num_classes} classes{parts}; "
                    f"beside clean {reference or 'sets: none'}"))
    print(*verdict.table(lines), *verdict.in_words(lines, reference), sep="\n")


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
        parts = [rows[start : start + 256] for start in range(0, len(rows), 256)]

        def centred(part: np.ndarray) -> np.ndarray:
            images = clean.images[part].astype(np.float32)
            return images - images.mean((1, 2), keepdims=True)

        delta = (difference(clean, poison, part).astype(np.float32) for part in parts)
        return cls(*radial(delta), radial(map(centred, parts))[1])

    def share(self, low: float, high: float) -> float:
        return float(self.perturbation[(self.radius >= low) & (self.radius < high)].sum())


def radial(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Radii and the share of power of images, in parts (n, H, W, 3), in rings one frequency step
    wide."""
    power = sum(((np.abs(np.fft.fft2(part, axes=(1, 2))) ** 2).sum((0, 3)) for part in parts),
                np.float64(0))
    height, width = power.shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    step = 1 / min(height, width)
    rings = np.round(frequency / step).astype(int)
    total = np.bincount(rings.ravel(), power.ravel())
    return np.arange(len(total)) * step, total / max(total.sum(), 1e-12)


def class_means(clean: ImageSet, poison: ImageSet) -> np.ndarray:
    """The mean perturbation of each class, in grey levels (K, H, W, 3)."""
    total = np.zeros((clean.num_classes, *clean.images.shape[1:]))
    for rows in clean.slices():
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
    power = np.square(means).mean((1, 2, 3))[clean.labels].mean()       # of each row's class mean
    shared = power / (255**2 * 10 ** (-found.psnr / 10))
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
        ("linear probe", "nothing to tell apart" if probe is None
         else f"{probe:.1%} held out (chance {chance:.1f} %)"),
        ("nearest class mean", "nothing to tell apart" if nearest is None
         else f"{nearest:.1%} held out"),
        ("shared by the class", f"{shared:.1%} of the power"),
        ("power by frequency", ", ".join(f"{band} {spectra.share(low, high):.0%}"
                                         for band, low, high in BANDS)),
    ):
        print(f"  {name:20} {text}")


# --- picture ---------------------------------------------------------------------------------


def draw(poison: ImageSet, clean: ImageSet, spectra: Spectra, means: np.ndarray):
    """Eight images with their residuals over the class means, spectrum and histogram."""
    name = style.name_of((poison.made_by or [poison.meta["name"]])[-1])
    chosen = np.sort(streams.rng(0, "shown").permutation(len(clean))[:SHOWN_IMAGES])
    original = clean.images[chosen]
    strips = [Strip("clean", original / 255, None),
              strip_of(style.plain_label(name, WRAP), poison.images[chosen], original)]
    gain = common_gain(strips)
    rows = tile_rows(strips, gain)
    width, height = size_of(rows)
    tiles = 0.9 * -(-min(len(means), SHOWN_CLASSES) // CLASSES_A_ROW)
    figure = style.sheet(height + tiles + 3.2, width)
    upper, middle, lower = figure.subfigures(3, 1, height_ratios=(height + 0.5, tiles + 0.3, 2.4))
    images = upper.subplots()
    show_rows(images, rows)
    style.title(images, gain_text(gain))
    show_means(middle, means, clean.meta["classes"])
    left, right = lower.subplots(1, 2)
    show_spectrum(left, spectra, name)
    show_histogram(right, clean, poison)
    style.head(figure, style.plain_label(f"{name} on {poison.meta['name']}, {len(poison)} image"
                                         f"{'s' if len(poison) > 1 else ''}"))
    return figure


def show_means(figure, means: np.ndarray, classes: list[str]) -> None:
    """The mean perturbation of the first classes around mid-grey, at a scale of their own: it may
    be far smaller than that of an image."""
    shown = means[:SHOWN_CLASSES]
    gain = 127.5 / (np.quantile(np.abs(shown), 0.99) or np.abs(shown).max() or 127.5)
    lines = -(-len(shown) // CLASSES_A_ROW)
    axes = figure.subplots(lines, min(len(shown), CLASSES_A_ROW), squeeze=False)
    for i, axis in enumerate(axes.ravel()):
        axis.set_axis_off()
        if i < len(shown):
            axis.imshow(np.clip(0.5 + gain * shown[i] / 255, 0, 1))
            axis.set_title(style.plain_label(str(classes[i]), 9, 2), fontsize=style.TEXT,
                           color=style.INK, pad=2)
    which = "each class" if len(means) <= SHOWN_CLASSES else \
        f"the first {SHOWN_CLASSES} of {len(means)} classes"
    figure.suptitle(f"mean perturbation of {which}, × {gain:.3g} around mid-grey", x=0.01,
                    ha="left", fontsize=style.TEXT, color=style.INK)


def show_spectrum(axis, spectra: Spectra, name: str) -> None:
    least = 1e-4        # of the axis; what has no power at all lies below it
    radius = spectra.radius[1:]
    images, own = (np.maximum(shares[1:], least / 10)
                   for shares in (spectra.images, spectra.perturbation))
    axis.plot(radius, own, color=style.BAD, linewidth=1.8, label=style.plain_label(name, WRAP))
    axis.plot(radius, images, "--", color=style.MUTED, linewidth=1.4, label="clean images")
    axis.set_yscale("log")
    axis.set_ylim(least, 1)
    axis.set_xlim(0, radius[-1])
    axis.set_xlabel("frequency (cycles a pixel)")
    axis.legend(fontsize=style.TEXT, loc="lower left", frameon=False)
    style.title(axis, "share of power")
    style.axis_style(axis)


def show_histogram(axis, clean: ImageSet, poison: ImageSet) -> None:
    """How often each value of the perturbation occurs in images that have one, a channel a line."""
    changed = np.flatnonzero([(clean.images[row] != poison.images[row]).any()
                              for row in range(len(clean))])
    height, width = clean.image_shape           # of large images fewer have as many values
    rows = min(SPECTRUM_ROWS, max(200, SPECTRUM_ROWS * 64 * 64 // (height * width)))
    delta = difference(clean, poison, changed[:rows])
    reach = int(np.quantile(np.abs(delta[delta != 0]), 0.9995)) + 1
    step = -(-reach // 40)
    edges = np.arange(-(reach // step) * step, reach + step + 1, step) - step / 2
    least = 0.5
    for channel, (name, look, colour) in enumerate((
            ("red", "-", style.RED), ("green", "--", style.GREEN), ("blue", ":", style.BLUE))):
        counts, _ = np.histogram(delta[..., channel], edges)
        shares = np.where(counts, counts / delta[..., channel].size, np.nan)
        axis.plot(edges[:-1] + step / 2, shares, look, color=colour, linewidth=1.6, marker=".",
                  markersize=4, label=name)
        least = min(least, np.nanmin(shares))
    axis.set_yscale("log")
    axis.set_ylim(10 ** np.floor(np.log10(least)), 1)
    axis.yaxis.set_minor_formatter("")
    axis.set_xlabel("perturbation (grey levels of 255)")
    axis.legend(fontsize=style.TEXT, frameon=False, loc="best")
    style.title(axis, "share of values" if step == 1 else f"share of values, in steps of {step}")
    style.axis_style(axis)
