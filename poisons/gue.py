"""GUE: unlearnable examples of a game between a generator and a classifier.

A U-Net G_a makes the noise of every image from the image, for a classifier f_theta that trains on
what it gets. The two are found together:

    min over a, theta of  f(theta) = mean max_{k != y} CE(f_theta(x), k)
    where theta minimises  g(a, theta) = mean CE(f_theta(clip(x + epsilon G_a(x))), y)

On clean images, that is, no wrong class shall be unlikely to a classifier that has learned the
noised ones. BOME (Liu et al., NeurIPS 2022) solves this with first derivatives: theta_T is theta
after a few steps down g, q = g(a, theta) - g(a, theta_T) says how far theta is from its minimum,
and a and theta step down f + lambda q, with the least lambda >= 0 that lets q fall at a rate of
eta |grad q|^2 or more. Source: Liu, Wang and Gao, AAAI 2024; code hong-xian/gue, gue.py and
evaluation.py.

Deviations: the last epoch's generator is taken, where the release takes that with the lowest
accuracy on clean test images, of classifiers that it trains every five epochs: no attack here meets
a test set. f is over all classes of the set (the release's over ten unless told otherwise, on
CIFAR-100 too), images keep their order (the release's are shuffled), and the generator is always in
train mode while it learns (the release's is in eval mode for the first batch after such a test). It
sees a batch once, where the release repeats the same pass for every step on the batch: batch norm's
running statistics follow as far as they do there. Rounding down meets whole levels of noise as
whole ones. None of it is in bf16, whatever `precision` says; on a GPU matrix products may be in
TF32, but for `precision: fp32`, as the release's. GUE-adv, against adversarial training, is not
here.
"""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from core.batches import Batches
from core.config import Place
from core.graphs import adam
from core.imageset import ImageSet, Rounding
from core.loop import Loop
from core.ranges import BatchSize, Count, Keys, LinfRadius, Positive, PositiveOrZero
from core.run import Run
from models.classifiers import Architecture, check_images, classifier
from models.noise_unet import NoiseUNet
from poisons.crafting import require_classes, say_not_shared
from poisons.generated import add_generated, check_sides, load_generator

VERSION = 1
SMOKE = {"width": 8, "epochs": 1, "batch_size": 64, "inner_steps": 2, "inner_rate": 1e-2,
         "generator_rate": 1.0, "classifier.width": 8, "weights": None}
PATHS = ("weights",)
SMALL = 1e-8                    # beside |grad q|^2, which lambda is divided by; release


@dataclass(frozen=True)
class Classifier(Keys):
    architecture: Architecture = "resnet18"     # release: resnet18
    # channels of resnet18's first group, release: 64; others have width / 64 of their own
    width: Count = 64


@dataclass(frozen=True)
class Config(Keys):
    epsilon: LinfRadius = 8 / 255   # L-inf budget, [0, 1] units; release: 8/255
    width: Count = 64               # channels of the generator's first level; release: 64
    epochs: Count = 50              # passes over the set; release: 50
    batch_size: BatchSize = 256     # images a step; release: 256
    # Adam's, from theta to theta_T, its moments forgotten; release: 10
    inner_steps: Count = 10
    inner_rate: Positive = 1e-4     # of these steps; release: 1e-4
    # of the plain SGD of theta; release: 0.01
    learning_rate: Positive = 0.01
    # of the plain SGD of the generator; release: 0.1
    generator_rate: Positive = 0.1
    # of |grad q|^2, how fast q has to fall; release: 1.5
    eta: PositiveOrZero = 1.5
    # of images to grey levels: nearest, or down, as the release
    rounding: Rounding = "floor"
    # a file of a generator's weights, such as the released gue_cifar10.pth: it makes the noise, and
    # nothing is trained; null: it is trained on the clean set first
    weights: Place | None = None
    classifier: Classifier = field(default_factory=Classifier)     # theta's network

    def check_images(self, shape: tuple[int, int]) -> None:
        """Before anything begins."""
        check_sides(shape)
        check_images(self.classifier.architecture, shape)


