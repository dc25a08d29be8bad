"""Grey levels of colours, as Pillow counts them: BT.601's luma in whole numbers."""

import torch

RED, GREEN, BLUE = 19595, 38470, 7471       # 0.299, 0.587, 0.114 in 1/65536


def luma(images: torch.Tensor) -> torch.Tensor:
    """Grey levels int32 (n, H, W, 1) of uint8 (n, H, W, 3)."""
    red, green, blue = images.int().split(1, 3)
    return (RED * red + GREEN * green + BLUE * blue + 32768) >> 16
