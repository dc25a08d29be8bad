"""A rate-limited VAE, and D-VAE, whose second decoder predicts the residual from latent and label.

Source: Yu et al., ICML 2024 (arXiv 2405.01460) and yuyi-sd/D-VAE, configs/models/resnet.py, classes
ResNetVAE and ResNetDVAE. Deviations: the unused tail of their ResNet-18 is left out. At 224x224
the released D-VAE cannot run (its class embedding has 128 channels whatever the trunk has, and none
at all behind layer3): as in yuyi-sd/MTL-UE, models/ResNet.py, it has as many as the trunk here.
"""

import math
from typing import Literal

import torch
from torch import nn

from models.resnet import BasicBlock, make_stem

Trunk = Literal["layer2", "layer3", "layer4"]
GROUPS = {"layer2": 1, "layer3": 2, "layer4": 3}    # of ResNet-18 that halve the size, at this end


def kl_divergence(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mu, exp(logvar)) || N(0, 1)) in nats per latent position, in float32.

    mu, logvar: (B, C, h, w). Sum over channels, mean over batch and positions: a scalar.
    """
    return _KLDivergence.apply(mu.float(), logvar.float())


class _KLDivergence(torch.autograd.Function):
    """The backward is by hand: the latents are large, and autograd walks them many times."""

    @staticmethod
    def forward(ctx, mu, logvar):
        ctx.save_for_backward(mu, logvar)
        mean = mu.square().mean() + logvar.exp().sub_(logvar).mean() - 1
        return 0.5 * mu.shape[1] * mean

    @staticmethod
    def backward(ctx, gradient):
        mu, logvar = ctx.saved_tensors
        scale = gradient * (mu.shape[1] / mu.numel())
        return mu * scale, logvar.exp().sub_(1).mul_(0.5 * scale)


class InstanceNormReLU(nn.Module):
    """relu(instance_norm(x)) of (B, C, h, w), without parameters, in any memory format.

    F.instance_norm copies a channels-last tensor there and back, and F.group_norm, which does not,
    loses accuracy where a channel's mean is far above its deviation (E[x^2] - E[x]^2 on the CPU).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _InstanceNormReLU.apply(x.float())  # statistics never in half precision


class _InstanceNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x_norm = x - x.mean((2, 3), keepdim=True)
        variance = x_norm.square().mean((2, 3), keepdim=True)
        rstd = (variance + 1e-5).rsqrt()        # torch's default eps
        x_norm.mul_(rstd)
        ctx.save_for_backward(x_norm, rstd)
        return x_norm.relu()

    @staticmethod
    def backward(ctx, gradient):
        x_norm, rstd = ctx.saved_tensors
        gradient = gradient * (x_norm > 0)
        mean = gradient.mean((2, 3), keepdim=True)
        slope = (gradient * x_norm).mean((2, 3), keepdim=True)
        # rstd * (gradient - mean - slope * x_norm), with broadcast factors multiplied first
        return torch.addcmul(-mean * rstd, x_norm, -slope * rstd).addcmul_(gradient, rstd)


def make_encoder(stem: str, width: int, channels: int, trunk: Trunk = "layer2") -> nn.Sequential:
    """ResNet-18 up to the first block of the group `trunk`: 3 -> channels (>= 0). Each group halves
    the size, and the stem "imagenet" takes a quarter."""
    blocks, wide = [make_stem(stem, width), *(BasicBlock(width, width, 1) for _ in range(2))], width
    for _ in range(GROUPS[trunk] - 1):
        blocks += [BasicBlock(wide, 2 * wide, 2), BasicBlock(2 * wide, 2 * wide, 1)]
        wide *= 2
    return nn.Sequential(*blocks, BasicBlock(wide, channels, 2))


def make_decoder(channels: int, width: int, half: int, upscale: int) -> nn.Sequential:
    """channels -> width -> half -> 3, `upscale` (2 or 8) times larger; no final non-linearity."""
    later = twice if upscale == 8 else same
    return nn.Sequential(
        twice(channels, width),
        same(width, width),         # the source has no activation before it
        InstanceNormReLU(),
        later(width, half),
        InstanceNormReLU(),
        later(half, 3),
    )


