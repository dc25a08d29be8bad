"""How far two sets of images are apart: PSNR and SSIM. Inputs are float (B, 3, H, W) in [0, 1]."""

import torch
import torch.nn.functional as F


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image (B,), dB; inf where equal.

    For a set, average the squared error first and convert once: D-VAE's code does, and the mean
    of per-image PSNRs differs.
    """
    return -10 * (a - b).square().flatten(1).mean(1).log10()


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image (B,), in [-1, 1].

    Wang et al. 2004: 11x11 Gaussian window of sigma 1.5 without padding, K1 0.01, K2 0.03,
    channels averaged. Images must be at least 11 pixels wide.
    """
    offsets = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    line = line / line.sum()
    window = (line[:, None] * line).expand(3, 1, 11, 11)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, window, groups=3)

    mean_a, mean_b = blur(a), blur(b)
    variance_a = blur(a * a) - mean_a.square()
    variance_b = blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                  / ((mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2)))
    return similarity.flatten(1).mean(1)
