"""D-VAE's theory on two Gaussians, in numbers: why a poison is what a rate limit drops first.

    python scripts/toy.py [--out toy.png]

A label y = ±1; ten image coordinates v_c ~ N(y m_c, I) with |m_c| = 2; five poison coordinates
v_s ~ N(y a, s²) in the poisoned set, N(0, 1) in clean data. A classifier (LDA) is fitted on 50,000
poisoned samples and tested on as many clean ones. Prints

    toy 1   a and s against the closed form of its clean accuracy: wide apart and narrow is strong
    toy 2   the same poison behind a VAE of rate weight beta, in closed form: above twice the
            poison's variance it is gone, and the image coordinates are still there
    toy 3   entropy and information of one poison coordinate: a strong one has few nats

and draws the first two. Source: Yu et al., ICML 2024, theorems 3.2 and 3.3, remark 3.4 and
proposition 3.5, reconstructed.
"""

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from core.command import Parser, command
from core.config import expand
from scripts.pictures import style
from scripts.tables.formats import markdown

IMAGE, POISON, DISTANCE, SAMPLES = 10, 5, 2.0, 50_000
PAIRS = ((0, 1), (0.1, 0.1), (0.3, 0.3), (0.3, 0.1), (0.3, 0.03), (1, 0.1))     # (a, s) of toy 1
BETAS = (0, 0.01, 0.05, 0.15, 0.25, 0.5, 1)                                     # of toy 2, at
A, S = 0.3, 0.1


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/toy.py", __doc__)
    parser.add_argument("--out", type=expand, default="runs/figures/toy.png",
                        help="the PNG to write")
    arguments = parser.parse_args(argv)
    out = style.picture_path(arguments.out)
    measured = [simulated_accuracy(a, s) for a, s in PAIRS]
    print(markdown(("a, s", *(f"{a}, {s}" for a, s in PAIRS)), [
        line("formula", [formula(a, s) for a, s in PAIRS]), line("measured", measured)]))
    points = [through_vae(beta) for beta in BETAS]
    print(markdown(("beta", *BETAS), [
        line("rate (nats)", [point.rate for point in points], 1),
        line("clean accuracy", [point.accuracy for point in points]),
        line("residual's class mean, a poison coordinate", [p.residual_poison for p in points]),
        line("an image coordinate", [p.residual_image for p in points])]))
    sigmas = (0.2, 0.1, 0.05)
    entropies, information = zip(*(mixture_entropy(A, sigma) for sigma in sigmas), strict=True)
    print(markdown((f"sigma (means ± {A})", *sigmas), [
        line("entropy (nats)", entropies), line("information on the label", information)]), end="")
    draw(measured, out)
    print(arguments.out, file=sys.stderr)


def line(name: str, values: Iterable[float], digits: int = 3) -> list[str]:
    return [name, *(f"{value:.{digits}f}" for value in values)]


# --- toy 1 -----------------------------------------------------------------------------------


def formula(a: float, s: float) -> float:
    """Clean accuracy of the Bayes classifier of the poisoned distribution (theorem 3.2):
    Phi(d² / sqrt(d² + m_t' S_t^-1 S_s S_t^-1 m_t)) with S_s = I, S_t = s² I, m_t = (a, ..., a)."""
    return NormalDist().cdf(DISTANCE**2 / math.sqrt(DISTANCE**2 + POISON * a**2 / s**4))


