"""How good an encoder is: a linear classifier on its frozen features, and k nearest neighbours.

Source: code kaiwenzha/contrastive-poisoning, evaluation.py (the probe: SGD on 512 features for 100
epochs, from clean labelled images even where the encoder saw poisoned ones); of the neighbours, Wu
et al. 2018 (InstDisc), with the numbers of code facebookresearch/moco, branch colab-notebook.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from core import views
from core.batches import Augmentation, Batches
from core.checkpoint import learned_from
from core.config import added
from core.errors import UserError
from core.graphs import set_rate, sgd
from core.imageset import ImageSet
from core.loop import Loop, note_beyond
from core.origins import clean_of, note_own
from core.ranges import (
    BatchSize,
    BelowOne,
    Count,
    CountOrZero,
    Keys,
    Positive,
    PositiveOrZero,
    Share,
)
from core.run import Run
from core.training import TEST_BATCH, Result, count_right, in_order, result_of, right
from core.views import Views

# the labelled images that judge an encoder, and what of them stands in a record beside the set
Judges = tuple[ImageSet, tuple[dict, ...]]
QUERIES = 1000          # rows whose cosines with all others are held at a time
# Of Views, what the probe's training images go without: they are cropped and mirrored alone.
PLAIN = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarize": 0.0, "cutout": 0, "noise": 0.0}


@dataclass(frozen=True)
class Probe(Keys):
    """How the linear classifier is trained. Defaults: CP's."""

    # whose images and labels it learns from: the clean ones that the set was made from, or the set
    # itself, as it is released; CP: clean
    data: Literal["clean", "released"] = "clean"
    epochs: Count = 100                 # passes over them; CP: 100
    batch_size: BatchSize = 512         # images a step; CP: 512
    learning_rate: Positive = 1.0       # at the start; CP: 1
    momentum: BelowOne = 0.9            # of SGD; CP: 0.9
    weight_decay: PositiveOrZero = 0.0  # L2 penalty in the gradient; CP: none
    milestones: tuple[Count, ...] = (60, 75, 90)    # epochs after which the rate falls; CP
    gamma: Share = 0.2                  # factor on the rate at each of them; CP: a fifth
    # black pixels a side before a random crop of the whole size, in the place of the learner's own
    # crops; null: these, as CP; AdvCL: 4
    crop_padding: CountOrZero | None = added(None)


def images_of(train: ImageSet, probe: Probe, run: Run) -> Judges:
    """What judges an encoder trained on `train`. Raises UserError if it is not there."""
    if probe.data == "released":
        return train, ()
    if not train.meta["lineage"]:
        note_own(train, "their labels are no clean ones: import the set beside its clean images "
                 "(scripts/import_poison.py)")
        return train, ()
    clean = clean_of(train, run.settings.get("root", "data"))
    return clean, (learned_from(clean, rows="those of the set", originals=len(clean)),)


def linear_probe(network: nn.Module, channels: int, data: ImageSet, test: ImageSet, probe: Probe,
                 seen: Views, run: Run, name: str = "probe") -> Result:
    """Train a linear classifier on the features of `network`, frozen and in eval mode, of images
    cropped and mirrored as `seen` or `probe.crop_padding` says; resumable under `name`. Its train
    accuracy is on these."""
    network.eval()
    with run.initialisation(f"{name}/linear"):
        linear = nn.Linear(channels, data.num_classes).to(run.device.torch)
    optimizer = sgd(linear, run.device, lr=probe.learning_rate, momentum=probe.momentum,
                    weight_decay=probe.weight_decay)
    padded = probe.crop_padding is not None
    augmentation = Augmentation(probe.crop_padding, seen.flip > 0) if padded else Augmentation()
    batches = Batches(data, min(probe.batch_size, len(data)), run, name, drop_last=False,
                      augmentation=augmentation)
    cropped = dataclasses.replace(seen, **PLAIN)
    of_test, answers = features(network, test, run)
    curve: list[list] = []
    note_beyond(run, probe.epochs, milestones=probe.milestones)
    loop = Loop(run, name, probe.epochs, linear=linear, optimizer=optimizer, curve=curve)
    for epoch in loop:
        rate = probe.learning_rate * probe.gamma ** sum(epoch >= at for at in probe.milestones)
        for images, labels in loop.steps(batches):
            if not padded:
                images = views.fresh(images, cropped, run.stream(f"{name}/views", loop.number))
            with torch.no_grad(), run.device.autocast():
                found = network.features(images).float()
            set_rate(optimizer, rate, run.device)
            logits = linear(found)
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loop.add(len(labels), loss=loss, train_accuracy=right(logits, labels))
        with torch.no_grad():
            accuracy = count_right(linear, [(of_test, answers)]) / len(test)
        curve.append([epoch + 1, accuracy])
        loop.end_epoch(accuracy=accuracy)
    return result_of(curve, loop)


@torch.no_grad()
def features(network: nn.Module, data: ImageSet, run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 (N, channels) of the images as they are, in eval mode, and their labels (N,)."""
    network.eval()
    parts = []
    for images, labels in in_order(data, TEST_BATCH, run):
        with run.device.autocast():
            parts.append((network.features(images).float(), labels))
    found, labels = zip(*parts, strict=True)
    return torch.cat(found), torch.cat(labels)


# --- neighbours ------------------------------------------------------------------------------


def check_neighbours(neighbours: int, data: ImageSet, method: str) -> None:
    """Raise UserError if there are fewer images than neighbours."""
    if neighbours > len(data):
        raise UserError(f"{method}.neighbours: the probe has {len(data)} images, fewer than "
                        f"{neighbours} neighbours: lower it")


def knn_accuracy(network: nn.Module, data: ImageSet, test: ImageSet, neighbours: int,
                 temperature: float, run: Run) -> float:
    """Share of test images that their nearest neighbours in `data`, by the cosine of features,
    label right; NaN where features are not finite, as of an encoder whose training diverged."""
    bank, labels = features(network, data, run)
    queries, answers = features(network, test, run)
    if not (bank.isfinite().all() and queries.isfinite().all()):
        return math.nan
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    hits = 0
    for part, wanted in zip(queries.split(QUERIES), answers.split(QUERIES), strict=True):
        cosines, rows = (part @ bank.T).topk(neighbours, dim=1)
        hits += (votes(cosines, labels[rows], data.num_classes, temperature).argmax(1)
                 == wanted).sum()
    return int(hits) / len(test)


def votes(cosines: torch.Tensor, labels: torch.Tensor, num_classes: int, temperature: float
          ) -> torch.Tensor:
    """Score (B, num_classes) of each class: the sum of exp(cosine / temperature) over its
    neighbours, of (B, k)."""
    scores = cosines.new_zeros(len(cosines), num_classes)
    return scores.scatter_add_(1, labels, (cosines / temperature).exp())
