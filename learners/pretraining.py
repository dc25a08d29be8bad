"""The loop of SimCLR, MoCo and BYOL: an encoder learns from two views of each image without labels,
and a linear probe on its frozen features gives the accuracy.

Defaults are Contrastive Poisoning's protocol for victims (He, Zha and Katabi, ICLR 2023; code
kaiwenzha/contrastive-poisoning, main.py). Of several processes (torchrun) each takes its share of
every batch; batch statistics, losses and the queue are of the whole batch, as with one.

Deviations: each step draws one order of the colour operations for its batch, and grey levels are
not rounded between operations (core.views). On a GPU networks compute in bf16, where CP has
float32 (`precision: fp32`).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from core import views
from core.batches import Batches
from core.contrastive import RATES, cosine_rate
from core.errors import UserError
from core.graphs import set_rate, sgd
from core.imageset import ImageSet
from core.loop import Loop, note_beyond
from core.ranges import (
    BatchSize,
    BelowOne,
    Count,
    CountOrZero,
    Keys,
    Positive,
    PositiveOrZero,
    Range,
)
from core.run import Run
from core.training import Normalised, Result, check_normalisation
from core.views import Views
from learners.batchnorm import synchronise
from learners.probe import (
    Judges,
    Probe,
    check_neighbours,
    images_of,
    knn_accuracy,
    linear_probe,
)
from models import contrastive as networks
from models.classifiers import Architecture, Stem, check_images

SMOKE = {"width": 8, "epochs": 2, "steps": None, "batch_size": 64, "test_every": 1,
         "neighbours": 10, "probe.epochs": 2, "probe.batch_size": 16}
# (encoder, channels of its features) -> a method of core.contrastive's kind
Make = Callable[[nn.Module, int], nn.Module]
# (images of the whole batch, its generator, this process's rows) -> what the method compares
See = Callable[[torch.Tensor, torch.Generator, slice], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Pretraining(Keys):
    """What the three have in common."""

    epochs: Count = 1000                # passes over the set; CP: 1,000
    # minibatches after which pre-training ends, epochs or not; null: `epochs` count
    steps: Count | None = None
    batch_size: BatchSize = 512         # images a step, over all processes; CP: 512 (4 x 128)
    # that the cosine falls from, to a thousandth of it; CP, SimCLR: 0.5
    learning_rate: Positive = RATES["simclr"]
    momentum: BelowOne = 0.9            # of SGD; CP: 0.9
    # L2 penalty in the gradient, on all weights; CP: 1e-4
    weight_decay: PositiveOrZero = 1e-4
    # epochs in which the rate climbs step by step to the cosine; CP: 10, for victims alone
    warmup_epochs: CountOrZero = 10
    warmup_from: Positive = 0.01        # the rate that the climb starts with; CP: 0.01
    # factor on the plain loss, under which CP's rates hold; core.contrastive says where it is from
    loss_scale: Positive = 1.0
    architecture: Architecture = "resnet18"     # the encoder; CP: resnet18
    # channels of resnet18's first group, He et al. 2016: 64; others have width / 64 of their own
    width: Count = 64
    # of resnet18 and torchvision's: cifar keeps a small image's size; auto: by the size
    stem: Stem = "auto"
    # of R, G, B, taken off inside the model; null: images stay in [0, 1]; CP: see `for:`
    mean: tuple[float, ...] | None = None
    # of R, G, B, divided by inside the model; goes with `mean`
    std: tuple[Positive, ...] | None = None
    views: Views = field(default_factory=Views)     # what is seen of an image
    # epochs between tests by neighbours on the clean test set; 0: after the last one only; ours
    test_every: CountOrZero = 50
    neighbours: Count = 200             # whose labels count in that test; InstDisc: 200
    # of their weights; MoCo's demo: 0.1. Float32 holds no exp(1/t) of much less than 0.02
    knn_temperature: Annotated[float, Range(at_least=0.02)] = 0.1
    probe: Probe = field(default_factory=Probe)     # the linear classifier behind the encoder

    def __post_init__(self) -> None:
        super().__post_init__()
        check_normalisation(self.mean, self.std)

    def check_images(self, shape: tuple[int, int]) -> None:
        check_images(self.architecture, self.views.shape_of(shape), self.stem)


def fit(make: Make, train: ImageSet, test: ImageSet, config: Pretraining, run: Run,
        see: See | None = None, judges: Judges | None = None) -> Result:
    """Pre-train an encoder with the method that make(network, channels) gives, and probe it.
    `make` gets the encoder, behind its normalisation, and the channels of its features; the method
    gets what `see` gives, by default two views. `judges`: `images_of`, where the caller has it."""
    known, saw = judges or images_of(train, config.probe, run)
    check_neighbours(config.neighbours, known, run.job.method)
    if config.batch_size % run.world.size:
        raise UserError(f"{run.job.method}.batch_size: {run.world.size} processes cannot share "
                        f"{config.batch_size} images equally")
    bare, channels = build(train, config, run)
    network = AtSize(bare, config.views.shape_of(train.image_shape))
    if config.mean is not None:
        network = Normalised(network, config.mean, config.std)
    with run.initialisation("heads"):
        method = make(network, channels)
    knn: list[list] = []
    step = Step(run.device.place(method), see or two_views(config, train.image_shape), config, run)
    loop = pretrain(step, train, config, run, knn,
                    lambda: knn_accuracy(network, known, test, config.neighbours,
                                         config.knn_temperature, run))
    found = linear_probe(network, channels, known, test, config.probe, config.views, run)
    return dataclasses.replace(     # the accuracies are the probe's, the time the encoder's
        found, epochs=loop.epochs, images=loop.images, seconds=loop.seconds,
        images_per_second=loop.images_per_second, saw=saw, network=bare,
        probe={"data": config.probe.data, "images": known.meta["name"], "rows": len(known),
               "fingerprint": known.fingerprint, "features": channels,
               "loss_scale": config.loss_scale, "knn": [list(point) for point in knn]})


class AtSize(nn.Module):
    """An encoder whose images may have another size than the views it is trained on."""

    def __init__(self, network: nn.Module, shape: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.shape = network, shape

    def features(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[2:] != self.shape:
            images = F.interpolate(images, self.shape, mode="bilinear", antialias=True)
        return self.network.features(images)


def build(train: ImageSet, config: Pretraining, run: Run) -> tuple[nn.Module, int]:
    """The freshly initialised encoder for such images, and the channels of its features."""
    with run.initialisation("encoder"):
        return networks.encoder(config.architecture, train.num_classes,
                                config.views.shape_of(train.image_shape), config.width, config.stem)


def two_views(config: Pretraining, shape: tuple[int, int]) -> See:
    """Of images of this (height, width). Every process draws for the whole batch."""
    def see(images, generator, mine):
        return tuple(views.apply(images[mine], views.draw(config.views, len(images), shape,
                                                          generator, images.device).part(mine))
                     for _ in range(2))

    return see


class Step:
    """Takes one step of SGD on `method`: (images (B, 3, H, W) in [0, 1], number of the step, rate)
    -> the plain loss of the batch, of which every process has its part."""

    def __init__(self, method: nn.Module, see: See, config: Pretraining, run: Run) -> None:
        synchronise(method, run.world)
        if run.device.compile:
            for part in method.children():
                part.compile(dynamic=False)
        self.method, self.see, self.scale, self.run = method, see, config.loss_scale, run
        self.optimizer = sgd(method, run.device, lr=config.learning_rate, momentum=config.momentum,
                             weight_decay=config.weight_decay)

    def __call__(self, images: torch.Tensor, number: int, rate: float) -> torch.Tensor:
        run, world = self.run, self.run.world
        set_rate(self.optimizer, rate, run.device)
        seen = self.see(images, run.stream("pretraining/views", number), world.part(len(images)))
        with run.device.autocast():
            loss = self.method(*seen, world=world)
        self.optimizer.zero_grad(set_to_none=True)
        (self.scale * loss).backward()
        loss = world.average(self.method, loss)
        self.optimizer.step()
        return loss


def pretrain(step: Step, train: ImageSet, config: Pretraining, run: Run, knn: list[list],
             neighbours: Callable[[], float]) -> Loop:
    """Take the steps, resumable, with tests of `neighbours()`, which are put into `knn`."""
    batches = Batches(train, config.batch_size, run, "pretraining", last_step=config.steps)
    epochs = config.epochs if config.steps is None else -(-config.steps // len(batches))
    note_beyond(run, epochs, warmup_epochs=config.warmup_epochs)
    loop = Loop(run, "pretraining", epochs, method=step.method, optimizer=step.optimizer, knn=knn)
    for epoch in loop:
        step.method.train()
        for images, _ in loop.steps(batches):
            rate = learning_rate(config, loop.number, epochs, len(batches))
            loop.add(len(images), loss=step(images, loop.number, rate))
        last, tested = epoch == loop.epochs - 1, {}
        if last or (config.test_every and (epoch + 1) % config.test_every == 0):
            tested = {"knn_accuracy": neighbours()}
            knn.append([epoch + 1, tested["knn_accuracy"]])
        loop.end_epoch(**tested)
    return loop


def learning_rate(config: Pretraining, step: int, epochs: int, steps_per_epoch: int) -> float:
    """Of one step, counted over all epochs: a straight climb in the first `warmup_epochs`, to where
    the cosine is at their end, and from there the cosine, which changes once an epoch."""
    if step < config.warmup_epochs * steps_per_epoch:
        top = cosine_rate(config.learning_rate, min(config.warmup_epochs, epochs), epochs)
        share = step / (config.warmup_epochs * steps_per_epoch)
        return config.warmup_from + (top - config.warmup_from) * share
    return cosine_rate(config.learning_rate, step // steps_per_epoch + 1, epochs)