def bound(config: Config) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus the noise that the generator makes of it."""
    config.check_images(clean.image_shape)
    generator = train_generator(clean, config, run) if config.weights is None \
        else load_generator(Path(config.weights), config.width, run)
    return add_generated(clean, generator, config.epsilon, config.rounding, run)


# --- the game --------------------------------------------------------------------------------


def train_generator(clean: ImageSet, config: Config, run: Run) -> nn.Module:
    """The generator after the last epoch; resumable."""
    require_classes(clean, "the game needs a wrong one")
    say_not_shared(run)
    theta, generator = players(clean, config, run)
    follower = copy.deepcopy(theta)         # theta_T
    batches = Batches(clean, config.batch_size, run, "gue", drop_last=False)
    loop = Loop(run, "gue", config.epochs, theta=theta, generator=generator)
    for _ in loop:
        for images, labels in loop.steps(batches):
            noised = (images + config.epsilon * generator(images)).clamp(0, 1)
            follow(follower, theta, noised.detach(), labels, config, run)
            loop.add(len(images), **bome_step(theta, follower, generator, images, noised, labels,
                                              config))
        loop.end_epoch()
    run.world.share(generator)
    return generator


def players(clean: ImageSet, config: Config, run: Run) -> tuple[nn.Module, NoiseUNet]:
    """Fresh networks theta and G_a, in train mode, in which they stay until the noise is made."""
    with run.initialisation("classifier"):
        theta = classifier(config.classifier.architecture, clean.num_classes, clean.image_shape,
                           config.classifier.width)
    with run.initialisation("generator"):
        generator = NoiseUNet(config.width, running_share(config))
    return run.device.place(theta), run.device.place(generator)


def running_share(config: Config) -> float:
    """What a batch has in the running statistics after as many passes of it, with a share of 0.1
    each, as the release takes: one for every inner step, and two for q."""
    return 1 - 0.9 ** (config.inner_steps + 2)


def follow(follower: nn.Module, theta: nn.Module, noised: torch.Tensor, labels: torch.Tensor,
           config: Config, run: Run) -> None:
    """theta_T: from theta, a few steps of a fresh Adam down g on this batch."""
    follower.load_state_dict(theta.state_dict())
    optimizer = adam(follower, run.device, lr=config.inner_rate)
    for _ in range(config.inner_steps):
        loss = F.cross_entropy(follower(noised), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def bome_step(theta: nn.Module, follower: nn.Module, generator: nn.Module, images: torch.Tensor,
              noised: torch.Tensor, labels: torch.Tensor, config: Config
              ) -> dict[str, torch.Tensor]:
    """One step of both players down f + lambda q; `noised` is what the generator made of `images`,
    with its graph. Returns f, g, q and lambda as they were."""
    of_theta, of_a = list(theta.parameters()), list(generator.parameters())
    f = worst_wrong(theta(images), labels)
    grad_f = torch.autograd.grad(f, of_theta)
    g = F.cross_entropy(theta(noised), labels)
    q = g - F.cross_entropy(follower(noised), labels)
    grad_q = torch.autograd.grad(q, of_theta + of_a)        # theta_T is a constant
    multiplier = multiplier_of(grad_f, grad_q[:len(of_theta)], grad_q[len(of_theta):], config.eta)
    with torch.no_grad():
        for weight, by_f, by_q in zip(of_theta, grad_f, grad_q[:len(of_theta)], strict=True):
            weight.sub_(config.learning_rate * (by_f + multiplier * by_q))
        for weight, by_q in zip(of_a, grad_q[len(of_theta):], strict=True):
            weight.sub_(config.generator_rate * multiplier * by_q)
    return {"clean_loss": f, "poison_loss": g, "q": q, "multiplier": multiplier}


def worst_wrong(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """f: the largest cross-entropy to a wrong class, the mean over logits (B, K)."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    return (logits.logsumexp(1) - logits.masked_fill(own, math.inf).min(1).values).mean()


def multiplier_of(f_theta: tuple[torch.Tensor, ...], q_theta: tuple[torch.Tensor, ...],
                  q_a: tuple[torch.Tensor, ...], eta: float) -> torch.Tensor:
    """lambda = max(0, (eta |grad q|^2 - <grad f, grad q>) / |grad q|^2); f does not depend on a."""
    squared = sum(part.square().sum() for part in (*q_theta, *q_a))
    inner = sum((one * other).sum() for one, other in zip(f_theta, q_theta, strict=True))
    return ((eta * squared - inner) / (squared + SMALL)).relu()
