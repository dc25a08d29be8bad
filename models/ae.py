"""AE: the VAE's encoder and decoder around a bottleneck of few channels, without sampling.

Source: yuyi-sd/MTL-UE, models/ResNet.py, class ResNetAE with stem_end_block 9 (the copy in
yuyi-sd/D-VAE has one width only). Deviations: the unused tail of its ResNet-18 is left out; the
noise on the input is the caller's.
"""

import torch
from torch import nn

from models.dvae import make_decoder, make_encoder
from models.resnet import BasicBlock


class AE(nn.Module):
    """Bottleneck of `channels` x H / 2 x W / 2 (post-ReLU); every other width follows from it."""

    def __init__(self, channels: int = 128):
        super().__init__()
        width, half = max(channels // 2, 1), max(channels // 4, 1)      # 64 and 32 at 128 channels
        self.encoder = nn.Sequential(
            *make_encoder("cifar", width, channels), BasicBlock(channels, channels))
        self.decoder = make_decoder(channels, width, half, upscale=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W), H and W even -> their reconstruction in (0, 1)."""
        return torch.sigmoid(self.decoder(self.encoder(x)))
