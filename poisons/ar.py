"""AR: autoregressive perturbations.

Each class has an autoregressive process a channel: a 3x3 window in which the last value is a fixed
combination of the other eight. Every image gets a signal of its class, grown from noise of its own.
Source: Sandoval-Segura et al., NeurIPS 2022; code psandovalsegura/autoregressive-poisoning, whose
coefficients for 10 and 100 classes are in ar_coefficients.csv.

Deviations: none that changes the law of a signal. Along a row the recurrence is a triangular
system, solved for all images of a class at once. The finder, for numbers of classes that the table
lacks, tests all three signals of a process, whole and with borders, and gives up after 40,000
processes; the release's tests the last signal alone, cropped to 32x32 and without padding, and
takes up to 1,000,000 (`finder: released`).
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from core.config import added
from core.errors import ConfigError, UserError
from core.imageset import ImageSet, Rounding
from core.ranges import CountOrZero, Keys, Positive
from core.run import Run
from core.streams import BLOCK, by_block

VERSION = 1
SMOKE: dict = {}
TABLE = Path(__file__).with_name("ar_coefficients.csv")
TRIES = {"all_signals": 40_000, "released": 1_000_000}  # random processes that a finder looks at
AT_ONCE = 256                   # of them grown together
CROP = 4                        # of the release's finder: rows and columns dropped


@dataclass(frozen=True)
class Config(Keys):
    # of the noise, in `norm` and [0, 1] units; release: L2 1 at 32x32, 3 on STL-10
    radius: Positive = 1.0
    # of the radius; release: l2 for the published sets, linf by its default
    norm: Literal["l2", "linf"] = "l2"
    # rows and columns of a signal dropped, where it settles; release: 4, at 224x224 2
    crop: CountOrZero = 4
    # of the processes: the published ones, or found anew; auto: published, if there are any
    coefficients: Literal["auto", "table", "find"] = "auto"
    # test of a process found anew: on all its signals, or as in the release on the last alone
    finder: Literal["all_signals", "released"] = added("all_signals")
    rounding: Rounding = "round"    # to whole grey levels: nearest, as the release, or down

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "linf" and self.radius > 0.5:
            raise ConfigError("radius", f"{self.radius:g} is no linf radius; write 8/255")


def bound(config: Config) -> tuple[str, float]:
    return config.norm, config.radius


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus a signal of its class, of norm `radius`."""
    processes = coefficients(clean.num_classes, config, run)
    height, width = (side + config.crop for side in clean.image_shape)

    def rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        top, left = start_noise(rows, height, width, run)
        labels = clean.labels_at(rows)
        for label in labels.unique().tolist():
            mine = (labels == label).nonzero()[:, 0]
            grown = grow(processes[label], top[..., mine], left[..., mine])
            signal = grown[:, config.crop :, config.crop :].permute(3, 1, 2, 0)
            order = 2 if config.norm == "l2" else torch.inf
            norms = signal.flatten(1).norm(order, dim=1)
            images[mine] += (signal * (config.radius / norms)[:, None, None, None]).float()
        return images

    return clean.map_rows(rows, run, rounding=config.rounding)


def start_noise(rows: slice, height: int, width: int, run: Run
                ) -> tuple[torch.Tensor, torch.Tensor]:
    """N(0, 1) for the first two rows (3, 2, W, n) and columns (3, H - 2, 2, n) of these images'
    signals, drawn by block."""
    def normal(name: str, *shape: int) -> torch.Tensor:
        drawn = by_block(rows, lambda block: torch.randn(
            BLOCK, *shape, generator=run.stream(f"ar/{name}", block), dtype=torch.float64))
        return drawn.permute(1, 2, 3, 0).contiguous()

    return normal("top", 3, 2, width), normal("left", 3, height - 2, 2)


