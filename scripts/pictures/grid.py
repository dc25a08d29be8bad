"""`figures.py grid`: a row of clean images, then of each set its images and their residuals, with
the accuracy of classifiers that were trained on it."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from core import records
from core.config import expand
from core.errors import UserError
from core.imageset import ImageSet
from scripts.pictures import style
from scripts.pictures.strips import WRAP, Strip, draw_strips, strip_of

RECORDS = (records.COMMITTED, Path("runs"))     # where accuracies are looked for


def load_alike(words: list[str]) -> list[tuple[str, ImageSet]]:
    """(label, set) for each [NAME=]PATH: its name, or the methods behind it, or the path where two
    share them. Raises UserError unless all come from the same clean images."""
    pairs = [("", word) if Path(expand(word)).exists() else word.rpartition("=")[::2]
             for word in words]         # a path may have a `=` of its own
    given, paths = [name for name, _ in pairs], [expand(path) for _, path in pairs]
    sets = [ImageSet.load(path) for path in paths]
    names = [name or " > ".join(map(style.name_of, other.made_by)) or Path(path).name
             for name, path, other in zip(given, paths, sets, strict=True)]
    for path, other in zip(paths, sets, strict=True):
        for what, ours, first in (("images", other.images.shape, sets[0].images.shape),
                                  ("root", other.meta["root"], sets[0].meta["root"]),
                                  ("root_digest", other.meta.get("root_digest"),
                                   sets[0].meta.get("root_digest"))):
            if ours != first and None not in (ours, first):     # older sets have no digest
                raise UserError(f"{path} has {what} {ours}, but {paths[0]} has {first}: a grid "
                                "shows the same clean images in every row")
    return [(name if names.count(name) == 1 else path, found)
            for name, path, found in zip(names, paths, sets, strict=True)]


def finished(folders: Iterable[Path]) -> Iterable[dict]:
    """Every record below these folders, once; what is no whole record is passed over."""
    found: dict[str, dict] = {}
    for _, record in records.whole(*folders):
        found.setdefault(record["fingerprint"], record)
    return found.values()


def accuracies_of(sets: list[ImageSet], found: Iterable[dict]) -> tuple[list[list[float]], str]:
    """Clean test accuracies (%) of classifiers trained on each whole set, one a seed, as far as
    `found` has records; all of one protocol, the one that most sets have, and its name."""
    protocols: dict[str, dict[str, list[float]]] = {}
    labels: dict[str, str] = {}
    rows = {other.fingerprint: len(other) for other in sets}
    for record in found:
        made = record["train"]
        protocol = json.dumps([record["protocol"], {**record["config"], "test_every": None},
                               record["test"].get("fingerprint")])
        labels[protocol] = records.labelled(
            record["protocol"], records.label(record["learner"], record["config"]))
        if rows.get(made["fingerprint"]) == made["rows"] and not record["settings"]:
            protocols.setdefault(protocol, {}).setdefault(made["fingerprint"], []).append(
                100 * record["accuracy_last"])
    if not protocols:
        return [[] for _ in sets], ""
    chosen = max(protocols, key=lambda protocol: len(protocols[protocol]))
    return ([protocols[chosen].get(other.fingerprint, []) for other in sets],
            labels[chosen])


def spread_text(accuracies: list[float]) -> str:
    """Under a set's name: '\\n95.1 ± 0.4 %', or nothing where nobody measured it."""
    if len(accuracies) < 2:
        return "".join(f"\n{value:.1f} %" for value in accuracies)
    return f"\n{statistics.mean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f} %"


def grid_strips(clean: ImageSet, named: list[tuple[str, ImageSet]], accuracies: list[list[float]],
                rows: slice) -> list[Strip]:
    """Of the clean set, then of the others; `accuracies` are in this order too."""
    original = clean.images[rows]
    labels = [style.plain_label(name, WRAP) + spread_text(values)
              for name, values in zip(["clean", *(name for name, _ in named)], accuracies,
                                      strict=True)]
    return [Strip(labels[0], original / 255, None),
            *(strip_of(label, other.images[rows], original)
              for label, (_, other) in zip(labels[1:], named, strict=True))]


def draw_grid(clean: ImageSet, named: list[tuple[str, ImageSet]], rows: slice):
    """A figure of these rows of the sets. Raises UserError where there are none."""
    if rows.start >= len(clean):
        raise UserError(f"--first {rows.start}: the set has rows 0 to {len(clean) - 1}")
    accuracies, protocol = accuracies_of([clean, *(other for _, other in named)],
                                         finished(RECORDS))
    strips = grid_strips(clean, named, accuracies, rows)
    last = rows.start + len(strips[0].images) - 1
    where = f"rows {rows.start} to {last}" if last > rows.start else f"row {last}"
    return draw_strips([("", strips)], grid_title(style.plain_label(clean.meta["name"]), where,
                                                  accuracies, protocol))


def grid_title(name: str, where: str, accuracies: list[list[float]], protocol: str) -> str:
    """What is shown, and whose accuracies stand beside it."""
    counts = sorted({len(values) for values in accuracies if values})
    if not counts:
        return f"{name}, {where}"
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return (f"{name}, {where}; %: clean test accuracy, {style.plain_label(protocol)}, "
            f"{seeds} seed{'s' if counts[-1] > 1 else ''}")
