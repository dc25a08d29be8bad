"""A plain auto-encoder: replace every image by what a bottleneck of few channels keeps of it.

The rival of the VAE in figure 5: the same kind of network, trained on the poisoned set itself, but
limited in width instead of rate. It sees images with noise and is asked for them without it.
Source: Yu et al., ICML 2024, figure 5; code yuyi-sd/D-VAE, configs/cifar10/resnet18AE_d*.yaml, and
the network of yuyi-sd/MTL-UE, class ResNetAE.

Deviations: no script of it was released, so the loss is our reading; noise is added in training
only (the released forward adds it in evaluation too); pixels are rounded to the nearest level;
on a GPU the network trains in bf16 (released: `precision: fp32`).
"""

from dataclasses import dataclass

import torch.nn.functional as F

from core.config import rebuild
from core.errors import UserError
from core.graphs import sgd
from core.imageset import ImageSet, Rounding
from core.ranges import BatchSize, BelowOne, Count, Keys, Positive, PositiveOrZero
from core.run import Run
from models.ae import AE
from purifiers.autoencoding import in_batches, initialised, train, training_step

VERSION = 1
TRAINED_BY = "train_vae"
SMOKE = {"train.channels": 8, "train.epochs": 2, "train.batch_size": 64}


@dataclass(frozen=True)
class TrainConfig(Keys):
    """Keys under `ae.train`, for train_vae.py."""

    channels: Count = 128           # of the bottleneck; D-VAE's figure 5: 1, 2, 4, 8, ... 1,024
    # standard deviation of what is added to the input, [0, 1] units; release: 0.062
    noise: PositiveOrZero = 0.062
    epochs: Count = 60              # passes over the set; release: 60
    batch_size: BatchSize = 128     # images a step; D-VAE's release: 128
    learning_rate: Positive = 0.1   # of SGD, cosine to 0 once an epoch; release: 0.1
    momentum: BelowOne = 0.9        # of SGD; release
    weight_decay: PositiveOrZero = 5e-4     # of SGD; release
    clip_norm: Positive = 5.0       # largest L2 norm of the gradient; D-VAE's release

    @property
    def stages(self) -> tuple[str]:
        """One stage, in train_vae.py's words."""
        return (f"{self.channels} channels, output reconstruct",)

    def check_images(self, shape: tuple[int, int]) -> None:
        if shape[0] % 2 or shape[1] % 2:
            raise UserError(f"AE takes images with even sides, not {shape[0]}x{shape[1]}")


@dataclass(frozen=True)
class Config(Keys):
    """Keys under `ae`, for purify.py."""

    rounding: Rounding = "round"    # to whole grey levels: nearest, or down, as D-VAE's release


def train_stage(images: ImageSet, number: int, stage: str, config: TrainConfig, run: Run) -> AE:
    """Train the AE (the one stage, number 1) on `images`; resumable. Returns it in eval mode."""
    name = f"stage{number}"
    model = build_model(images, config, run, name)
    optimizer = sgd(model, run.device, lr=config.learning_rate, momentum=config.momentum,
                    weight_decay=config.weight_decay)

    def losses(model, x, labels, noise):
        return {"mse": F.mse_loss(model(x + config.noise * noise).float(), x)}

    step = training_step(model, optimizer, losses, lambda terms, _: terms["mse"],
                         (3, *images.image_shape), config.clip_norm, run)
    return train(model, optimizer, step, images, config, run, name)


def build_model(images: ImageSet, config: TrainConfig, run: Run, name: str) -> AE:
    config.check_images(images.image_shape)
    return initialised(lambda: AE(config.channels), run, name)


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Replace every image by its reconstruction. Deterministic, label-free."""
    trained = rebuild(TrainConfig, run.checkpoint.meta["config"], str(run.checkpoint.path))
    model = build_model(poisoned, trained, run, "stage1")
    run.checkpoint.weights_into(model, "stage1").eval()
    return poisoned.map_rows(in_batches(lambda x, rows: model(x)), run, rounding=config.rounding,
                             device=run.device.torch)
