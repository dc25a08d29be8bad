"""How a prior meets images of another size than it was trained on: resized, or tile by tile.

LE's purify_imagenet and GDMP, which it is from, resize 224x224 images to their prior's 256x256,
bilinearly, and back. Tiles are ours: no source purifies so. At every step the network predicts the
noise of overlapping tiles, and the predictions are averaged where tiles overlap, with weights that
fall to a tile's edge (as in MultiDiffusion, Bar-Tal et al. 2023, which makes panoramas so); noise
and guidance are of the whole image, so there are no seams to blend afterwards.
"""

import math

import torch
import torch.nn.functional as F

from purifiers.diffusion import Network


def resized(x: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """(B, 3, H, W) at another (height, width), bilinearly, as LE's release."""
    return x if x.shape[2:] == shape else F.interpolate(
        x, size=shape, mode="bilinear", align_corners=False)


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin, evenly, the first at 0 and the last at the end: as few as share `overlap`
    pixels with the next one."""
    count = max(1, math.ceil((length - overlap) / (side - overlap)))
    return [round(i * (length - side) / max(1, count - 1)) for i in range(count)]


def window(side: int, overlap: int) -> torch.Tensor:
    """Weights of a tile's pixels (side, side): 1 inside, falling evenly over `overlap` to its edge,
    never 0."""
    edge = torch.arange(side).minimum(torch.arange(side - 1, -1, -1)) + 1
    ramp = (edge / (overlap + 1)).clamp(max=1)
    return ramp[:, None] * ramp


def tiled(network: Network, shape: tuple[int, int], side: int, overlap: int,
          device: torch.device) -> Network:
    """A network for images of this (height, width), not smaller than `side`, on `device`, from one
    for tiles of side x side; all tiles of a batch are one call."""
    corners = [(top, left) for top in starts(shape[0], side, overlap)
               for left in starts(shape[1], side, overlap)]
    weight = window(side, overlap).to(device)
    total = torch.zeros(shape, device=device)
    for top, left in corners:
        total[top : top + side, left : left + side] += weight

    def whole(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        tiles = torch.cat([x[..., top : top + side, left : left + side] for top, left in corners])
        if len(t) == len(x) > 1:
            t = t.repeat(len(corners))
        eps = network(tiles.contiguous(memory_format=torch.channels_last), t) * weight
        blended = torch.zeros_like(x)
        for (top, left), part in zip(corners, eps.split(len(x)), strict=True):
            blended[..., top : top + side, left : left + side] += part
        return blended / total

    return whole
