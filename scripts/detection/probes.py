"""How well simple learners tell the classes of images that they have not seen.

A shortcut is easy and a class is not: what a probe scores above its score on clean images of the
same kind and number is a sign of poison. Four probes:

    linear      logistic regression on the pixels
    two-layer   one hidden layer of as many units as an image has values, crop and flip on the
                held-out images too
    high-pass   ridge regression on what the mean of 3x3 pixels leaves of an image: noise at a fixed
                place is there, and little of an object
    texture     ridge regression on the mean products of any two pixels of a window of 3x3, each
                window centred and scaled: a process (AR) and a blur (CUDA) are there wherever they
                lie, and what an attack draws (TAP) too

Source of the first two: UDP (AAAI 2024, poison_detection.py), whose last split is 40,000/10,000
images; here it is four fifths and one fifth of at most MOST_ROWS. The other two are ours, and held
out five times, so that every image counts: a window's scaling is MSCN's (Mittal et al. 2012).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core import streams
from core.batches import Augmentation, Batches
from core.device import DeviceSettings, resolve
from core.errors import UserError
from core.imageset import ImageSet, to_floats
from core.run import Run
from core.training import Protocol, count_right, train_classifier
from models.classifiers import Headed, classifier
from scripts.bench.scratch import scratch_run

TRAINED = ("linear", "two-layer")       # by gradient steps: their scores depend on the epochs
PROBES = (*TRAINED, "high-pass", "texture")
LEAST_ROWS, MOST_ROWS = 200, 2000   # fewer say nothing; clean values of more were not measured
SIDES = 3, 64           # pixels: a window, and what the high-pass probe sees in minutes
FOLDS = 5               # an image in five is held out, as in UDP
EPOCHS = 100            # UDP on CIFAR-10
NOISE_FLOOR = 2 / 255   # added to a window's contrast a pixel: flat windows are mostly rounding
Scores = dict[str, float]
Rows = np.ndarray


def scores(suspect: ImageSet, epochs: int = EPOCHS, seed: int = 0,
           probes: Sequence[str] = PROBES) -> Scores:
    """Held-out accuracy of each probe in [0, 1] on a set from `sample`. `epochs` are those of
    linear and two-layer."""
    order = streams.rng(seed, "probe").permutation(len(suspect))
    device = resolve(DeviceSettings(precision="fp32", compile="false"))
    found = {}
    for name in probes:
        if name in TRAINED:
            with scratch_run(device, "probe", seed) as run:
                found[name] = trained(name, suspect, order, epochs, run)
        else:
            features = by_part(high_pass if name == "high-pass" else texture, suspect.images)
            found[name] = ridge(features, suspect.labels, order)
    return found


def sample(suspect: ImageSet, seed: int = 0, most: int = MOST_ROWS) -> ImageSet:
    """At most so many random rows, in order. Raises UserError for a set that says nothing."""
    height, width = suspect.image_shape
    if min(height, width) < SIDES[0] or max(height, width) > SIDES[1]:
        raise UserError(f"--detect: its probes take images of {SIDES[0]} to {SIDES[1]} pixels a "
                        f"side, not {height}x{width}")
    if len(suspect) < LEAST_ROWS:
        raise UserError(f"--detect: {len(suspect)} images are too few; its probes need "
                        f"{LEAST_ROWS}")
    if (np.bincount(suspect.labels) >= 2 * FOLDS).sum() < 2:
        raise UserError("--detect: its probes tell classes apart, and fewer than two have "
                        f"{2 * FOLDS} images")
    rows = np.sort(streams.rng(seed, "sample").permutation(len(suspect))[:most])
    return suspect.subset(rows, f"{most} rows, seed {seed}")


# --- UDP's -----------------------------------------------------------------------------------


def trained(name: str, suspect: ImageSet, order: Rows, epochs: int, run: Run) -> float:
    """Accuracy of UDP's linear or two-layer network on the first fifth of the rows, trained on the
    rest."""
    held_out, train = np.split(order, [len(order) // FOLDS])
    # UDP crops with 4 pixels of 32.
    augmentation = Augmentation(suspect.image_shape[0] // 8, True) if name == "two-layer" \
        else Augmentation()
    protocol = Protocol(
        epochs=epochs, batch_size=128, drop_last=False, learning_rate=0.01, weight_decay=5e-4,
        schedule="multistep", clip_norm=None, crop_padding=augmentation.crop_padding,
        flip=augmentation.flip,     # and the rate falls after 75 and 90 of 100 epochs
        milestones=tuple(sorted({max(1, round(epochs * part)) for part in (0.75, 0.9)})))
    with run.initialisation(name):
        network = probe(name, suspect)
    network, _ = train_classifier(network, suspect.subset(train, "train"), None, protocol, run,
                                  name)
    unseen = Batches(suspect.subset(held_out, "held out"), len(held_out), run, f"{name}/held out",
                     augmentation=augmentation, shuffle=False)
    with torch.inference_mode():
        return count_right(network.eval(), unseen.epoch(0)) / len(held_out)


def probe(name: str, suspect: ImageSet) -> nn.Module:
    if name == "linear":
        return classifier("linear", suspect.num_classes, suspect.image_shape)
    values = suspect.images[0].size
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(values, values), nn.ReLU())
    return Headed(hidden, values, suspect.num_classes)


# --- ours ------------------------------------------------------------------------------------


def ridge(features: np.ndarray, labels: np.ndarray, order: Rows) -> float:
    """Accuracy of ridge regression on one fifth of the rows after another, fitted to the rest."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    hits = 0
    for held_out in np.array_split(order, FOLDS):
        train = np.setdiff1d(order, held_out)
        # A tenth of as many observations as features: the penalty hardly matters.
        line = make_pipeline(StandardScaler(), RidgeClassifier(alpha=features.shape[1] / 10))
        line.fit(features[train], labels[train])
        hits += (line.predict(features[held_out]) == labels[held_out]).sum()
    return float(hits / len(order))


def by_part(features: Callable[[torch.Tensor], torch.Tensor], images: np.ndarray) -> np.ndarray:
    """Features of uint8 (N, H, W, 3), 250 images in memory at a time: float32 (N, features)."""
    parts = (to_floats(torch.from_numpy(np.array(images[start : start + 250])))
             for start in range(0, len(images), 250))
    return np.concatenate([features(part).flatten(1).numpy() for part in parts])


def high_pass(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) less the mean of 3x3 pixels, at the rim of those that there are."""
    return images - F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)


def texture(images: torch.Tensor) -> torch.Tensor:
    """Of each channel the mean products (B, 3, 45) of the pixels of a 3x3 window, which was centred
    and divided by its contrast: (B, 3, H, W) in [0, 1] at least 3x3."""
    windows = F.unfold(images.flatten(0, 1)[:, None], 3)            # (3B, 9, places)
    windows = windows - windows.mean(1, keepdim=True)
    windows = windows / (windows.norm(dim=1, keepdim=True) + 3 * NOISE_FLOOR)
    products = windows @ windows.mT / windows.shape[2]
    first, second = torch.triu_indices(9, 9)
    return products[:, first, second].unflatten(0, (-1, 3))
