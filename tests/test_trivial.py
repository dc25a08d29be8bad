"""TrivialAugment's twelve operations: what kornia 0.6.12 gave for an image; how they are drawn."""

import numpy as np
import pytest
import torch

from learners.trivial import TWELVE, trivial_augment

BY_NAME = {operation.__name__: operation for operation, _ in TWELVE}
# Magnitude -> mean, standard deviation, channel 0 at (5, 7) and channel 2 at (12, 3) of the result.
KORNIA = {
    "auto_contrast": (0, (0.50318, 0.29174, 0.86458, 0.97917)),
    "equalize": (0, (0.62068, 0.33317, 1.00000, 1.00000)),
    "rotate": (20, (0.44013, 0.21576, 0.60426, 0.73139)),
    "posterize": (3, (0.43713, 0.23717, 0.75294, 0.87843)),
    "solarize": (0.4, (0.31137, 0.13742, 0.20833, 0.11667)),
    "contrast": (1.5, (0.70004, 0.28338, 1.00000, 1.00000)),
    "brightness": (1.3, (0.77590, 0.19897, 1.00000, 1.00000)),
    "sharpness": (1.6, (0.50287, 0.30685, 0.88744, 1.00000)),
    "shear_x": (0.3, (0.50187, 0.22448, 0.75960, 0.87356)),
    "shear_y": (0.2, (0.50209, 0.22710, 0.77757, 0.88115)),
    "translate_x": (0.3, (0.34715, 0.29159, 0.00000, 0.00000)),
    "translate_y": (0.45, (0.26827, 0.28913, 0.00000, 0.00000)),
}


def picture() -> torch.Tensor:
    """(1, 3, 32, 32), from 0.1 to 0.9."""
    c, y, x = torch.meshgrid(torch.arange(3), torch.arange(32), torch.arange(32), indexing="ij")
    return (((7 * y * y + 13 * x * y + 29 * c + 5 * x) % 97) / 96 * 0.8 + 0.1)[None]


def of(magnitude: float, count: int = 1) -> torch.Tensor:
    return torch.full((count, 1, 1, 1), magnitude)


@pytest.mark.parametrize("name", KORNIA)
def test_each_operation_is_kornias(name):
    magnitude, expected = KORNIA[name]
    images = torch.cat([picture(), picture().flip(3), torch.full((1, 3, 32, 32), 0.5)])
    found = BY_NAME[name](images, of(magnitude, 3))
    one = found[0].double()
    measured = one.mean().item(), one.std().item(), one[0, 5, 7].item(), one[2, 12, 3].item()
    assert measured == pytest.approx(expected, abs=1e-5)
    for row in range(3):                                    # images do not touch each other
        alone = BY_NAME[name](images[row : row + 1], of(magnitude))
        torch.testing.assert_close(found[row : row + 1], alone, rtol=0, atol=1e-6)


def test_every_image_has_its_own_magnitude():
    images = torch.full((3, 3, 4, 4), 0.5)
    found = BY_NAME["brightness"](images, torch.tensor([0.6, 1.0, 1.4]).view(3, 1, 1, 1))
    assert found.amax((1, 2, 3)).tolist() == pytest.approx([0.1, 0.5, 0.9])
    bits = BY_NAME["posterize"](images * 1.6, torch.tensor([0.4, 0.6, 4.0]).view(3, 1, 1, 1))
    assert bits.amax((1, 2, 3)).tolist() == pytest.approx([0, 128 / 255, 192 / 255])    # of 204


def test_one_operation_serves_the_whole_batch_and_all_twelve_are_drawn():
    """A table of another order, a thirteenth or an identity would show in the shares."""
    ranges = [(0, 1), (0, 1), (0, 30), (0, 4), (0, 1), (0.1, 1.9), (0.1, 1.9), (0.1, 1.9), (0, 0.3),
              (0, 0.3), (0, 0.5), (0, 0.5)]
    assert [limits for _, limits in TWELVE] == ranges
    images, names = picture().expand(4, 3, 32, 32), list(KORNIA)
    assert set(BY_NAME) == set(names)
    seen = set()
    for seed in range(80):
        draw, same = (np.random.default_rng(seed) for _ in (1, 2))
        found = trivial_augment(images, draw)
        operation, (low, high) = TWELVE[same.integers(12)]
        magnitudes = torch.from_numpy(same.uniform(low, high, 4)).float().view(4, 1, 1, 1)
        torch.testing.assert_close(found, operation(images, magnitudes), rtol=0, atol=1e-6)
        seen.add(operation.__name__)
    assert seen == set(names)
