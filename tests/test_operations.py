"""The batched image operations against Pillow, image by image and byte by byte."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from learners.operations import FILL, OPERATIONS, apply_each


def affine(image, *matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


# What Pillow does, and the magnitudes to try.
PILLOW = {
    "ShearX": (lambda image, m: affine(image, 1, m, 0, 0, 1, 0), (-0.3, 0.3)),
    "ShearY": (lambda image, m: affine(image, 1, 0, 0, m, 1, 0), (-0.3, 0.3)),
    "TranslateX": (lambda image, m: affine(image, 1, 0, m, 0, 1, 0), (-15, 15)),
    "TranslateY": (lambda image, m: affine(image, 1, 0, 0, 0, 1, m), (-15, 15)),
    "Rotate": (lambda image, m: image.rotate(m), (-180, 180)),
    "AutoContrast": (lambda image, m: ImageOps.autocontrast(image), (0, 1)),
    "Invert": (lambda image, m: ImageOps.invert(image), (0, 1)),
    "Equalize": (lambda image, m: ImageOps.equalize(image), (0, 1)),
    "Solarize": (lambda image, m: ImageOps.solarize(image, m), (0, 256)),
    "Posterize": (lambda image, m: ImageOps.posterize(image, int(m)), (1, 8.99)),
    "Contrast": (lambda image, m: ImageEnhance.Contrast(image).enhance(m), (0.1, 1.9)),
    "Color": (lambda image, m: ImageEnhance.Color(image).enhance(m), (0.1, 1.9)),
    "Brightness": (lambda image, m: ImageEnhance.Brightness(image).enhance(m), (0.1, 1.9)),
    "Sharpness": (lambda image, m: ImageEnhance.Sharpness(image).enhance(m), (0.1, 1.9)),
}


def pictures(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Noise; noise of few levels in some channels; one colour; black; a few dots."""
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    images[1::3] = images[1::3] // rng.integers(1, 30, (1, 1, 1, 3)) + 40
    images[3], images[6] = images[3, 0, 0], 0
    images[9] = np.where(rng.random(images[9].shape) < 0.03, images[9], 7)
    return images


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(32, 32), (15, 24), (2, 3)])
def test_each_operation_is_pillows_image_by_image(name, shape):
    rng = np.random.default_rng(3)
    images = pictures(rng, 60, *shape)
    if name == "Cutout":
        sides, centres = 0.2 * shape[1] * rng.random(60), rng.random((60, 2))
        sides[0] = 0
        arguments = sides, centres
        expected = [cut(*case) for case in zip(images, sides, centres, strict=True)]
    else:
        on_one, (low, high) = PILLOW[name]
        magnitudes = rng.uniform(low, high, 60)
        magnitudes[[0, 1, 2, 4]] = low, high, (low + high) / 2, low + 1.5   # a half goes up
        arguments = (magnitudes,)
        expected = [on_one(Image.fromarray(image), magnitude)
                    for image, magnitude in zip(images, magnitudes, strict=True)]
    given = torch.from_numpy(images.copy())
    found = OPERATIONS[name](given, *map(torch.from_numpy, arguments))
    np.testing.assert_array_equal(found.numpy(), np.stack([np.asarray(one) for one in expected]))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(given.numpy(), images)                # its input is left


def cut(image: np.ndarray, side: float, centre: np.ndarray) -> Image.Image:
    """Fast AutoAugment's, line by line, with what NumPy's uniform(width) and uniform(height) draw:
    their interval is (1, width] and (1, height], as `high` is 1."""
    picture = Image.fromarray(image.copy())
    if side <= 0:
        return picture
    (width, height), (u, v) = picture.size, centre
    x0 = int(max(0, width + (1 - width) * u - side / 2))
    y0 = int(max(0, height + (1 - height) * v - side / 2))
    corner = min(width, x0 + side), min(height, y0 + side)
    ImageDraw.Draw(picture).rectangle((x0, y0, *corner), FILL)
    return picture


def test_each_image_gets_its_own_operation_and_keeps_its_place():
    """Applied to each alone, by its index, gives the same; -1 leaves an image."""
    rng = np.random.default_rng(4)
    images = torch.from_numpy(pictures(rng, 60, 16, 16))
    which = rng.permutation(np.arange(60) % (len(OPERATIONS) + 1) - 1)
    magnitudes, centres = rng.uniform(0.5, 1.5, 60), rng.random((60, 2))
    magnitudes[which == list(OPERATIONS).index("Posterize")] += 3
    found = apply_each(images, which, magnitudes, centres)
    for row, (index, magnitude) in enumerate(zip(which, magnitudes, strict=True)):
        alone = images[row : row + 1]
        if index >= 0:
            name = list(OPERATIONS)[index]
            arguments = [torch.tensor([magnitude], dtype=torch.float64)]
            if name == "Cutout":
                arguments.append(torch.from_numpy(centres[row : row + 1]))
            alone = OPERATIONS[name](alone, *arguments)
        assert torch.equal(found[row : row + 1], alone)