def grow(window: torch.Tensor, top: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Signals (C, H, W, n) from their first two rows (C, 2, W, n) and columns (C, H - 2, 2, n):

        s[i + 2, j + 2] = sum over u, v of window[u, v] * s[i + u, j + v],     window[2, 2] = 0

    with one 3x3 window a channel (C, 3, 3). The terms of the two rows above are a sum of shifts;
    those of the row itself, s[i + 2, j] and s[i + 2, j + 1], make it a triangular system.
    """
    channels, _, width, count = top.shape
    signal = top.new_empty(channels, 2 + left.shape[1], width, count)
    signal[:, :2], signal[:, 2:, :2] = top, left
    system = torch.eye(width, dtype=top.dtype).repeat(channels, 1, 1)
    inner = torch.arange(2, width)
    system[:, inner, inner - 2] = -window[:, 2, :1]
    system[:, inner, inner - 1] = -window[:, 2, 1:2]
    for i in range(2, signal.shape[1]):
        above = sum(window[:, u, v, None, None] * signal[:, i - 2 + u, v : v + width - 2]
                    for u in (0, 1) for v in (0, 1, 2))
        signal[:, i, 2:] = above
        signal[:, i] = torch.linalg.solve_triangular(system, signal[:, i], upper=False,
                                                     unitriangular=True)
    return signal


# --- coefficients ----------------------------------------------------------------------------


def coefficients(classes: int, config: Config, run: Run) -> torch.Tensor:
    """One 3x3 window a class and channel: (classes, 3, 3, 3) float64, the last entry 0 and the sum
    1. Raises UserError if there are none to be had."""
    if config.coefficients != "find":
        with open(TABLE, newline="") as file:
            lines = [line[3:] for line in csv.reader(file) if line[0] == str(classes)]
        if lines:
            values = torch.tensor([[float(value) for value in line] for line in lines],
                                  dtype=torch.float64)
            return torch.nn.functional.pad(values, (0, 1)).view(classes, 3, 3, 3)
        if config.coefficients == "table":
            raise UserError(f"ar.coefficients: the table has 10 and 100 classes, not {classes}; "
                            "write find")
    return find(classes, run, config.finder)


def find(classes: int, run: Run, finder: str = "all_signals") -> torch.Tensor:
    """Random windows, kept if their signals stay small and no earlier class's filter mistakes one
    for its own."""
    least = 10.0 if classes <= 10 else 3.0      # response of a foreign filter
    released = finder == "released"
    crop, tested, padding = (CROP, slice(-1, None), 0) if released else (0, slice(None), 2)
    found, filters = [], torch.empty(0, 3, 3, 3, dtype=torch.float64)
    run.say(f"looking for {classes} processes that differ (the table has those of 10 and 100)")
    for tried in range(0, TRIES[finder], AT_ONCE):
        for window, signals in small_processes(run.stream("ar/find", tried), crop):
            if not found or responses(signals[tested], filters, padding).min() >= least:
                found.append(window)
                filters = torch.cat([filters, as_filter(window)])
            if len(found) == classes:
                return torch.stack(found)
    raise UserError(f"ar: {TRIES[finder]} random processes gave {len(found)} that differ enough, "
                    f"too few for {classes} classes")


def small_processes(generator: torch.Generator, crop: int
                    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of AT_ONCE random windows (3, 3, 3) those whose signals stay small, each with three of them,
    without their first `crop` rows and columns, of norm 1 (3, 3, 36 - crop, 36 - crop)."""
    windows = torch.randn(AT_ONCE * 3, 9, generator=generator, dtype=torch.float64)
    windows[:, 8] = 0
    windows = (windows / windows.sum(1, keepdim=True)).view(-1, 3, 3)
    top, left = (torch.randn(AT_ONCE * 3, *shape, 3, generator=generator, dtype=torch.float64)
                 for shape in ((2, 36), (34, 2)))
    grown = grow(windows, top, left).unflatten(0, (AT_ONCE, 3)).movedim(-1, 1)
    grown = grown[..., crop:, crop:]
    norms = grown.flatten(2).norm(dim=2)
    for i in (norms <= 50).all(1).nonzero()[:, 0].tolist():         # NaN is not
        yield windows[3 * i : 3 * i + 3], grown[i] / norms[i][:, None, None, None]


def as_filter(window: torch.Tensor) -> torch.Tensor:
    """Responds with 0 to the window's own signals: (1, 3, 3, 3)."""
    matched = window.clone()
    matched[:, 2, 2] = -1
    return matched[None]


def responses(signals: torch.Tensor, filters: torch.Tensor, padding: int = 2) -> torch.Tensor:
    """Of signals (n, 3, H, W) to filters (k, 3, 3, 3), with as much border: (n, k)."""
    return torch.nn.functional.conv2d(signals, filters, padding=padding).relu().sum((2, 3))
