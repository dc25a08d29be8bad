"""core/embedded.py, on stand-ins for the photographs and, where scikit-image is, on them."""

import hashlib
import importlib.util

import numpy as np
import pytest

from core import embedded
from core.datasets import DataSettings, load
from core.errors import UserError
from core.origins import load_test

SHAPES = {"astronaut": (512, 512), "cat": (300, 451), "coffee": (400, 600), "galaxies": (872, 1000),
          "retina": (1411, 1411), "rocket": (427, 640), "china": (427, 640), "flower": (427, 640)}
SHA256 = {      # of the six as scikit-image 0.26 ships them, which its _registry.py lists too
    "astronaut": "88431cd9653ccd53", "cat": "596aa1e7cb875eb7", "coffee": "cc02f8ca188b167c",
    "galaxies": "3a19c5dd8a927a93", "retina": "38a07f36f27f095e", "rocket": "c2dd0de7c538df8d"}


@pytest.fixture
def stand_ins(monkeypatch):
    """Instead of each photograph an image of its size that says which half a pixel lies in, for
    crops of either size: where squares are averaged, the halves meet between two of them."""
    files = {file: name for name, (_, file, _) in embedded.PHOTOGRAPHS.items()}

    def of_size(size):
        def stand_in(path):
            name = path.name
            height, width = SHAPES[name]
            side = embedded.PHOTOGRAPHS[name][2] * {64: 2, 224: 1}[size]
            image = np.random.default_rng(list(SHAPES).index(name)).integers(
                0, 100, (height, width, 3), np.uint8)
            image[:, width // side // 2 * side :] += 128
            return image

        monkeypatch.setattr(embedded, "read", stand_in)

    monkeypatch.setattr(embedded, "of_package",
                        lambda package, file: embedded.Path(files[file]))
    of_size(224)
    return of_size


@pytest.mark.parametrize(("size", "rows"), [(64, 8 * 48), (224, 8 * 24)])
def test_crops_are_of_disjoint_halves_and_no_two_alike(stand_ins, size, rows):
    stand_ins(size)
    train = load(DataSettings("photographs", size=size))
    test = load_test(train, DataSettings("photographs"))
    for images, right in ((train, False), (test, True)):
        assert images.images.shape == (rows, size, size, 3)
        assert np.bincount(images.labels).tolist() == [rows // 8] * 8
        assert ((images.images >= 128) == right).all()
        assert len({image.tobytes() for image in images.images}) == rows
    assert train.meta["classes"] == list(SHAPES)


def test_they_have_64_pixels_unless_another_size_is_named(stand_ins):
    assert load(DataSettings("photographs")).image_shape == (64, 64)
    for size in (16, 32, 225):
        with pytest.raises(UserError, match=rf"size: photographs come in .*, not {size}"):
            load(DataSettings("photographs", size=size))


def test_means():
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    np.testing.assert_array_equal(embedded.means(image, 1), image)
    assert embedded.means(image, 2).shape == (2, 2, 3)
    assert embedded.means(image, 2)[1, 1, 2] == round(image[2:4, 2:4, 2].mean())


def test_crops_reach_all_corners():
    half = np.arange(300 * 225 * 3).reshape(300, 225, 3)
    crops = embedded.cut(half, 224)
    assert len(crops) == 24
    np.testing.assert_array_equal(crops[0], half[:224, :224])
    np.testing.assert_array_equal(crops[1], half[:224, 1:])
    np.testing.assert_array_equal(crops[-1], half[76:, 1:])


def test_what_to_install_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^skimage/data/astronaut.png: no such file; pip install "
                                        r"scikit-image, for data=photographs$"):
        load(DataSettings("photographs"))


@pytest.mark.parametrize("name", SHAPES)
def test_the_photographs_are_those_whose_licence_was_read(name):
    package, file, _ = embedded.PHOTOGRAPHS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    path = embedded.of_package(package, file)
    assert embedded.read(path).shape == (*SHAPES[name], 3)
    if name in SHA256:
        assert hashlib.sha256(path.read_bytes()).hexdigest().startswith(SHA256[name])
