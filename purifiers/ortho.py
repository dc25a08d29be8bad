"""Orthogonal projection: take out of every image what a linear model of the poisoned set sees.

A linear classifier is trained on the poisoned images; its weights, one direction a class, are made
orthonormal (Q), and every image x becomes x - Q Q^T x. Made for class-wise noise that is linearly
separable. Source: Sandoval-Segura et al., NeurIPS 2023; code
psandovalsegura/learn-from-unlearnable.

Deviations: the release keeps floats, and this stores grey levels. Values outside [0, 1] are clipped
(as in the release's own training, where the colour jitter does it, after rotation and shear): on
10,000 images of CIFAR-10, 1 to 2 % of the energy of what is taken out. Rounding brings nothing back
that a linear probe finds: it is right on .955 of LSP's images, after projection on .376 as floats
and .375 as stored. The release trains for 20 epochs however small the set is, this for as many
steps: on those images 20 epochs are 200 steps, and leave .88. On a GPU the linear model trains in
bf16.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from core.imageset import ImageSet, Rounding
from core.ranges import BatchSize, Keys, Positive, Range
from core.run import Run
from core.training import Protocol, train_classifier
from models.classifiers import Headed

VERSION = 1
SEES_SET = True                 # the linear model is trained on it
NEEDS_LABELS = True             # which it learns to tell
SMOKE = {"steps": 10, "batch_size": 64}


@dataclass(frozen=True)
class Config(Keys):
    """Of the linear model: SGD without momentum or decay, the images as they are, in index order.
    """

    # minibatches, however many epochs they are; release: 20 epochs, which are 980 on 50,000 images
    steps: Annotated[int, Range(at_least=2)] = 980
    batch_size: BatchSize = 1024    # images a step; release: 1,024
    # at the start; a tenth from half of the steps on, a hundredth from three quarters; release: 0.1
    learning_rate: Positive = 0.1
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `poisoned` less its part in the span of the weights."""
    basis = basis_of(train_linear(poisoned, config, run)).to(run.device.torch)

    def rows(images: torch.Tensor, rows: slice) -> torch.Tensor:
        return project(images.flatten(1), basis).view(images.shape)

    return poisoned.map_rows(rows, run, rounding=config.rounding, device=run.device.torch)


def train_linear(poisoned: ImageSet, config: Config, run: Run) -> torch.Tensor:
    """Weights (K, H W 3) of a linear classifier without bias, trained on the poisoned set."""
    height, width = poisoned.image_shape
    with run.initialisation("linear"):
        model = Headed(nn.Flatten(), 3 * height * width, poisoned.num_classes, bias=False)
    protocol = Protocol(
        steps=config.steps, batch_size=config.batch_size, drop_last=False,
        learning_rate=config.learning_rate, momentum=0, weight_decay=0, schedule="multistep",
        milestones=(config.steps // 2, config.steps * 3 // 4), clip_norm=None, crop_padding=0,
        flip=False, shuffle=False)
    model, result = train_classifier(model, poisoned, None, protocol, run, "linear")
    run.world.share(model)
    run.say(f"linear model: right on {result.train_accuracy:.1%} of the images it is trained on")
    weights = model.linear.weight.detach().cpu()                    # of channels, rows, columns
    return weights.view(-1, 3, height, width).permute(0, 2, 3, 1).flatten(1)


def basis_of(weights: torch.Tensor) -> torch.Tensor:
    """(D, K) float32 with orthonormal columns that span the rows of `weights` (K, D)."""
    return torch.linalg.qr(weights.double().T).Q.float()


def project(images: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Images (n, D) without their part in the span of the columns of `basis`."""
    return images - (images @ basis) @ basis.T
