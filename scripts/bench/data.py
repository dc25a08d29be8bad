"""Augmented minibatches."""

import itertools
from collections.abc import Iterator

from core import training
from core.batches import Augmentation, Batches
from models.resnet import resnet18
from scripts.bench.classifiers import classifier_step
from scripts.bench.clock import Bench, Row
from scripts.bench.scratch import random_set


def loader(bench: Bench) -> Iterator[Row]:
    """Crop-and-flip batches, beside what the width-64 ResNet-18 eats."""
    rows = 2560 if bench.smoke else 25_600
    batches = Batches(random_set(rows), 128, bench.run, "bench",
                      augmentation=Augmentation(4, True))
    x, y = bench.images(128)
    model = bench.device.place(resnet18(width=8 if bench.smoke else 64))
    step = classifier_step(model, bench, x, y, training.Protocol())
    epochs = itertools.count()

    def one_epoch():
        for _ in batches.epoch(next(epochs)):
            pass

    seconds, eating = bench.seconds(one_epoch, step, steps=bench.steps)
    yield Row("augmented batches of 128", rows / seconds, rows / seconds / (128 / eating),
              note="ratio to what the ResNet eats")
