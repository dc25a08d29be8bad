"""What a table's cells measured beside the accuracy: PSNR and LPIPS, what is kept of the poison,
the KLD that a VAE reached, curves.

Figures draw these. The cells' records, sets and checkpoints must be there (`plan.wanted`).
"""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from core import config, files, reading, records
from core.artefact import again, read_any_meta
from core.distance import build_lpips
from core.errors import UserError
from core.imageset import ImageSet
from core.origins import clean_of
from core.perturbation import difference, measure
from core.splits import split_of
from scripts.tables import plan, wording
from scripts.tables.table import Table

LPIPS_ROWS = 2048               # images of a set that its mean LPIPS is over
COLUMNS = {"KLD reached (nats)": "kld", "PSNR to poisoned (dB)": "psnr_poisoned",
           "PSNR to clean (dB)": "psnr_clean", "LPIPS to clean": "lpips_clean",
           "kept of the poison": "kept"}


def sets_of(record: plan.Artefact) -> list[plan.Artefact]:
    """What a record's set was made through: the poison first, the set trained on last."""
    chain = []
    while (made := next((need for need in record.needs if need.job.kind in ("poisons", "purified")),
                        None)) is not None:
        chain.insert(0, made)
        record = made
    return chain


def records_of(cells: list[plan.Cell]
               ) -> dict[tuple[str, str], list[tuple[plan.Cell, dict]]]:
    """(row, column) -> its cells, one a seed, each with its record."""
    committed = records.committed()
    grouped = {}
    for cell in cells:
        record = records.load(plan.place_of(cell.record, committed))
        grouped.setdefault((cell.row.name, cell.column.name), []).append((cell, record))
    return grouped


