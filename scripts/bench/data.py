"""Augmented minibatches, of a set in memory and of a large one on the disk."""

import itertools
from collections.abc import Iterator

import numpy as np

from core import training
from core.batches import Augmentation, Batches
from core.imageset import from_arrays
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


def streamed(bench: Bench) -> Iterator[Row]:
    """Steps on batches of 224x224 that a thread reads from a memory map, beside steps on one that
    is there. The set is larger than what is streamed, and on a card not put there."""
    batch = 16 if bench.smoke else 64
    shape = (64 if bench.smoke else 8192, 224, 224, 3)
    path = bench.run.work / "images.npy"
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    for start in range(0, len(pixels), 64):
        pixels[start : start + 64] = np.random.default_rng(start).integers(
            0, 256, (64, *shape[1:]), np.uint8)
    pixels.flush()
    data = from_arrays(np.load(path, mmap_mode="r"), np.arange(shape[0], dtype=np.int64) % 10,
                       name="random", root={}, test=None, classes=[str(i) for i in range(10)])
    batches = Batches(data, batch, bench.run, "streamed", augmentation=Augmentation(0, True),
                      resident=False)
    model = bench.device.place(resnet18(width=64 if bench.cuda else 16, stem="imagenet"))
    stream = itertools.chain.from_iterable(map(batches.epoch, itertools.count()))
    bare = classifier_step(model, bench, *next(stream), training.Protocol())
    resident, read = bench.seconds(bare, lambda: bare.func(*next(stream)), steps=bench.steps)
    yield Row(f"streamed batches of {batch} at 224x224, trained on", batch / read, resident / read,
              memory_gb=bench.memory(), note="ratio to a batch that is there")
