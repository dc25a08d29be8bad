"""What a poison did to the pixels: statistics against slow loops, budgets, the linear probe."""

import dataclasses
import math

import numpy as np
import pytest
from conftest import as_set

from core import perturbation
from core.errors import UserError
from core.imageset import SLICE_ROWS
from core.perturbation import check_bound, difference, linear_probe, measure, nearest_mean


def slow(original: np.ndarray, perturbed: np.ndarray) -> dict:
    """The definitions, image by image and in floats."""
    linf, l2, l0, mean, changed, squares = [], [], [], [], [], []
    for a, b in zip(original / 255.0, perturbed / 255.0, strict=True):
        delta = b - a
        linf.append(np.abs(delta).max())
        l2.append(math.sqrt((delta**2).sum()))
        l0.append(int((delta != 0).any(axis=-1).sum()))
        mean.append(np.abs(delta).mean())
        changed.append((delta != 0).any())
        squares.append((delta**2).mean())
    mse = float(np.mean(squares))
    return {"linf": max(linf), "l2": np.mean(l2), "l2_max": max(l2), "l0": max(l0),
            "mean_abs": np.mean(mean), "changed_rows": np.mean(changed),
            "changed_pixels": np.sum(l0) / (len(l0) * original.shape[1] * original.shape[2]),
            "psnr": 10 * math.log10(1 / mse) if mse else math.inf}


