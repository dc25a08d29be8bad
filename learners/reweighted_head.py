"""Deep feature reweighting: train on the poison, then refit the linear head on clean images.

The features of a network that was trained on a poison may be good while its head relies on the
shortcut. Needs clean labelled images. Source: code psandovalsegura/learn-from-unlearnable,
dfr_step_2.py (NeurIPS 2023); Kirichenko et al., ICLR 2023.

Deviations: the release draws its 5,000 training images at random and keeps their numbers, here
`clean_split` names them; it refits every checkpoint of a training of 60 epochs, here the last.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from core.batches import Batches
from core.errors import UserError
from core.imageset import ImageSet
from core.ranges import Positive
from core.run import Run
from core.training import TEST_BATCH, Result, accuracy, in_order, train_classifier
from learners import standard

VERSION = 1
SMOKE = standard.SMOKE
NEEDS_CLEAN = True
EPOCHS, BATCH, RATE = 15, 1024, 0.5     # of the release's refit
STEPS = 2000                            # at most, of the refit on frozen features


@dataclass(frozen=True)
class Config(standard.Config):
    # released: 15 epochs of L-BFGS on augmented batches of 1,024, batch norm in train mode; frozen:
    # logistic regression on the features as they are
    refit: Literal["released", "frozen"] = "released"
    # of frozen: inverse weight of the penalty |W|^2 / 2; scikit-learn's default
    c: Positive = 1.0


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on `train`, refit its head on `run.clean`, and score it on the clean
    `test`. In the curve, the last epoch is scored after the refit."""
    if config.refit == "released" and len(run.clean) < 2:
        raise UserError("clean_split: the refit of the head needs two clean images, for batch norm")
    model, result = train_classifier(standard.build(train, config, run), train, test, config, run)
    with run.device.exact():
        if config.refit == "released":
            refit_as_released(model, result.network.linear, config, run)
        else:
            refit_frozen(model, result.network.linear, config.c, run)
    if not all(part.isfinite().all() for part in result.network.linear.parameters()):
        raise UserError("reweighted_head: the refit of the head diverged; refit=frozen does not")
    last = accuracy(model, test, run)
    run.log_once("refit", before=result.last, after=last, images=len(run.clean))
    curve = [*result.curve[:-1], (result.epochs, last)]
    best_epoch, best = max(curve, key=lambda point: point[1])
    return dataclasses.replace(result, last=last, best=best, best_epoch=best_epoch, curve=curve)


def refit_as_released(model: nn.Module, head: nn.Linear, config: Config, run: Run) -> None:
    """L-BFGS of the head on one batch after another, in some twenty passes each, which also move
    the running statistics of batch norm towards clean images. Below the head nothing else changes,
    so the network is asked for the features of a batch once."""
    batches = Batches(run.clean, min(BATCH, len(run.clean)), run, "refit", drop_last=False,
                      augmentation=config.augmentation)
    optimizer = torch.optim.LBFGS(head.parameters(), lr=RATE)
    model.train().requires_grad_(False)
    head.requires_grad_(True)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]

    def refit(images: torch.Tensor, labels: torch.Tensor) -> None:
        before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
        features, passes = model.features(images), 0

        def closure() -> torch.Tensor:
            nonlocal passes
            passes += 1
            optimizer.zero_grad()
            loss = F.cross_entropy(head(features), labels)
            loss.backward()
            return loss

        optimizer.step(closure)
        for norm, (mean, variance) in zip(norms, before, strict=True):
            # A pass moves them by a share m of the way to the batch's, n passes by 1 - (1 - m)^n.
            times = (1 - (1 - norm.momentum) ** passes) / norm.momentum
            norm.running_mean.copy_(mean.lerp(norm.running_mean, times))
            norm.running_var.copy_(variance.lerp(norm.running_var, times))
            norm.num_batches_tracked += passes - 1

    for epoch in range(EPOCHS):
        for images, labels in batches.epoch(epoch):
            refit(images, labels)


def refit_frozen(model: nn.Module, head: nn.Linear, c: float, run: Run) -> None:
    """The optimum of c * (summed cross-entropy) + |W|^2 / 2 over the features in eval mode, in
    float64: what scikit-learn's LogisticRegression finds."""
    model.eval()
    with torch.no_grad():
        features = torch.cat([model.features(images).cpu().double()
                              for images, _ in in_order(run.clean, TEST_BATCH, run)])
    labels, middle = run.clean.labels_at(), features.mean(0)
    features = features - middle            # the bias makes up for it: the same optimum, found soon
    weight, bias = (torch.zeros(part.shape, dtype=torch.float64, requires_grad=True)
                    for part in (head.weight, head.bias))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, tolerance_grad=1e-7,
                                  tolerance_change=1e-12, history_size=20,
                                  line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels)
        loss = loss + weight.square().sum() / (2 * c * len(labels))
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias - weight @ middle)
