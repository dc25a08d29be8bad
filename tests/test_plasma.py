"""Plasma fractals against a loop over points, their statistics, and what they do to images."""

import numpy as np
import pytest
import torch

from learners.plasma import brighten, doubled, fractals, seed, vary_contrast


def by_point(grid: np.ndarray, share: float, noise: np.ndarray) -> np.ndarray:
    """The next finer grid, point by point. A neighbour outside is the one on the other side, and
    the sum of four is divided by three at the rim, as in kornia 0.6.12."""
    side = 2 * len(grid) - 1
    fine = np.zeros((side, side))
    fine[::2, ::2] = grid

    def at(i, j):
        return fine[abs(i) if i < side else 2 * side - 2 - i, abs(j) if j < side else
                    2 * side - 2 - j]

    for i in range(1, side, 2):
        for j in range(1, side, 2):
            mean = sum(at(i + u, j + v) for u in (-1, 1) for v in (-1, 1)) / 4
            fine[i, j] = (1 - share) * mean + share * noise[i, j]
    for i in range(side):
        for j in range(side):
            if (i + j) % 2:
                total = at(i - 1, j) + at(i + 1, j) + at(i, j - 1) + at(i, j + 1)
                rim = i in (0, side - 1) or j in (0, side - 1)
                mean = total / (3 if rim else 4)
                fine[i, j] = (1 - share) * mean + share * noise[i, j]
    return fine


def test_a_step_is_diamond_square_point_by_point():
    generator = torch.Generator().manual_seed(0)
    grid = torch.rand(2, 3, 5, 5, generator=generator, dtype=torch.float64)
    noise = torch.rand(2, 3, 9, 9, generator=generator, dtype=torch.float64)
    found = doubled(grid, torch.tensor([0.3, 0.6]).view(2, 1, 1, 1).double(), noise)
    for image, share in ((0, 0.3), (1, 0.6)):
        for channel in range(3):
            expected = by_point(grid[image, channel].numpy(), share, noise[image, channel].numpy())
            np.testing.assert_allclose(found[image, channel].numpy(), expected, atol=1e-7)


def test_it_begins_with_a_third_of_uniform_corners():
    points = seed(torch.tensor([[0.3, 0.6], [0.9, 0.0]])) * 3     # by columns
    expected = [[0.3, 0.3 + 0.9 + 0.45, 0.9], [0.3 + 0.6 + 0.45, 0.45, 0.9 + 0.0 + 0.45],
                [0.6, 0.9 + 0.0 + 0.45, 0.0]]
    torch.testing.assert_close(points, torch.tensor(expected))


@pytest.mark.parametrize(("roughness", "mean", "spread"),
                         [(0.3, 0.442, 0.13), (0.5, 0.476, 0.113), (0.7, 0.496, 0.118)])
def test_its_statistics_at_32x32_are_kornias(roughness, mean, spread):
    """kornia 0.6.12, 400 images: means .443, .476, .496, sds .133, .113, .118, maxima to 1.4."""
    maps = fractals((150, 3, 32, 32), torch.full((150,), roughness),
                    torch.Generator().manual_seed(1))
    assert maps.shape == (150, 3, 32, 32)
    assert maps.mean().item() == pytest.approx(mean, abs=0.01)
    assert maps.std().item() == pytest.approx(spread, abs=0.01)
    assert 1.0 < maps.max() < 1.6
    assert maps.min() >= 0
    assert not torch.equal(maps[0, 0], maps[0, 1])          # a map of its own for each channel


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (16, 16), (17, 17), (33, 20), (64, 40)])
def test_any_size_is_covered(shape):
    maps = fractals((2, 3, *shape), torch.tensor([0.3, 0.7]), torch.Generator().manual_seed(2))
    assert maps.shape == (2, 3, *shape)
    assert maps.isfinite().all()


def test_brightness_and_contrast_are_their_formulas():
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    roughness, intensity = torch.tensor([0.3, 0.4, 0.6, 0.7]), torch.tensor([0.0, 0.5, 0.8, 1.0])
    maps = fractals(images.shape, roughness, torch.Generator().manual_seed(4))
    brighter = brighten(images, roughness, intensity, torch.Generator().manual_seed(4))
    sharper = vary_contrast(images, roughness, torch.Generator().manual_seed(4))
    for i in range(4):
        expected = (images[i] + intensity[i] * (2 * maps[i] - 1)).clamp(0, 1)
        torch.testing.assert_close(brighter[i], expected)
        torch.testing.assert_close(sharper[i], ((images[i] - 0.5) * 4 * maps[i] + 0.5).clamp(0, 1))
    torch.testing.assert_close(brighter[0], images[0])      # intensity 0
    grey = vary_contrast(torch.full_like(images, 0.5), roughness, torch.Generator())
    assert (grey == 0.5).all()
