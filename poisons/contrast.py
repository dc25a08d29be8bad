"""The min-min optimisation of CP and TUE: noise that makes a contrastive learner's loss small.

    min over theta, min over delta of  L(f_theta(t1(x + delta)), f_theta(t2(x + delta)))

In an epoch a surrogate learns for some steps from two views t1, t2 of noised images; then the noise
of some batches takes signed steps down the same loss, each through fresh views. Source: He, Zha and
Katabi, ICLR 2023 (CP), code kaiwenzha/contrastive-poisoning.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from torch import nn

from core.batches import too_few
from core.config import added
from core.contrastive import (
    BYOL,
    LOSS_SCALE,
    MOMENTA,
    QUEUE,
    RATES,
    TEMPERATURES,
    MoCo,
    SimCLR,
    check_queue,
    cosine_rate,
)
from core.device import to_device
from core.errors import ConfigError
from core.graphs import set_rate, sgd
from core.imageset import ImageSet, Rounding
from core.loop import Loop
from core.pgd import gradient_of, pgd
from core.ranges import (
    BatchSize,
    BelowOne,
    Count,
    Keys,
    LinfRadius,
    Positive,
    PositiveOrZero,
    Range,
    StepSize,
    Weight,
)
from core.run import Run
from core.training import Normalised, check_normalisation
from core.views import Views, fresh
from models.classifiers import Architecture, check_images
from models.contrastive import (
    BYOL_PROJECTED,
    Projected,
    byol_head,
    encoder,
    head,
    split_norms,
)
from poisons.crafting import on_device, say_not_shared
from poisons.noise import Noise, require_rows, uniform_noise

Algorithm = Literal["simclr", "moco", "byol"]
OR_OF_CLASSES = " or one noise a class (method=cp)"     # where the noise of each row is too much
# key: the algorithms that have a use for it. What a data set's section in cp.yaml sets for all of
# them, `queue` and `temperature`, is not here
USED_BY = {"target_momentum": ("moco", "byol"), "update_in_noise_steps": ("moco", "byol"),
           "dual_branch": ("byol",)}
# (contrastive loss of this noise, a function of nothing; noise of each row; labels) -> the loss
Descended = Callable[[Callable[[], torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Shared(Keys):
    """Keys that CP and TUE share; defaults are CP's, class-wise."""

    # whose loss it is; CP: each of the three
    algorithm: Algorithm = "simclr"
    epsilon: LinfRadius = 8 / 255   # L-inf budget, [0, 1] units; CP: 8/255
    # of the signed steps, [0, 1] units; CP: a tenth of epsilon, sample-wise on BYOL a fiftieth
    step_size: StepSize = 0.8 / 255
    # signed, of a batch's noise; CP class-wise: 1, sample-wise: 5, on BYOL 1
    steps: Count = 1
    epochs: Count = 1000            # CP class-wise: 1,000, sample-wise: 200
    # after which epoch the noise is taken; null, or more than `epochs`: the last; CP: sample-wise
    # on SimCLR the 160th
    last_epoch: Count | None = None
    # of the surrogate an epoch; null: a pass over the set, as CP sample-wise
    train_steps: Count | None = 20
    # of which the noise moves then; null: all of a pass, as CP sample-wise
    noise_batches: Count | None = 20
    batch_size: BatchSize = 512     # images of each of these; CP: 512
    # of the surrogate's SGD; null: CP's, 0.5 for simclr, 0.3 for moco and 1 for byol with batches
    # of 512, and by the batch with others
    learning_rate: Positive | None = None
    # of this rate: CP's, to a thousandth by half a cosine an epoch; TUE's: constant
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: BelowOne = 0.9        # of the surrogate's SGD; CP
    weight_decay: PositiveOrZero = 1e-4     # of the surrogate's SGD, on all weights; CP
    # factor on the loss that the surrogate learns from; null: CP's, 1.785714, 2.857143 and 1
    loss_scale: Positive | None = None
    # of the softmax; null: CP's, 0.5 for simclr and 0.2 for moco; byol has none
    temperature: Positive | None = None
    queue: Count = QUEUE            # keys of moco; CP: 4,096
    # of moco's and byol's target network; null: CP's, 0.99 and 0.999, this one twice a step
    target_momentum: Weight | None = None
    # whether byol's noise gets gradient through the target network too, as CP's paper has it;
    # released: not, for there the loss cuts it off. That of moco does
    dual_branch: Literal["released", "paper"] = "released"
    # the target network and the queue go on while the noise moves; CP's release: yes
    update_in_noise_steps: bool = True
    architecture: Architecture = "resnet18"     # the encoder; CP: resnet18
    # channels of resnet18's first group, CP: 64; others have width / 64 of their own
    width: Count = 64
    # images of a batch whose statistics batch norm takes together while the surrogate learns; null:
    # all; CP's release: 128, a GPU's share of 512; TUE's with MoCo: an eighth
    norm_images: Annotated[int, Range(at_least=2)] | None = added(None)
    # of R, G, B, taken off inside the model; CP: CIFAR-10's
    mean: tuple[float, ...] | None = (0.4914, 0.4822, 0.4465)
    # of R, G, B, divided by inside the model; CP: CIFAR-10's
    std: tuple[Positive, ...] | None = (0.2023, 0.1994, 0.2010)
    views: Views = field(default_factory=Views)     # of which the surrogate sees two an image
    # of images to grey levels: nearest, or down, as CP's and TUE's releases
    rounding: Rounding = "floor"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_normalisation(self.mean, self.std)
        if self.algorithm == "moco":
            check_queue(self.queue, self.batch_size)
        if self.norm_images and self.batch_size % self.norm_images:
            raise ConfigError("norm_images", f"batches of {self.batch_size} are not shared equally "
                                             f"by {self.norm_images} images")

    def check_images(self, shape: tuple[int, int]) -> None:
        check_images(self.architecture, self.views.shape_of(shape))


