"""What the tests of importing share: a set, noise for it, and each origin's format of the two."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_command, write_imageset
from PIL import Image

from core.imageset import ImageSet
from scripts.exchange import import_poison

ROWS, K = 60, 10


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """60 structured images of 32x32, by ten labels in no order."""
    random = np.random.default_rng(0)
    coarse = random.integers(20, 236, (ROWS, 8, 8, 3))
    images = coarse.repeat(4, 1).repeat(4, 2) + random.integers(-12, 13, (ROWS, 32, 32, 3))
    labels = random.permutation(np.arange(ROWS) % K)
    return write_imageset(tmp_path_factory.mktemp("base") / "base", images.astype(np.uint8), labels)


@pytest.fixture(scope="module")
def clean(base) -> ImageSet:
    return ImageSet.load(base)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """Grey levels from -8 to 8, int64 (60, 32, 32, 3)."""
    return np.random.default_rng(1).integers(-8, 9, (ROWS, 32, 32, 3))


@pytest.fixture(scope="module")
def poisoned(clean, noise) -> np.ndarray:
    return np.clip(clean.images.astype(int) + noise, 0, 255).astype(np.uint8)


def run_import(path: object, base: Path, *words: object):
    return run_command(import_poison.main, path, "--base", base, *words)


def imported(path: object, base: Path, *words: object) -> np.ndarray:
    outcome = run_import(path, base, *words)
    assert outcome.status == 0, outcome.stderr
    found = ImageSet.load(outcome.path)
    np.testing.assert_array_equal(found.labels, ImageSet.load(base).labels[: len(found)])
    return np.array(found.images)


def nchw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def make_em(path: Path, noise: np.ndarray, *_) -> None:                # EM, TUE, LE, D-VAE
    torch.save(torch.from_numpy(nchw(noise)).float() / 255, path)


def make_pngs(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:  # TAP, AR
    (path / "data").mkdir(parents=True)
    for row in reversed(range(len(images))):
        Image.fromarray(images[row]).save(path / "data" / f"{row}.png")


def make_avatar(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    np.savez(path, data=images, targets=labels)


def make_eclipse(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    path.write_bytes(pickle.dumps([(image.tobytes(), int(label))
                                   for image, label in zip(images, labels, strict=True)]))


def save(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def wrong(path: object, base: Path, *words: object) -> str:
    outcome = run_import(path, base, *words)
    assert outcome.status == 1, outcome.stdout
    assert not list(Path().glob("runs/poisons/*"))
    return outcome.error