def sample(a: float, s: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features (SAMPLES, IMAGE + POISON) and labels ±1. Clean data is a = 0, s = 1."""
    labels = rng.choice([-1.0, 1.0], SAMPLES)
    features = rng.standard_normal((SAMPLES, IMAGE + POISON))
    features[:, :IMAGE] += labels[:, None] * DISTANCE / math.sqrt(IMAGE)
    features[:, IMAGE:] = s * features[:, IMAGE:] + labels[:, None] * a
    return features, labels


def lda(features: np.ndarray, labels: np.ndarray):
    """Linear discriminant analysis with its threshold in the middle of the class means."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    return LinearDiscriminantAnalysis(solver="lsqr", priors=(0.5, 0.5)).fit(features, labels)


def simulated_accuracy(a: float, s: float) -> float:
    """Of LDA fitted on poisoned samples, on clean ones."""
    rng = np.random.default_rng(0)
    return lda(*sample(a, s, rng)).score(*sample(0, 1, rng))


# --- toy 2 -----------------------------------------------------------------------------------


class Purified(NamedTuple):
    """What a rate limit made of the poisoned set."""

    rate: float                 # nats a sample
    accuracy: float             # of LDA, on clean data
    residual_image: float       # class mean of the residual, a coordinate
    residual_poison: float


def through_vae(beta: float) -> Purified:
    """The optimum of squared error + beta KL for a linear VAE on the poisoned set, then LDA.

    In each principal direction of variance v > beta / 2 the code costs log(2 v / beta) / 2 nats and
    leaves an error of beta / 2: x_hat = g x + N(0, g beta / 2) with g = 1 - beta / (2 v). The other
    directions become their mean. LDA is fitted on x_hat in the kept directions.
    """
    rng = np.random.default_rng(0)
    poisoned, labels = sample(A, S, rng)
    mean = poisoned.mean(0)
    variances, directions = np.linalg.eigh(np.cov(poisoned.T))
    kept = variances > beta / 2
    variances, directions = variances[kept], directions[:, kept]
    gain = 1 - beta / 2 / variances
    codes = (poisoned - mean) @ directions
    noise = rng.standard_normal(codes.shape) * np.sqrt(gain * beta / 2)
    codes = gain * codes + noise
    residual = np.abs(((poisoned - mean - codes @ directions.T) * labels[:, None]).mean(0))
    clean, clean_labels = sample(0, 1, rng)
    return Purified(float(np.log(2 * variances / beta).sum() / 2) if beta else math.inf,
                    lda(codes, labels).score((clean - mean) @ directions, clean_labels),
                    residual[:IMAGE].mean(), residual[IMAGE:].mean())


# --- toy 3 -----------------------------------------------------------------------------------


def mixture_entropy(mean: float, sigma: float) -> tuple[float, float]:
    """Entropy of ±mean + N(0, sigma²) and its information on the sign, nats (proposition 3.5)."""
    x, step = np.linspace(-mean - 12 * sigma, mean + 12 * sigma, 20_001, retstep=True)
    density = sum(np.exp(-((x - m) / sigma) ** 2 / 2) for m in (-mean, mean))
    density /= 2 * sigma * math.sqrt(2 * math.pi)
    density = density[density > 0]
    entropy = -float((density * np.log(density)).sum() * step)
    return entropy, entropy - math.log(2 * math.pi * math.e * sigma**2) / 2


# --- drawing ---------------------------------------------------------------------------------


def draw(measured: list[float], path: Path) -> None:
    figure = style.sheet(3.6)
    left, right = figure.subplots(1, 2)
    spreads = np.geomspace(0.02, 1, 60)
    for a, (colour, marker), dash in zip((0.1, A, 1), style.SERIES, ("--", "-", "-."),
                                         strict=False):
        dots = [(s, 100 * m) for (a_, s), m in zip(PAIRS, measured, strict=True) if a_ == a]
        left.plot(spreads, [100 * formula(a, s) for s in spreads], dash, color=colour,
                  linewidth=1.4)
        left.plot(*zip(*dots, strict=True), linestyle="none", marker=marker, color=colour,
                  label=f"class means ± {a:g}")
    left.set_xlabel("standard deviation within a class")
    style.title(left, "toy 1: a narrow poison is a strong one")

    betas = np.geomspace(0.01, 1.5, 24)
    points = [through_vae(beta) for beta in betas]
    right.plot(betas, [100 * point.accuracy for point in points], color=style.SERIES[1][0],
               marker=style.SERIES[1][1], markersize=4, linestyle="none")
    switch = 2 * poison_variance()
    right.axvline(switch, color=style.INK, linewidth=1, linestyle=":",
                  label=f"twice the poison's variance ({switch:.3f})")
    for i in (2, 10, -7, -2):
        right.annotate(f"{points[i].rate:.0f} nats", (betas[i], 100 * points[i].accuracy),
                       fontsize=style.TEXT, color=style.INK, xytext=(0, -13), ha="center",
                       textcoords="offset points")
    right.set_xlabel("beta, squared error that a nat is worth")
    style.title(right, "toy 2: a rate limit drops the poison first")
    for axis, ticks in ((left, (0.03, 0.1, 0.3, 1)), (right, (0.01, 0.03, 0.1, 0.3, 1))):
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        style.accuracy_axis(axis)
        style.axis_style(axis)
        axis.axhline(50, color=style.MUTED, linewidth=1, linestyle=(0, (6, 3)), label="chance")
    left.set_ylabel("accuracy on clean data (%)")
    right.set_ylabel("")
    style.head(figure, f"D-VAE's theory on two Gaussians; toy 2: class means ± {A}, deviation {S}\n"
               f"line: formula; points: LDA fitted on {SAMPLES:,} poisoned samples")
    style.legend(figure, left, right)
    style.save(figure, path)


def poison_variance() -> float:
    """The eigenvalue of the poisoned set's covariance that the poison's class means leave."""
    mean = np.r_[np.full(IMAGE, DISTANCE / math.sqrt(IMAGE)), np.full(POISON, A)]
    within = np.r_[np.ones(IMAGE), np.full(POISON, S**2)]
    # Four of the smallest five are s² (directions across m_t); the fifth lies along m_t.
    return float(np.linalg.eigvalsh(np.diag(within) + np.outer(mean, mean))[POISON - 1])