def refuse_idle(config: Shared) -> None:
    """Raise ConfigError for a key that was set and that the algorithm has no use for."""
    for key, algorithms in USED_BY.items():
        if config.algorithm not in algorithms and getattr(config, key) != getattr(Shared, key):
            raise ConfigError(key, f"changes nothing with {config.algorithm}: leave it out, or set "
                                   f"algorithm to {' or '.join(algorithms)}")


def bound(config: Shared) -> tuple[str, float]:
    return "linf", config.epsilon


def uniform(clean: ImageSet, config: Shared, run: Run) -> torch.Tensor:
    """Noise of each row, uniform within the budget."""
    require_rows(clean, run, OR_OF_CLASSES)
    return uniform_noise(slice(0, len(clean)), clean.image_shape, config.epsilon, run)


def build(clean: ImageSet, config: Shared, run: Run) -> nn.Module:
    """The learner that is the surrogate: called on two views of a batch, it gives the loss."""
    name, shape = config.algorithm, config.views.shape_of(clean.image_shape)
    with run.initialisation("surrogate"):
        body, channels = encoder(config.architecture, clean.num_classes, shape, config.width)
        network = Projected(body, byol_head(channels) if name == "byol" else head(channels))
        if config.mean is not None:
            network = Normalised(network, config.mean, config.std)
        predictor = byol_head(BYOL_PROJECTED) if name == "byol" else None
    if config.norm_images:          # SimCLR's two views are one pass
        for part in filter(None, (network, predictor)):
            split_norms(part, config.norm_images, views=2 if name == "simclr" else 1)
    temperature = config.temperature or TEMPERATURES.get(name)
    momentum = MOMENTA.get(name) if config.target_momentum is None else config.target_momentum
    if name == "simclr":
        method = SimCLR(network, temperature=temperature)
    elif name == "moco":
        method = MoCo(network, run.stream("surrogate/queue"), queue=config.queue,
                      temperature=temperature, momentum=momentum)
    else:
        method = BYOL(network, predictor, momentum=momentum)
    return run.device.place(method)


class Passes:
    """The rows of an epoch's batches: (True, ...) those that the surrogate learns from, from one
    shuffled pass after the other, then (False, ...) those whose noise moves, from a pass of their
    own. The last incomplete batch of a pass is dropped. None of the first kind without `learns`."""

    def __init__(self, rows: int, config: Shared, run: Run, learns: bool = True) -> None:
        self.rows, self.size, self.run = rows, config.batch_size, run
        self.whole = rows // self.size
        if self.whole == 0:
            raise too_few(rows, self.size, run)
        self.train_steps = (config.train_steps or self.whole) if learns else 0
        self.noise_batches = min(config.noise_batches or self.whole, self.whole)
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        return self.train_steps + self.noise_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[bool, np.ndarray]]:
        for step in range(start, len(self)):
            if step < self.train_steps:
                number = epoch * self.train_steps + step
                yield True, self._batch("surrogate", *divmod(number, self.whole))
            else:
                yield False, self._batch("noise", epoch, step - self.train_steps)

    def _batch(self, name: str, pass_: int, at: int) -> np.ndarray:
        kept, order = self._orders.get(name, (-1, None))
        if kept != pass_:
            order = torch.randperm(self.rows, generator=self.run.stream(f"{name}/batches", pass_))
            order = order.numpy()
            self._orders[name] = pass_, order
        return order[at * self.size : (at + 1) * self.size]


