"""The DDPM UNet: predicts the noise in a noised image.

At its defaults the CIFAR network of Ho et al. 2020: 35,746,307 parameters. Names and shapes of the
weights are those of ermongroup/ddim, whose checkpoints load as they are. Source: code
hojonathanho/diffusion, unet.py, and ermongroup/ddim, models/diffusion.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

GROUPS = 32


class UNet(nn.Module):
    """`multipliers` times `width` are the channels of each level, which halves the image's side;
    levels whose side is in `attention` attend. The side must be a multiple of
    2^(levels - 1) and the channels of 32."""

    def __init__(self, width: int = 128, multipliers: tuple[int, ...] = (1, 2, 2, 2),
                 blocks: int = 2, attention: tuple[int, ...] = (16,), image_size: int = 32,
                 dropout: float = 0.1) -> None:
        super().__init__()
        channels, levels = [width * factor for factor in multipliers], len(multipliers)
        sides = [image_size >> level for level in range(levels)]
        time = 4 * width
        self.temb = TimeEmbedding(width, time)
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        skips = [width]                             # channels of what the way down leaves behind

        def level(inputs: list[int], out: int, side: int) -> nn.Module:
            part = nn.Module()
            part.block = nn.ModuleList(ResBlock(c, out, time, dropout) for c in inputs)
            part.attn = nn.ModuleList(Attention(out) for _ in inputs if side in attention)
            return part

        self.down, before = nn.ModuleList(), width
        for out, side in zip(channels, sides, strict=True):
            down = level([before] + [out] * (blocks - 1), out, side)
            skips += [out] * blocks
            if side > sides[-1]:
                down.downsample = Downsample(out)
                skips.append(out)
            self.down.append(down)
            before = out

        self.mid = nn.Module()
        self.mid.block_1 = ResBlock(before, before, time, dropout)
        self.mid.attn_1 = Attention(before)
        self.mid.block_2 = ResBlock(before, before, time, dropout)

        ups = []
        for out, side in zip(reversed(channels), reversed(sides), strict=True):
            inputs = [before + skips.pop()] + [out + skips.pop() for _ in range(blocks)]
            up = level(inputs, out, side)
            if side < sides[0]:
                up.upsample = Upsample(out)
            ups.append(up)
            before = out
        self.up = nn.ModuleList(reversed(ups))      # up.i belongs to level i, as down.i

        self.norm_out = group_norm(width * multipliers[0])
        self.conv_out = nn.Conv2d(width * multipliers[0], 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The noise (B, 3, H, W), float32, in x: (B, 3, H, W) in [-1, 1] before its noise. `t`:
        integer steps, 0 the least noisy, (B,) or (1,) for all."""
        temb = self.temb(t)
        h = self.conv_in(x.to(self.conv_in.weight.dtype))
        skips = [h]
        for part in self.down:
            for i, block in enumerate(part.block):
                h = block(h, temb)
                if part.attn:
                    h = part.attn[i](h)
                skips.append(h)
            if hasattr(part, "downsample"):
                h = part.downsample(h)
                skips.append(h)
        h = self.mid.block_1(h, temb)
        h = self.mid.attn_1(h)
        h = self.mid.block_2(h, temb)
        for part in reversed(self.up):
            for i, block in enumerate(part.block):
                h = block(torch.cat([h, skips.pop()], dim=1), temb)
                if part.attn:
                    h = part.attn[i](h)
            if hasattr(part, "upsample"):
                h = part.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h))).float()


class TimeEmbedding(nn.Module):
    """Sines and cosines of t, then two linear layers."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(width, out), nn.Linear(out, out)])
        self.half = width // 2

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        step = torch.arange(self.half, device=t.device, dtype=torch.float32)
        rates = torch.exp(step * (-math.log(10_000) / (self.half - 1)))
        angles = t.float()[:, None] * rates
        wave = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.dense[0].weight.dtype)
        return self.dense[1](F.silu(self.dense[0](wave)))


class ResBlock(nn.Module):
    """Two convolutions with the time added between them, and a skip."""

    def __init__(self, inputs: int, out: int, time: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, out, 3, padding=1)
        self.temb_proj = nn.Linear(time, out)
        self.norm2 = group_norm(out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if inputs != out:
            self.nin_shortcut = nn.Conv2d(inputs, out, 1)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """Every pixel attends to every other: one head of full width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1)
                                                 for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x)
        q, k, v = (part(h).permute(0, 2, 3, 1).reshape(batch, 1, height * width, channels)
                   for part in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.reshape(batch, height, width, channels).permute(0, 3, 1, 2))


class Downsample(nn.Module):
    """Half the side. The zeros go right and below only: symmetric padding is another network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)     # PyTorch's own eps is 1e-5


def initialise(model: UNet) -> UNet:
    """Ho et al.'s weights: Xavier uniform without bias, and next to nothing where a residual branch
    or the network ends, so that it starts as the identity (code: nn.py, unet.py)."""
    for name, part in model.named_modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            ends = name.endswith(("conv2", "proj_out", "conv_out"))
            nn.init.xavier_uniform_(part.weight, gain=1e-5 if ends else 1.0)    # scale 1e-10
            nn.init.zeros_(part.bias)
    return model