@pytest.mark.parametrize("rows", [1, 60, SLICE_ROWS, 2 * SLICE_ROWS + 5])
def test_statistics_are_the_slow_loops(rows):
    rng = np.random.default_rng(rows)
    original = rng.integers(0, 256, (rows, 4, 5, 3), dtype=np.uint8)
    perturbed = original.copy()
    touched = rng.random((rows, 4, 5, 3)) < 0.1
    perturbed[touched] = rng.integers(0, 256, touched.sum())
    perturbed[rows // 3] = original[rows // 3]          # one image unchanged
    found = dataclasses.asdict(measure(as_set(original), as_set(perturbed)))
    for key, value in slow(original, perturbed).items():
        assert found.pop(key) == pytest.approx(value, rel=1e-9), key
    assert not found                                    # the loops know every statistic


def test_the_extremes_do_not_wrap_around(images):
    black, white = np.zeros_like(images), np.full_like(images, 255)
    for a, b in ((black, white), (white, black)):
        found = measure(as_set(a), as_set(b))
        assert (found.linf, found.mean_abs, found.psnr) == (1, 1, 0)
        assert found.l2 == pytest.approx(math.sqrt(768))
        assert found.l0 == 256
    assert difference(as_set(white), as_set(black), slice(0, 1)).min() == -255


def test_nothing_changed(images):
    found = measure(as_set(images), as_set(images))
    assert (found.linf, found.l2, found.l0, found.changed_pixels, found.changed_rows) == (0,) * 5
    assert found.psnr == math.inf
    assert "PSNR inf" in found.in_words()


def test_one_pixel(images):
    perturbed = images.copy()
    perturbed[3, 2, 1] ^= 4
    found = measure(as_set(images), as_set(perturbed))
    assert (found.l0, found.linf) == (1, 4 / 255)
    assert found.changed_rows == pytest.approx(1 / 60)
    assert found.changed_pixels == pytest.approx(1 / (60 * 256))
    assert found.l2_max == pytest.approx(math.sqrt(3) * 4 / 255)


def test_sets_of_other_shapes_are_refused(images):
    with pytest.raises(UserError, match="different shapes"):
        measure(as_set(images), as_set(images[:59]))


# --- budgets ---------------------------------------------------------------------------------


def shift(images: np.ndarray, levels: int):
    base = np.full_like(images, 100)
    return measure(as_set(base), as_set(base + np.uint8(levels)))


@pytest.mark.parametrize(("norm", "radius", "levels", "rounding", "holds"), [
    ("linf", 8 / 255, 8, "round", True),
    ("linf", 8 / 255, 9, "round", False),
    ("linf", 8 / 255, 9, "floor", True),            # floor may lose a whole level
    ("linf", 8 / 255, 10, "floor", False),
    ("linf", 8.5 / 255, 9, "round", True),          # half a level more than the budget
    ("linf", 8.4 / 255, 9, "round", False),
    ("l2", math.sqrt(768) * 8 / 255, 8, "round", True),
    ("l2", math.sqrt(768) * 7.5 / 255, 8, "round", True),
    ("l2", math.sqrt(768) * 7.4 / 255, 8, "round", False),
    ("l2", math.sqrt(768) * 7 / 255, 8, "floor", True),
    ("l2", math.sqrt(768) * 6.9 / 255, 8, "floor", False),
    ("l0", 256, 8, "round", True),
    ("l0", 255, 8, "floor", False),
])
def test_budgets_allow_for_rounding_and_no_more(images, norm, radius, levels, rounding, holds):
    found = shift(images, levels)
    if holds:
        check_bound((norm, radius), found, 768, rounding)
    else:
        with pytest.raises(RuntimeError, match=f"poison's {norm} is"):
            check_bound((norm, radius), found, 768, rounding)


def test_no_bound_is_no_limit(images):
    check_bound(None, shift(images, 99), 768, "round")


# --- the probe -------------------------------------------------------------------------------


def test_the_probe_sees_class_wise_noise_and_not_random_noise(digits):
    rng = np.random.default_rng(0)
    labels = digits.labels[:1000]
    patterns = rng.integers(0, 2, (10, 8, 8, 3))
    noise = rng.integers(0, 2, (1000, 8, 8, 3))
    clean = np.full((1000, 8, 8, 3), 128, np.uint8)
    shortcut = as_set((clean + 8 * patterns[labels]).astype(np.uint8), labels)
    random = as_set((clean + 8 * noise).astype(np.uint8), labels)
    assert linear_probe(as_set(clean, labels), shortcut, np.random.default_rng(1)) == 1.0
    assert linear_probe(as_set(clean, labels), random, np.random.default_rng(1)) < 0.2


@pytest.mark.parametrize("probe", [linear_probe, nearest_mean])
def test_the_probes_are_held_out(probe):
    """More dimensions than rows fit any labels; a probe scored on its own rows would say 1."""
    rng = np.random.default_rng(0)
    clean = np.full((200, 16, 16, 3), 128, np.uint8)
    noisy = (clean + rng.integers(0, 9, clean.shape)).astype(np.uint8)
    labels = rng.integers(0, 10, 200)
    assert probe(as_set(clean, labels), as_set(noisy, labels), np.random.default_rng(1)) < 0.3


def test_the_nearest_mean_is_a_plain_loop(few):
    """Classes whose noise differs in one half of the image."""
    rng = np.random.default_rng(0)
    images = np.full((120, 8, 8, 3), 128, np.uint8)
    labels = np.arange(120) % 3
    noise = rng.integers(-20, 21, images.shape)
    noise[:, :4] += 3 * (labels[:, None, None, None] - 1)
    sets = as_set(images, labels), as_set((images + noise).astype(np.uint8), labels)
    (delta, known), (unseen, expected) = perturbation.halves(*sets, np.random.default_rng(1))
    right = 0
    for image, label in zip(unseen, expected, strict=True):
        distances = [np.linalg.norm(image - delta[known == one].mean(0)) for one in range(3)]
        right += np.argmin(distances) == label
    found = nearest_mean(*sets, np.random.default_rng(1))
    assert found == right / len(unseen)
    assert 0.4 < found < 1


def test_the_probe_says_nothing_where_it_cannot(images, labels):
    rng = np.random.default_rng(0)
    assert linear_probe(as_set(images, labels), as_set(images, labels), rng) is None
    one_class = as_set(images), as_set(images ^ np.uint8(1))
    assert linear_probe(*one_class, rng) is None
    assert linear_probe(as_set(images[:1]), as_set(images[:1] ^ np.uint8(1)), rng) is None


def test_the_probe_of_large_images_is_of_their_blocks():
    """64x64 come down to 32x32: a block's own checkerboard is gone, its mean is seen."""
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 4
    clean = np.full((100, 64, 64, 3), 128, np.uint8)
    checks = (np.add.outer(np.arange(64), np.arange(64)) % 2)[None, :, :, None]
    signs = np.array([[1, 1, 1], [1, -1, 1], [-1, 1, 1], [1, 1, -1]])[labels][:, None, None]
    fine = (clean + 8 * signs * (2 * checks - 1)).astype(np.uint8)
    flat = (clean + 8 * signs * np.ones_like(checks)).astype(np.uint8)
    assert linear_probe(as_set(clean, labels), as_set(fine, labels), rng) is None
    assert linear_probe(as_set(clean, labels), as_set(flat, labels), rng) == 1.0


def test_the_probes_take_large_images_in_parts(few, monkeypatch):
    """The same numbers, and never all of the probe's rows at once."""
    rng = np.random.default_rng(0)
    signs = rng.integers(-8, 9, (10, *few.images.shape[1:]))[few.labels]
    poison = dataclasses.replace(few, images=(few.images.astype(int) + signs).clip(0, 255).astype(
        np.uint8))
    whole = [probe(few, poison, np.random.default_rng(1)) for probe in (linear_probe, nearest_mean)]
    monkeypatch.setattr("core.imageset.SLICE_ROWS", 50)
    asked, compare = [], perturbation.difference
    monkeypatch.setattr(perturbation, "difference", lambda one, other, rows: (
        asked.append(len(rows)), compare(one, other, rows))[1])
    assert whole == [probe(few, poison, np.random.default_rng(1))
                     for probe in (linear_probe, nearest_mean)]
    assert max(asked) == 50
