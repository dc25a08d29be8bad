"""The one SGD loop for classifiers: learners, surrogates and probes share it.

It computes in the run's precision: bf16 on a GPU, where the papers' code has float32, unless
`precision: fp32` says so.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.batches import Augmentation, Batches
from core.config import added
from core.device import Device, to_device
from core.errors import ConfigError, UserError
from core.graphs import Recorded, adam, set_rate, sgd
from core.imageset import ImageSet, to_floats
from core.loop import Loop, note_beyond
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
from core.views import Views

TEST_BATCH = 500                        # images of at most 32x32 a pass; of larger ones as many
FEWEST = {"cpu": 8, "cuda": 128}        # pixels, but so many images
# loss(model, images, labels, step) -> (the mean loss, the logits that training accuracy is of).
# Calling `model` gives float32 logits in the run's precision; a loss that attacks it in eval mode
# leaves it in train mode.
Loss = Callable[[nn.Module, torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
# transform(images, labels, step) -> (images, labels); labels int64 (B,), or float (B, K), the share
# of each class. What a loss or a transform draws comes from run.stream(NAME, step): `step` counts
# on over the epochs, so that a resumed run draws the same.
Transform = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
# before_crop(images, step) -> images, uint8 (B, H, W, 3) as they are stored, or floats in grey
# levels: what comes before crop and flip.
BeforeCrop = Callable[[torch.Tensor, int], torch.Tensor]
RateSchedule = Literal["cosine", "multistep", "warm_multistep", "onecycle", "constant"]
WARM_FROM = 1e-3        # warm_multistep's first rate (code Sizhe-Chen/SEP)


@dataclass(frozen=True)
class Protocol(Keys):
    """How a classifier is trained. Defaults: EM's 60 epochs, which D-VAE uses too."""

    # passes over the set; EM's release: 60 on CIFAR-10, 100 on CIFAR-100
    epochs: Count = 60
    # minibatches after which training ends, epochs or not; null: `epochs` count
    steps: Count | None = None
    batch_size: BatchSize = 128     # images a step; EM's release
    drop_last: bool = True          # leave out an epoch's incomplete last batch; EM's release
    optimizer: Literal["sgd", "adam"] = added("sgd")    # what takes the steps; EM's release: SGD
    learning_rate: Positive = 0.1   # at the start; EM's release
    momentum: BelowOne = 0.9        # of SGD; of Adam its first beta; EM's release
    nesterov: bool = False          # SGD's momentum in Nesterov's form; EM's release: not
    # L2 penalty in the gradient, on all weights; EM's release
    weight_decay: PositiveOrZero = 5e-4
    schedule: RateSchedule = "cosine"   # of the learning rate; EM's release: cosine, to 0
    milestones: tuple[Count, ...] = ()  # of multistep, in epochs, or in steps if `steps` is set
    gamma: Share = 0.1              # factor on the rate at each milestone; every protocol: a tenth
    # largest L2 norm of the gradient; null: no clipping; EM's release: 5
    clip_norm: Positive | None = 5.0
    # black pixels a side before a random crop; 0: none; EM's release: 4
    crop_padding: CountOrZero = 4
    flip: bool = True               # mirror half of the images, drawn anew; EM's release: on CIFAR
    # of R, G, B, taken off inside the model; null: images stay in [0, 1], as in EM's release
    mean: tuple[float, ...] | None = None
    # of R, G, B, divided by inside the model; goes with `mean`
    std: tuple[Positive, ...] | None = None
    # epochs between tests on the clean test set; 0: after the last one only
    test_every: CountOrZero = 1
    # a new order every epoch, or always the set's; APBench's release and PIL's surrogate: the set's
    shuffle: bool = added(True)
    # epochs in which the rate climbs straight up, before `schedule`; AUE's protocol: 10
    warmup_epochs: CountOrZero = added(0)
    # rows that are read and shuffled as one block, for sets on slow disks; 0: each row by itself
    shuffle_block: CountOrZero = added(0)
    # in the place of crop_padding and flip: random resized crops, colour jitter and more, for
    # images of 224 pixels; null: none
    views: Views | None = added(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.optimizer != "sgd":
            raise ConfigError("nesterov", f"{self.optimizer} has no such form: it is sgd's")
        if self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov", "needs a momentum above 0")
        if self.warmup_epochs and self.schedule in ("warm_multistep", "onecycle"):
            raise ConfigError("warmup_epochs", f"{self.schedule} climbs by itself; leave it out")
        if self.schedule == "multistep" and not self.milestones:
            raise ConfigError("milestones", "multistep needs the epochs at which the rate falls")
        check_normalisation(self.mean, self.std)
        if self.shuffle_block and not self.shuffle:
            raise ConfigError("shuffle_block", "goes with shuffle: leave one of them out")
        if self.views is not None and (self.crop_padding or self.flip):
            raise ConfigError("views", "takes the place of crop and flip: write crop_padding: 0 "
                                       "and flip: false beside it")
        if self.views is not None and self.views.size is not None:
            raise ConfigError("views.size", "a classifier trains on images as large as those that "
                                            "it is tested on; leave it out")

    @property
    def augmentation(self) -> Augmentation:
        """What a classifier sees of its training images."""
        return Augmentation(self.crop_padding, self.flip, self.views)


@dataclass(frozen=True)
class Result:
    """Clean test accuracy in [0, 1]. `last` is the headline; `best` is an oracle's choice."""

    last: float
    best: float
    best_epoch: int                         # 1 for the first
    curve: list[tuple[int, float]]          # (epoch, accuracy) for every tested epoch
    train_accuracy: float                   # on the augmented training images, last epoch
    epochs: int
    images: int                             # images trained on, over all epochs
    seconds: float                          # of training; tests and each first step not counted
    images_per_second: float                # in those seconds
    kept_epoch: int | None = None           # whose weights `last` is of; None: the last one's
    saw: tuple[dict, ...] = ()              # beside the set: checkpoint.learned_from, or a name
    # of an encoder: the linear classifier behind it, that the accuracies are of, and neighbours
    probe: dict | None = None
    # as trained, without what normalises its input; no part of a record
    network: nn.Module | None = field(default=None, repr=False, compare=False)


def check_normalisation(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    """Raise ConfigError unless both are for Normalised, or neither is there."""
    if (mean is None) != (std is None):
        raise ConfigError("mean", "mean and std go together: set both or neither")
    if mean is not None and not len(mean) == len(std) == 3:
        raise ConfigError("mean", "mean and std take three numbers, one a channel")


class Normalised(nn.Module):
    """A network behind (x - mean) / std, so that images and budgets stay in [0, 1] outside."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - self.mean) / self.std)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.features((images - self.mean) / self.std)


class InPrecision(nn.Module):
    """The network as a loss calls it: in the run's precision, compiled where the run compiles."""

    def __init__(self, network: nn.Module, device: Device) -> None:
        super().__init__()
        self.network, self.device = device.maybe_compile(network), device

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self.device.autocast():
            logits = self.network(images)
        return logits.float()


def cross_entropy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, step: int
                  ) -> tuple[torch.Tensor, torch.Tensor]:
    """The field's loss; of labels that are shares of classes too."""
    logits = model(images)
    return F.cross_entropy(logits, labels), logits


def train_classifier(
    model: nn.Module, train: ImageSet, test: ImageSet | None, protocol: Protocol, run: Run,
    name: str = "classifier", *, loss: Loss = cross_entropy, transform: Transform | None = None,
    before_crop: BeforeCrop | None = None,
    after_epoch: Callable[[int, nn.Module], bool | None] | None = None,
    noted: list[float] | None = None,
) -> tuple[nn.Module, Result]:
    """Train `model` (logits from images in [0, 1]) on `train`; resumable under `name`. Batches pass
    through `before_crop`, crop and flip (or views), `transform`, and then into `loss`.
    `after_epoch` gets the number of each (from 0) and the network, before that epoch is scored and
    saved; if it returns True, that epoch is the last. What it appends to `noted` is resumed too.

    Returns the trained model, on the run's device, and the clean test accuracies (NaN without a
    test set). Raises UserError if the loss or, tested, the network stops being finite.
    """
    trained = model
    if protocol.mean is not None:
        model = Normalised(model, protocol.mean, protocol.std)
    model = run.device.place(model)
    network = InPrecision(model, run.device)
    optimizer = make_optimizer(model, protocol, run.device)
    batches = Batches(
        train, protocol.batch_size, run, name, shuffle=protocol.shuffle,
        shuffle_block=protocol.shuffle_block, drop_last=protocol.drop_last,
        last_step=protocol.steps, before_crop=before_crop, augmentation=protocol.augmentation)
    epochs = protocol.epochs if protocol.steps is None else -(-protocol.steps // len(batches))
    total_steps = protocol.steps or epochs * len(batches)
    note_marks(protocol, run)

    def rate_at(epoch: int, step: int) -> float:
        return learning_rate(protocol, epoch * len(batches) + step, total_steps, len(batches))

    descend = training_step(model, optimizer, functools.partial(loss, network), protocol)
    recorded = Recorded(functools.partial(descend, step=0), run.device)
    curve: list[list] = []
    lists = {"curve": curve} if noted is None else {"curve": curve, "noted": noted}
    loop = Loop(run, name, epochs, model=model, optimizer=optimizer, **lists)
    for epoch in loop:
        model.train()
        for images, labels in loop.steps(batches):
            set_rate(optimizer, rate_at(epoch, loop.step), run.device)
            if transform is not None:
                images, labels = transform(images, labels, loop.number)
            if loss is cross_entropy:       # other losses may draw by the step's number
                loop.add(len(labels), **recorded(images, labels))
            else:
                loop.add(len(labels), **descend(images, labels, step=loop.number))
        if after_epoch is not None and after_epoch(epoch, model):
            loop.stop()
        last = epoch == loop.epochs - 1
        tested = {}
        if test is not None and (last or (protocol.test_every and
                                 (epoch + 1) % protocol.test_every == 0)):
            tested = {"accuracy": accuracy(model, test, run)}
            curve.append([epoch + 1, tested["accuracy"]])
        loop.end_epoch(**tested, learning_rate=rate_at(epoch, loop.step - 1))
    return model, dataclasses.replace(result_of(curve, loop), network=trained)


def note_marks(protocol: Protocol, run: Run) -> None:
    """Say which epochs (or steps) of its schedule the protocol ends before; and of a ViT, that
    SGD trains it, as it does networks of convolutions."""
    if getattr(protocol, "architecture", "") == "vit_small" and protocol.optimizer == "sgd":
        run.say("note: vit_small learns by SGD here, where ViTs are trained by Adam: "
                "optimizer=adam learning_rate=5e-4 weight_decay=0 (BridgePure's)")
    if "multistep" in protocol.schedule:
        unit = "epochs" if protocol.steps is None else "steps"
        note_beyond(run, protocol.steps or protocol.epochs, unit, milestones=protocol.milestones)
    if protocol.steps is None and protocol.warmup_epochs > protocol.epochs:
        note_beyond(run, protocol.epochs, warmup_epochs=protocol.warmup_epochs)


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable,
                  protocol: Protocol) -> Callable[..., dict[str, torch.Tensor]]:
    """A function (images, labels, step) that takes one step of `optimizer` over the weights of
    `model` and returns the loss and the training accuracy; loss(images, labels, step) is a Loss
    that knows its network."""
    def descend(images, labels, step):
        value, logits = loss(images, labels, step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if protocol.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), protocol.clip_norm)
        optimizer.step()
        return {"loss": value.detach(), "train_accuracy": right(logits, labels)}

    return descend


