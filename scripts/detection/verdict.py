"""From a set's scores to a verdict in words.

A score counts beside those that the same probe has on a clean set of the same kind, side, classes
and number of images. `clean.csv` holds these (`python -m scripts.detection.reference` made it), and
`measured.csv` what the verdict was on every set that was tried.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core import config
from core.errors import UserError
from core.imageset import ImageSet
from scripts.detection.probes import FOLDS, TRAINED, Scores
from scripts.detection.rows import read

CLEAN, MEASURED = (Path(__file__).with_name(name) for name in ("clean.csv", "measured.csv"))
DEVIATIONS = 4      # of a held-out accuracy, above the highest clean score
MARGIN = 0.05       # of the clean probe's errors, above that: clean sets of one kind differ too


@dataclass(frozen=True)
class Line:
    """One probe's score in [0, 1]; without a clean set to compare with there is no limit."""

    probe: str
    score: float
    clean: float | None = None      # the mean over clean sets of as many images
    limit: float | None = None      # above it no clean set is expected

    @property
    def above(self) -> bool:
        return self.limit is not None and self.score > self.limit


def references() -> list[dict]:
    """The rows of clean.csv, numbers as numbers."""
    return [{**row, **{key: int(row[key]) for key in ("side", "classes", "images")},
             "epochs": int(row["epochs"]) if row["epochs"] else None,
             "mean": float(row["mean"]), "most": float(row["most"])} for row in read(CLEAN)]


def reference_of(suspect: ImageSet, like: str | None) -> str | None:
    """The clean data set to compare with: `like`, else the one that the images come from, if its
    images have the same side and as many classes. Raises UserError for an unknown `like`."""
    known = {row["set"]: (row["side"], row["classes"]) for row in references()}
    if like is not None and like not in known:
        raise UserError(f"--like: there are no scores of a clean '{like}'"
                        + config.suggest(like, list(known), "there are of"))
    name = like or suspect.meta["root"].get("data")
    here = {*suspect.image_shape}, len(np.unique(suspect.labels))
    if name in known and ({known[name][0]}, known[name][1]) == here:
        return name
    if like is not None:
        side, classes = known[like]
        raise UserError(f"--like: clean {like} has {classes} classes of {side}x{side} pixels, the "
                        f"set {here[1]} of {'x'.join(map(str, suspect.image_shape))}: their scores "
                        "cannot be compared")
    return None


def compare(found: Scores, images: int, epochs: int, reference: str | None) -> list[Line]:
    """Each score beside the clean one at as many images; none is guessed outside what was
    measured."""
    lines = []
    for probe, score in found.items():
        rows = [row for row in references() if row["set"] == reference and row["probe"] == probe
                and row["epochs"] == (epochs if probe in TRAINED else None)]
        sizes = [row["images"] for row in rows]
        if not rows or not min(sizes) <= images <= max(sizes):
            lines.append(Line(probe, score))
            continue
        order = np.argsort(sizes)
        mean, most = (np.interp(math.log(images), np.log(sizes)[order],
                                np.array([row[key] for row in rows])[order])
                      for key in ("mean", "most"))
        held_out = images // FOLDS if probe in TRAINED else images
        deviation = math.sqrt(max(most * (1 - most), 1 / held_out) / held_out)
        limit = most + DEVIATIONS * deviation + MARGIN * (1 - most)
        lines.append(Line(probe, score, float(mean), float(limit)))
    return lines


def table(lines: list[Line]) -> list[str]:
    """The scores for people, a line each."""
    shown = [f"  {'probe':10} {'held out':>9} {'clean':>7} {'limit':>7}"]
    for line in lines:
        beside = "  no clean score for so many images and epochs" if line.limit is None else \
            f" {line.clean:7.1%} {min(line.limit, 1):7.1%}" + "  above" * line.above
        shown.append(f"  {line.probe:10} {line.score:9.1%}{beside}")
    return shown


def in_words(lines: list[Line], reference: str | None) -> list[str]:
    """The verdict, and how often it was right."""
    if all(line.limit is None for line in lines):
        return ["no verdict: no clean set of such images, as many of them and of as many classes, "
                "has been measured (--like NAME says of which kind they are)"]
    above = [line for line in lines if line.above]
    if above:
        reason = ", ".join(f"{line.probe} {line.score:.1%} where clean images have "
                           f"{line.clean:.1%}" for line in above)
        return [f"poisoned: {reason}", error_rates(reference)]
    return ["no sign of poison. This test misses noise that does not depend on the label, and a "
            "small share of poisoned images", error_rates(reference)]


def error_rates(reference: str) -> str:
    """What measured.csv says of this kind of images, in a sentence."""
    rows = [row for row in read(MEASURED) if row["like"] == reference]
    poisons = [row for row in rows if row["kind"] == "poison"]
    clean = [row for row in rows if row["kind"] == "clean"]
    missed = [row["name"] for row in poisons if not row["above"]]
    called = sum(bool(row["above"]) for row in clean)
    partly = not all(row[probe] for row in rows for probe in TRAINED)
    text = f"tried on {reference}{', some by high-pass and texture alone' if partly else ''}: " \
           f"{called} of {len(clean)} clean sets called poisoned"
    if poisons:
        text += f", {len(poisons) - len(missed)} of {len(poisons)} poisons found"
    return text + (f"; missed {', '.join(missed)}" if missed else "")