@dataclass(frozen=True)
class Point:
    """A cell over its seeds: means, but for the accuracies (in percent)."""

    row: str
    family: str                     # the column without what `over` added
    value: str                      # of `over`, or ""
    accuracies: list[float]
    psnr_poisoned: float | None     # dB to what the purifier was given; None: not purified
    psnr_clean: float | None        # None: the clean set itself
    kld: float | None               # that the VAE reached in its last epoch, nats a position
    lpips_clean: float | None = None    # mean over images, SqueezeNet; where asked for
    kept: float | None = None       # of the poison (`share_kept`); None: not purified, or clean
    learner: bool = False           # trained by a learner of its row's or column's own

    @property
    def accuracy(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def strength(self) -> float:
        """The value of `over`, where it is a number."""
        number = config.read_number(self.value)
        if number is None:
            raise UserError(f"column {self.family}: '{self.value}' is no number to plot against")
        return float(number)


def points(table: Table, cells: list[plan.Cell], *, perceptual: bool = False
           ) -> list[Point]:
    """Every cell's numbers, in the table's order; LPIPS where `perceptual`."""
    clean: dict[str, ImageSet] = {}         # by root and rows

    def distances(chain: list[plan.Artefact]) -> tuple[float | None, ...]:
        """PSNR to the poisoned and to the clean set, LPIPS to the clean set, what is kept."""
        if not chain:
            return None, None, None, None
        final = ImageSet.load(chain[-1].out)
        key = json.dumps([final.meta["root"], final.meta.get("root_digest"), len(final)])
        if key not in clean:
            clean[key] = clean_of(final, table.settings.get("root", "data"))
        poisons = [made for made in chain if made.job.kind == "poisons"]
        given = rows_of(final, ImageSet.load(poisons[-1].out)) if poisons else clean[key]
        purified = chain[-1] not in poisons
        return (measure(given, final).psnr if purified else None,
                measure(clean[key], final).psnr,
                mean_lpips(clean[key], final) if perceptual else None,
                share_kept(clean[key], given, final) if purified and poisons else None)

    found = []
    for group in records_of(cells).values():
        row, column = group[0][0].row, group[0][0].column
        chains = [sets_of(cell.record) for cell, _ in group]
        apart = [distances(chain) for chain in chains]
        applied = [chain[-1].checkpoint for chain in chains if chain]
        klds = [kld_reached(checkpoint) for checkpoint in applied if checkpoint]
        *psnrs, lpips, kept = (mean(values) for values in zip(*apart, strict=True))
        found.append(Point(
            row.name, column.family, " ".join(column.variables.values()),
            [100 * record["accuracy_last"] for _, record in group], *psnrs, mean(klds), lpips,
            kept, bool(row.learner or column.learner)))
    return found


def rows_of(part: ImageSet, whole: ImageSet) -> ImageSet:
    """Of the set that another was made from, the rows that this has: its step may have a `split:`.
    """
    split = part.meta["root"].get("split", "train")
    if split != whole.meta["root"].get("split", "train"):
        whole = split_of(whole, split)
    return whole.first(len(part))


def lines_of(found: dict[str, list[Point]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """The points of each block (a data set; '' where a table has one alone) as a table, one line a
    cell, with the columns that some cell has a number in."""
    every = [(block, point) for block, group in found.items() for point in group]
    known = {name: key for name, key in COLUMNS.items()
             if any(getattr(point, key) is not None for _, point in every)}
    several = any(found)
    lines = [[*([block] if several else []), point.row, f"{point.family} {point.value}".strip(),
              *(number(getattr(point, key), 4 if key == "lpips_clean" else 2)
                for key in known.values()), wording.spread(point.accuracies)]
             for block, point in every]
    return (*(["data"] if several else []), "poison", "purifier", *known, wording.ACCURACY), lines


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def share_kept(clean: ImageSet, poisoned: ImageSet, purified: ImageSet) -> float:
    """How far a purified image still lies along its poison, of 1: the mean over poisoned images of
    <purified - clean, delta> / <delta, delta>. What a blur takes of an image can lie along it too:
    compare purifiers at like PSNR. NaN where no image is poisoned."""
    shares = []
    for rows in clean.slices():
        delta, left = (difference(clean, images, rows).reshape(rows.stop - rows.start, -1)
                       .astype(np.float32) for images in (poisoned, purified))
        power = (delta * delta).sum(1)
        shares.append((left * delta).sum(1)[power > 0] / power[power > 0])
    found = np.concatenate(shares)
    return float(found.mean()) if len(found) else math.nan


def mean_lpips(a: ImageSet, b: ImageSet) -> float:
    """LPIPS through SqueezeNet, small images enlarged to 32 pixels, over the first LPIPS_ROWS."""
    distance = build_lpips("squeeze", None, 32 if min(a.image_shape) < 32 else None, a.image_shape)

    def network_range(images: ImageSet, rows: slice) -> torch.Tensor:
        return torch.from_numpy(np.array(images.images[rows])).permute(0, 3, 1, 2) / 127.5 - 1

    total, count = 0.0, min(len(a), LPIPS_ROWS)
    with torch.no_grad():
        for rows in a.first(count).slices():
            total += distance(network_range(a, rows), network_range(b, rows)).sum().item()
    return total / count


def kld_reached(checkpoint: Path) -> float | None:
    """The mean KLD of the last epoch of a checkpoint's last stage; None if it has no such rate, or
    no log, as what is imported."""
    if "log_sha256" not in read_any_meta(checkpoint) and not (checkpoint / "log.jsonl").exists():
        return None
    return next((line["kld"] for line in reversed(read_log(checkpoint))
                 if isinstance(line.get("kld"), (int, float))), None)


def read_log(folder: Path) -> list[dict]:
    """The lines of a finished artefact's log.jsonl. Raises UserError if it is damaged."""
    path, meta = folder / "log.jsonl", read_any_meta(folder)
    try:
        if meta.get("log_sha256") not in (None, files.sha256(path)):
            raise ValueError
        lines = [reading.parse_json(line) for line in reading.text(path).splitlines()]
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError
    except (OSError, ValueError):
        raise UserError(f"{path} is missing, damaged or edited; {again(folder)}") from None
    return lines


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def curves(cells: list[plan.Cell]) -> dict[tuple[str, str], np.ndarray]:
    """(row, column) -> (seeds, epochs, 2): epoch and accuracy in percent. Raises UserError for a
    record of the last epoch alone, and for seeds that were tested after different epochs."""
    found = {}
    for key, group in records_of(cells).items():
        for cell, record in group:
            if len(record["curve"]) < 2:
                raise UserError(f"{cell.record.out} has the last epoch's accuracy only; evaluate "
                                f"with {record.get('learner', 'standard')}.test_every: 1")
        if len({tuple(epoch for epoch, _ in record["curve"]) for _, record in group}) > 1:
            raise UserError(f"{' x '.join(key)}: its seeds were tested after different epochs, so "
                            "they have no mean; --seeds chooses one")
        found[key] = np.array([record["curve"] for _, record in group]) * (1, 100)
    return found
