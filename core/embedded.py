"""Data sets that scikit-learn ships, 16 or 32 pixels: handwritten digits, tiles of photographs."""

import functools

import numpy as np

from core.errors import UserError
from core.photographs import of_package, read
from core.splits import read_rows

# 360 of 1,797, the rest is for training: the rows that scikit-learn's train_test_split takes with
# test_size=360, stratified by label, random_state=0
DIGITS_TEST = (
    "eJwVyrFKw0AYB_D_fV7CZyrhCLS0Tle5oUIHQcQODl9DKBEcfATdxKe4SyNkkoIOjjeU0sdIofgMPoqj-Jt_gO5u"
    "nBGkS3yUCc7BCg6zdF7A4DPDZlJo-xspmAjOOlsN3X0pMQMg-gcI3qJOjjDC0SCRGlcGlB9PQa7Feq_u7O7rfw9Y"
    "WMdxTSTLA7yWVXv7GmiEykPKuB1nj2gHb8_fbDzjwfdWp-9Q3CBgwSc9TwCTK7QmTnE9u9R91fuXXNEaDbqLncyd"
    "nvL-yW9CPKOGykIttkP8AWogMBw=")


def check_size(name: str, size: int) -> None:
    if size not in (16, 32):
        raise UserError(f"size: {name} come in 16 or 32 pixels, not {size}")


def digits(split: str, size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """scikit-learn's 8x8 digits, bilinear to `size`, grey copied to 3 channels: images
    uint8 (N, size, size, 3), labels int64 (N,) and class names, as of the others."""
    import torch

    check_size("digits", size)
    grey, labels = grey_digits()
    test = read_rows(DIGITS_TEST, len(labels))
    rows = test if split == "test" else np.setdiff1d(np.arange(len(labels)), test)
    small = torch.from_numpy(grey[rows]).float().view(-1, 1, 8, 8) / 16
    large = torch.nn.functional.interpolate(small, size=(size, size), mode="bilinear")
    levels = large.mul(255).round().to(torch.uint8).numpy()[:, 0, :, :, None]
    return np.repeat(levels, 3, axis=3), labels[rows], [str(i) for i in range(10)]


@functools.cache
def grey_digits() -> tuple[np.ndarray, np.ndarray]:
    """Float (1797, 64) in 0..16, and labels; a text file that takes a while to read."""
    table = np.loadtxt(of_package("sklearn", "datasets/data/digits.csv.gz"), delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def photos(split: str, size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Tiles of 32x32 from scikit-learn's photographs of 427x640, labelled by photograph; for size
    16 their means of 2x2. Every fifth tile is for testing."""
    check_size("photos", size)
    classes = ["china", "flower"]
    whole = [read(of_package("sklearn", f"datasets/images/{name}.jpg")) for name in classes]
    tiles = [photo[:416].reshape(13, 32, 20, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
             for photo in whole]
    images, labels = np.concatenate(tiles), np.repeat(np.arange(2, dtype=np.int64), 260)
    if size == 16:
        means = images.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4))
        images = np.round(means).astype(np.uint8)
    rows = np.flatnonzero((np.arange(len(images)) % 5 == 4) == (split == "test"))
    return images[rows], labels[rows], classes
