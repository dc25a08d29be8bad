"""The rate-constrained VAE: replace every image by what a latent of few nats keeps of it.

A VAE is trained on the poisoned set itself, without labels, clean data or augmentation. A hinge
holds its KL divergence near a target, which leaves no room for the perturbation: the experiment of
figure 2, and the half of D-VAE that knows no label. Source: Yu et al., ICML 2024, equation 3, and
code yuyi-sd/D-VAE, class ResNetVAE.

Deviations: no script of it was released, so everything but the network and its optimiser
(configs/cifar10/resnet18VAE.yaml) is as in D-VAE; pixels are rounded to the nearest level (released
code truncates: `rounding: floor`); the network holds only the layers that the method uses, and on a
GPU trains in bf16 (released: `precision: fp32`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from core.config import added, rebuild
from core.errors import ConfigError, UserError
from core.graphs import adam
from core.imageset import ImageSet, Rounding
from core.ranges import BatchSize, Count, Keys, Positive, PositiveOrZero, Range
from core.run import Run
from core.streams import BLOCK, by_block
from models.dvae import GROUPS, VAE, Trunk, kl_divergence
from models.resnet import IMAGENET_STEM
from purifiers.autoencoding import draw_noise, in_batches, initialised, train, training_step

VERSION = 1
TRAINED_BY = "train_vae"
SMOKE = {"train.width": 8, "train.latent_channels": 16, "train.epochs": 2, "train.batch_size": 64}


@dataclass(frozen=True)
class RateConstrained(Keys):
    """Keys of the training that the VAE and D-VAE share."""

    epochs: Count = 60                  # a stage; release: 60 on CIFAR-10, 100 on CIFAR-100
    batch_size: BatchSize = 128         # images a step; release: 128, the last short one dropped
    # of Adam, no decay of weights, cosine to 0 once an epoch; release
    learning_rate: Positive = 5e-3
    clip_norm: Positive = 5.0           # largest L2 norm of the gradient; release
    kld_weight: PositiveOrZero = 0.01   # w of the KL hinge for targets above 0.99; release
    kld_weight_low: PositiveOrZero = 0.5    # w of the KL hinge for targets up to 0.99; release
    width: Annotated[int, Range(at_least=2)] = 64   # channels of the first layer; release: 64
    latent_channels: Count = 256        # a position; release: 256
    # imagenet quarters the size, for 224x224; auto: by the size, cifar with a deeper trunk;
    # release: cifar
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    # ResNet-18 up to the first block of this group; release: layer2 at 32x32; at 224x224 layer4
    # for D-VAE, layer3 for the VAE (stem_end_block 7, 15 and 11)
    trunk: Trunk = added("layer2")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem == "imagenet" and self.trunk != "layer2":
            raise ConfigError("trunk", f"{self.trunk} goes with stem=cifar; the source has no "
                                       "decoder for it behind stem=imagenet")

    def check_images(self, shape: tuple[int, int]) -> None:
        """Raise UserError where the network cannot restore such images."""
        (height, width), stem = shape, self.stem_for(shape)
        parts = 8 if stem == "imagenet" else 2 ** GROUPS[self.trunk]
        if height != width or height % parts:
            raise UserError(f"a VAE takes square images of sides that {parts} divides (with "
                            f"stem={stem}, trunk={self.trunk}), not {height}x{width}")

    def stem_for(self, shape: tuple[int, int]) -> Literal["cifar", "imagenet"]:
        if self.stem != "auto":
            return self.stem
        shallow = self.trunk == "layer2"
        return "imagenet" if shape[0] >= IMAGENET_STEM and shallow else "cifar"


@dataclass(frozen=True)
class TrainConfig(RateConstrained):
    """Keys under `vae.train`, for train_vae.py."""

    kld_target: PositiveOrZero = 1.0    # nats per latent position; as D-VAE's first stage: 1

    @property
    def stages(self) -> tuple[str]:
        """One stage, in train_vae.py's words."""
        return (f"KLD target {self.kld_target:g}, output reconstruct",)


@dataclass(frozen=True)
class Config(Keys):
    """Keys under `vae`, for purify.py."""

    # z at purification: drawn, as D-VAE's release, or its mean
    latent: Literal["sample", "mean"] = "sample"
    rounding: Rounding = "round"        # to whole grey levels: nearest, or down, as D-VAE's release


# --- training --------------------------------------------------------------------------------


def train_stage(images: ImageSet, number: int, stage: str, config: TrainConfig, run: Run) -> VAE:
    """Train the VAE (the one stage, number 1) on `images`; resumable. Returns it in eval mode."""
    name = f"stage{number}"
    model = build_model(images, config, run, name)
    optimizer = adam(model, run.device, lr=config.learning_rate)
    step = training_step(model, optimizer, stage_losses,
                         lambda terms, _: total_loss(terms, config),
                         model.latent_shape, config.clip_norm, run)
    return train(model, optimizer, step, images, config, run, name)


def build_model(images: ImageSet, config: RateConstrained, run: Run, name: str,
                network: type[VAE] = VAE, **options) -> VAE:
    """A fresh network for images of this size. Raises UserError where it cannot restore them."""
    config.check_images(images.image_shape)
    return initialised(lambda: network(
        width=config.width, latent_channels=config.latent_channels,
        image_size=images.image_shape[0], stem=config.stem_for(images.image_shape),
        trunk=config.trunk, **options), run, name)


def stage_losses(model: VAE, x: torch.Tensor, labels: torch.Tensor, noise: torch.Tensor
                 ) -> dict[str, torch.Tensor]:
    """The terms of the loss, in float32. The labels are not used."""
    x_hat, mu, logvar = model(x, noise)
    return {"mse": F.mse_loss(x_hat.float(), x), "kld": kl_divergence(mu, logvar)}


def total_loss(terms: dict[str, torch.Tensor], config: TrainConfig) -> torch.Tensor:
    """MSE(x_hat) + w max(KLD, target)."""
    return terms["mse"] + rate_loss(terms["kld"], config.kld_target, config)


def rate_loss(kld: torch.Tensor, target: float, config: RateConstrained) -> torch.Tensor:
    """w max(KLD, target): below its target the hinge has no gradient."""
    weight = config.kld_weight if target > 0.99 else config.kld_weight_low
    return weight * kld.clamp(min=target)


# --- purification ----------------------------------------------------------------------------


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Replace every image by its reconstruction, with the network of `run.checkpoint`."""
    trained = rebuild(TrainConfig, run.checkpoint.meta["config"], str(run.checkpoint.path))
    model = build_model(poisoned, trained, run, "stage1")
    run.checkpoint.weights_into(model, "stage1").eval()

    stream = partial(run.stream, "stage1/reconstruct")

    def reconstruct(x: torch.Tensor, rows: slice) -> torch.Tensor:
        return model.reconstruct(latent_of(model, x, rows, config.latent, stream))

    return poisoned.map_rows(in_batches(reconstruct), run, rounding=config.rounding,
                             device=run.device.torch)


def latent_of(model: VAE, x: torch.Tensor, rows: slice, latent: str,
              stream: Callable[..., torch.Generator]) -> torch.Tensor:
    """The decoder's input for these rows of a set: of the mean latent, or of one sample.

    Noise is drawn by block of rows, each from stream(block, device).
    """
    mu, logvar = model.encode(x)
    if latent == "mean":
        return model.latent(mu, logvar, None)
    noise = by_block(rows, lambda block: draw_noise(model.latent_shape, BLOCK,
                                                    stream(block, x.device)))
    return model.latent(mu, logvar, noise)
