"""Data sets that packages ship: no download.

    digits          scikit-learn's handwritten digits, 16 or 32 pixels
    photos          tiles of its two photographs, 16 or 32 pixels
    photographs     eight photographs as eight classes, in crops of 64 or 224 pixels

Of the eight, six come with scikit-image: all that it ships in colour and calls public domain or CC0
in skimage/data/_fetchers.py. Three are lossless, three are JPEGs. Its other colour images are no
photographs, name no licence (motorcycle) or only "no known copyright restrictions" (ihc). The last
two are scikit-learn's, JPEGs under CC BY 2.0, which the data set `photos` is cut from too. Left
halves are for training, right ones for testing: no pixel is in both.

`photographs` is for tests and demonstrations: a class is one photograph, and its crops overlap.
Traces of JPEG coding tell some classes from others: three of them at 224 pixels, hardly any where
means of four pixels or more are cut.
"""

import functools
import importlib.util
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.perturbation import block_means
from core.splits import read_rows

# 360 of 1,797, the rest is for training: the rows that scikit-learn's train_test_split takes with
# test_size=360, stratified by label, random_state=0
DIGITS_TEST = (
    "eJwVyrFKw0AYB_D_fV7CZyrhCLS0Tle5oUIHQcQODl9DKBEcfATdxKe4SyNkkoIOjjeU0sdIofgMPoqj-Jt_gO5u"
    "nBGkS3yUCc7BCg6zdF7A4DPDZlJo-xspmAjOOlsN3X0pMQMg-gcI3qJOjjDC0SCRGlcGlB9PQa7Feq_u7O7rfw9Y"
    "WMdxTSTLA7yWVXv7GmiEykPKuB1nj2gHb8_fbDzjwfdWp-9Q3CBgwSc9TwCTK7QmTnE9u9R91fuXXNEaDbqLncyd"
    "nvL-yW9CPKOGykIttkP8AWogMBw=")
CROPS = {64: 48, 224: 24}       # of each half, by their side in pixels
ACROSS = 4                      # of them side by side; half a cat has room for two of 224
# class -> package, file, and the side of the squares of pixels whose means are cut at 224
PHOTOGRAPHS = {
    "astronaut": ("skimage", "data/astronaut.png", 1),          # 512x512, NASA: public domain
    "cat": ("skimage", "data/chelsea.png", 1),                  # 300x451, Stefan van der Walt: CC0
    "coffee": ("skimage", "data/coffee.png", 1),                # 400x600, Rachel Michetti: CC0
    "galaxies": ("skimage", "data/hubble_deep_field.jpg", 2),   # 872x1000, NASA: public domain
    "retina": ("skimage", "data/retina.jpg", 2),                # 1411x1411, Wikimedia Commons: CC0
    "rocket": ("skimage", "data/rocket.jpg", 1),                # 427x640, SpaceX: public domain
    "china": ("sklearn", "datasets/images/china.jpg", 1),       # 427x640, danielbuechele: CC BY 2.0
    "flower": ("sklearn", "datasets/images/flower.jpg", 1),     # 427x640, vultilion: CC BY 2.0
}
INSTALL = {"skimage": "pip install scikit-image, for data=photographs",
           "sklearn": "install scikit-learn as requirements.txt has it"}


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
        images = means(images, 2)
    rows = np.flatnonzero((np.arange(len(images)) % 5 == 4) == (split == "test"))
    return images[rows], labels[rows], classes


def photographs(split: str, size: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(images uint8 (N, size, size, 3), labels int64 (N,), class names) of train or test: 384 crops
    of 64 pixels or 192 of 224. Raises UserError for another size, or if a package is missing."""
    if size not in CROPS:
        raise UserError(f"size: photographs come in 64 or 224 pixels, not {size}")
    images = []
    for package, file, side in PHOTOGRAPHS.values():
        whole = means(read(of_package(package, file)), side if size == 224 else 2 * side)
        middle = whole.shape[1] // 2
        images += cut(whole[:, middle:] if split == "test" else whole[:, :middle], size)
    labels = np.repeat(np.arange(len(PHOTOGRAPHS), dtype=np.int64), CROPS[size])
    return np.stack(images), labels, list(PHOTOGRAPHS)


def cut(half: np.ndarray, size: int) -> list[np.ndarray]:
    """CROPS[size] different crops, evenly over half a photograph (H, W, 3)."""
    height, width = (side - size for side in half.shape[:2])
    across = min(ACROSS, width + 1)
    lefts, tops = (np.linspace(0, room, count).round().astype(int)
                   for room, count in ((width, across), (height, CROPS[size] // across)))
    return [half[top : top + size, left : left + size] for top in tops for left in lefts]


def means(images: np.ndarray, side: int) -> np.ndarray:
    """Squares of side x side pixels of (..., H, W, 3) as their rounded mean."""
    return np.round(block_means(images, side)).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def of_package(package: str, file: str) -> Path:
    """A file that comes with a package. It is not imported: that takes longer than a small step."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.submodule_search_locations[0] if spec else package, file)
    if not path.exists():
        raise UserError(f"{path}: no such file; {INSTALL[package]}")
    return path