def craft(clean: ImageSet, noise: Noise, config: Shared, run: Run, *, by_class: bool = False,
          noise_loss: Descended = lambda contrast, delta, labels: contrast(),
          learns: bool = True) -> None:
    """Optimise `noise`, of classes or of rows, in place; resumable. What the noise descends is
    `noise_loss`; where that asks for no contrastive loss, there is no surrogate (not `learns`), and
    no image is read."""
    say_not_shared(run)
    method = optimizer = None
    if learns:
        method = build(clean, config, run)
        optimizer = sgd(nn.ModuleList(method.trained()), run.device, lr=first_rate(config),
                        momentum=config.momentum, weight_decay=config.weight_decay)
    batches = Passes(len(clean), config, run, learns)
    dual = config.algorithm == "moco" or config.dual_branch == "paper"

    def views(noised: torch.Tensor, name: str, step: int) -> list[torch.Tensor]:
        noised = noised.clamp(0, 1)
        return [fresh(noised, config.views, run.stream(f"{name}/view{which}", step))
                for which in (1, 2)]

    def learn(images: torch.Tensor, delta: torch.Tensor, step: int) -> torch.Tensor:
        method.train()
        with run.device.autocast():
            loss = method(*views(images + delta, "surrogate", step))
        optimizer.zero_grad(set_to_none=True)
        (scale_of(config) * loss).backward()
        optimizer.step()
        return loss

    def move(images: torch.Tensor | None, labels: torch.Tensor, rows: torch.Tensor, batch: int
             ) -> torch.Tensor:
        """Signed steps of the batch's noise alone; the loss at the first of them."""
        if learns:
            method.eval()
        losses = []

        def loss(own: torch.Tensor, step: int) -> torch.Tensor:
            delta = own[labels] if by_class else own

            def contrast() -> torch.Tensor:
                with run.device.crafting():
                    return method(*views(images + delta, "noise", batch * config.steps + step),
                                  move=config.update_in_noise_steps, dual=dual)

            losses.append(noise_loss(contrast, delta, labels))
            return losses[-1]

        own = noise.delta if by_class else noise.delta[rows]
        moved = pgd(torch.zeros_like(own), own, gradient_of(loss), epsilon=config.epsilon,
                    step_size=config.step_size, steps=config.steps, clip="none")
        if by_class:
            noise.delta.copy_(moved)
        else:
            noise.delta[rows] = moved
        return losses[0]

    learner = {"method": method, "optimizer": optimizer} if learns else {}
    loop = Loop(run, run.job.method, config.epochs, **learner, noise=noise)
    for epoch in loop:
        shown = {}
        if learns:
            shown = {"learning_rate": rate_of(epoch, config)}
            set_rate(optimizer, shown["learning_rate"], run.device)
        for trains, rows in loop.steps(batches):
            if learns:
                images, labels = on_device(clean, rows, run)
            else:
                images, labels = None, to_device(clean.labels_at(rows), run.device.torch)
            at = to_device(rows, labels.device)
            if trains:
                step = epoch * batches.train_steps + loop.step
                loss = learn(images, noise.delta[labels if by_class else at], step)
                loop.add(len(rows), loss=loss)
            else:
                batch = epoch * batches.noise_batches + loop.step - batches.train_steps
                loop.add(len(rows), noise_loss=move(images, labels, at, batch))
        if learns:
            run.world.share(method)
        run.world.share(noise)
        if epoch + 1 == config.last_epoch:
            loop.stop()
        loop.end_epoch(**shown)


def first_rate(config: Shared) -> float:
    return config.learning_rate or RATES[config.algorithm] * config.batch_size / 512


def rate_of(epoch: int, config: Shared) -> float:
    """Of the surrogate in an epoch, from 0; without a warm-up, which CP's victims alone have."""
    rate = first_rate(config)
    return rate if config.schedule == "constant" else cosine_rate(rate, epoch + 1, config.epochs)


def scale_of(config: Shared) -> float:
    return LOSS_SCALE[config.algorithm] if config.loss_scale is None else config.loss_scale