def right(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Share of right answers; where labels are shares of classes, that of the class answered."""
    answers = logits.detach().argmax(1)
    if labels.is_floating_point():
        return labels.gather(1, answers[:, None]).mean()
    return (answers == labels).float().mean()


def make_optimizer(model: nn.Module, protocol: Protocol, device: Device) -> torch.optim.Optimizer:
    """The protocol's optimiser over all parameters."""
    if protocol.optimizer == "adam":
        return adam(model, device, lr=protocol.learning_rate, betas=(protocol.momentum, 0.999),
                    weight_decay=protocol.weight_decay)
    return sgd(model, device, lr=protocol.learning_rate, momentum=protocol.momentum,
               nesterov=protocol.nesterov, weight_decay=protocol.weight_decay)


def result_of(curve: list, loop: Loop) -> Result:
    """What a finished loop measured; `curve` holds [epoch, accuracy], NaN where it is empty."""
    best_epoch, best = max(curve, key=lambda point: point[1]) if curve else (0, math.nan)
    return Result(
        last=curve[-1][1] if curve else math.nan, best=best, best_epoch=best_epoch,
        curve=[tuple(point) for point in curve], train_accuracy=loop.means["train_accuracy"],
        epochs=loop.epochs, images=loop.images, seconds=loop.seconds,
        images_per_second=loop.images_per_second)


def learning_rate(protocol: Protocol, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The rate of one step. cosine and multistep change once an epoch (once a step if the
    protocol counts steps); warm_multistep climbs straight from 1e-3 in the first epoch, whose last
    step has the whole rate; onecycle changes every step, as torch's OneCycleLR without its momentum
    cycle: rate/25 up to rate in 30 % of the steps, then down to rate/250,000, both by half a
    cosine. In `warmup_epochs` the rate climbs straight, to the whole rate in the last of them, and
    a cosine begins after them."""
    rate = protocol.learning_rate
    if protocol.schedule == "warm_multistep" and step < steps_per_epoch:
        return WARM_FROM + (rate - WARM_FROM) * (step + 1) / steps_per_epoch
    if protocol.schedule == "onecycle":
        top = 0.3 * total_steps - 1
        if step <= top:
            return cosine(rate / 25, rate, step / top)
        return cosine(rate, rate / 25e4, (step - top) / (total_steps - 1 - top))
    by_step = protocol.steps is not None
    now, end = (step, total_steps) if by_step else (step // steps_per_epoch, protocol.epochs)
    warm = protocol.warmup_epochs * (steps_per_epoch if by_step else 1)
    if now < warm:
        return rate * (now + 1) / warm
    if protocol.schedule == "cosine":
        return cosine(rate, 0.0, (now - warm) / (end - warm))
    if protocol.schedule in ("multistep", "warm_multistep"):
        return rate * protocol.gamma ** sum(now >= milestone for milestone in protocol.milestones)
    return rate


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at 0 to `end` at 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


@torch.inference_mode()
def accuracy(model: nn.Module, data: ImageSet, run: Run) -> float:
    """Share of images that the model, in eval mode, labels right. Raises UserError if it diverged.
    """
    model.eval()
    with run.device.autocast():
        return count_right(model, in_order(data, TEST_BATCH, run)) / len(data)


def count_right(predict: Callable[[torch.Tensor], torch.Tensor],
                batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """How many of the images, in batches with their labels, the predicted logits are right about.
    Raises UserError if one is not finite: of NaN, argmax would answer a class all the same."""
    hits, finite = 0, True          # on the device from the first batch on: no batch waits for it
    for images, labels in batches:
        logits = predict(images)
        hits += (logits.argmax(1) == labels).sum()
        finite &= logits.isfinite().all()
    if not finite:
        raise UserError("a network's answers became nan or infinite: its training diverged; lower "
                        "the learning rate, or look at the data")
    return int(hits)


def in_order(data: ImageSet, batch_size: int, run: Run
             ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every row once, in order: float (B, 3, H, W) in [0, 1], channels-last, and labels. Of images
    above 32x32 fewer come together."""
    device, (height, width) = run.device.torch, data.image_shape
    fitting = batch_size * 32 * 32 // (height * width)
    batch_size = min(batch_size, max(fitting, FEWEST[run.device.kind]))
    for start in range(0, len(data), batch_size):
        rows = slice(start, start + batch_size)
        yield (to_floats(to_device(np.array(data.images[rows]), device)),
               to_device(np.array(data.labels[rows]), device))