def make_deep_decoder(trunk: Trunk, width: int) -> nn.Sequential:
    """The same behind layer3, from 4 * width channels to images 4 times larger, and behind layer4,
    from 8 * width to images 8 times larger."""
    if trunk == "layer3":
        return nn.Sequential(
            twice(4 * width, 2 * width), same(2 * width, 2 * width), InstanceNormReLU(),
            twice(2 * width, width), InstanceNormReLU(),
            same(width, 3))
    return nn.Sequential(
        twice(8 * width, 4 * width), same(4 * width, 2 * width), InstanceNormReLU(),
        twice(2 * width, width), same(width, width // 2), InstanceNormReLU(),
        twice(width // 2, 3))


def twice(inputs: int, out: int) -> nn.ConvTranspose2d:
    """Doubles the size."""
    return nn.ConvTranspose2d(inputs, out, 4, 2, 1)


def same(inputs: int, out: int) -> nn.ConvTranspose2d:
    """Keeps it."""
    return nn.ConvTranspose2d(inputs, out, 3, 1, 1)


class VAE(nn.Module):
    """Encoder, sampled latent and decoder (x_hat).

    The trunk that ends in layer2 has 2 * width channels, half as large as the image; layer3 and
    layer4 each double them and halve the size. stem "imagenet" (7x7 and max-pooling, with layer2):
    an eighth. Raises ValueError on an unknown stem or an image size that cannot be restored.
    """

    def __init__(
        self,
        width: int = 64,
        latent_channels: int = 256,
        image_size: int = 32,
        stem: str = "cifar",
        trunk: Trunk = "layer2",
    ):
        super().__init__()
        if stem == "imagenet" and trunk != "layer2":
            raise ValueError(f"stem 'imagenet' goes with trunk 'layer2', not '{trunk}'")
        self.downscale = 2 ** GROUPS[trunk] if stem == "cifar" else 8
        if image_size % self.downscale:
            raise ValueError(
                f"image_size is {image_size}; stem {stem!r} needs a multiple of {self.downscale}"
            )
        size = image_size // self.downscale
        self.latent_shape = (latent_channels, size, size)  # of one image; noise is (B, C, h, w)
        self.width, self.trunk = width, trunk
        self.channels = channels = width * 2 ** GROUPS[trunk]

        self.encoder = make_encoder(stem, width, channels, trunk)
        self.to_mu = nn.Conv2d(channels, latent_channels, 1)
        self.to_logvar = nn.Conv2d(channels, latent_channels, 1)
        self.post_conv = nn.Conv2d(latent_channels, channels, 1)
        self.decoder = self.new_decoder()

    def new_decoder(self) -> nn.Sequential:
        """From the trunk's channels and size to 3 channels and the image's."""
        if self.trunk == "layer2":
            return make_decoder(self.channels, self.width, self.width // 2, self.downscale)
        return make_deep_decoder(self.trunk, self.width)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> mu and (unclamped) logvar, each (B, *latent_shape)."""
        h = self.encoder(x)
        return self.to_mu(h), self.to_logvar(h)

    def latent(
        self, mu: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """Decoder input z (B, channels, h, w); `noise` is N(0, 1) like mu, None means no sampling.

        Best in mu's memory order; torch.randn(B, h, w, C).permute(0, 3, 1, 2) is channels-last.
        """
        if noise is not None:
            mu = torch.addcmul(mu.float(), torch.exp(logvar.float() / 2), noise)
        return self.post_conv(mu)

    def reconstruct(self, z: torch.Tensor) -> torch.Tensor:
        """x_hat (B, 3, H, W) in (0, 1): what the rate-limited latent keeps of the image."""
        return torch.sigmoid(self.decoder(z))

    def forward(
        self, x: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x_hat, mu, logvar."""
        mu, logvar = self.encode(x)
        return self.reconstruct(self.latent(mu, logvar, noise)), mu, logvar


class DVAE(VAE):
    """A VAE with an auxiliary decoder D_p (p_hat) of the same latent and of the label.

    `spatial_embedding` gives each class a map of the trunk's channels and size, else one vector.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 64,
        latent_channels: int = 256,
        image_size: int = 32,
        spatial_embedding: bool = True,
        stem: str = "cifar",
        trunk: Trunk = "layer2",
    ):
        super().__init__(width, latent_channels, image_size, stem, trunk)
        size = self.latent_shape[1:] if spatial_embedding else (1, 1)
        # (h, w, C): a row of the table is an image in channels-last memory order
        self.embedding_shape = (*size, self.channels)
        self.perturbation_decoder = self.new_decoder()
        self.class_embedding = nn.Embedding(num_classes, math.prod(self.embedding_shape))

    def perturbation(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """p_hat (B, 3, H, W) in [0, 1] units, unbounded: the residual as z and the label tell it.

        labels: (B,) int64.
        """
        u = self.class_embedding(labels).view(-1, *self.embedding_shape).permute(0, 3, 1, 2)
        return self.perturbation_decoder(z + u)

    def forward(
        self, x: torch.Tensor, labels: torch.Tensor, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """x_hat, p_hat (both of the same z), mu, logvar."""
        mu, logvar = self.encode(x)
        z = self.latent(mu, logvar, noise)
        return self.reconstruct(z), self.perturbation(z, labels), mu, logvar
