"""OPS: the pixel by a slow search, and facts of the release."""

import numpy as np
import pytest
from conftest import run_command, succeed, write_imageset

from core.imageset import ImageSet
from poisons import ops
from poisons.__main__ import main as poison_main


def slow_search(images: np.ndarray, labels: np.ndarray, sparsity: int = 1, formula: str = "code"
                ) -> dict[int, list[tuple[int, int, tuple]]]:
    """Over every class, place and colour, as the paper writes it."""
    found, taken = {}, set()
    x = images / 255.0
    for label in sorted(set(labels.tolist())):
        scores = []
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                for v in range(8):
                    colour = np.array([v // 4, v // 2 % 2, v % 2])
                    distance = np.abs(colour - x[labels == label, row, column])     # (n, 3)
                    if formula == "code":
                        score = distance.mean() / distance.std()
                    else:
                        score = distance.sum(1).mean() / distance.sum(1).var()
                    key = (row, column, tuple(colour))
                    scores.append((0 if key in taken else score, key))
        order = np.argsort([score for score, _ in scores], kind="stable")[::-1]
        found[label] = []
        for row, column, colour in (scores[i][1] for i in order):
            used = {(row, column) for row, column, _ in found[label]}
            if len(found[label]) < sparsity and (formula == "code" or (row, column) not in used):
                found[label].append((row, column, colour))
        taken |= set(found[label])
    return found


@pytest.fixture(params=[(6, 6), (5, 8)])
def small(request, tmp_path):
    """Random images with a trend, and a folder of them."""
    random = np.random.default_rng(0)
    trend = random.integers(0, 200, (3, *request.param, 3))
    labels = np.arange(60) % 3
    images = (trend[labels] + random.integers(0, 56, (60, *request.param, 3))).astype(np.uint8)
    path = write_imageset(tmp_path / "small", images, labels, classes=3)
    return images, labels, path


@pytest.mark.parametrize("formula", ["code", "paper"])
@pytest.mark.parametrize("sparsity", [1, 3])
def test_the_pixels_are_those_of_a_slow_search(small, formula, sparsity):
    images, labels, path = small
    expected = slow_search(images, labels, sparsity, formula)
    out = succeed(poison_main, "method=ops", f"data={path}", f"ops.formula={formula}",
                  f"ops.sparsity={sparsity}")
    by_hand = images.copy()
    for label, pixels in expected.items():
        for row, column, colour in pixels:
            by_hand[labels == label, row, column] = 255 * np.array(colour)
    np.testing.assert_array_equal(np.load(out / "images.npy"), by_hand)


def test_pixels_are_of_different_places_by_the_papers_formula(tmp_path):
    """A place where a class is nearly grey has the best scores, whatever colour it gets."""
    random = np.random.default_rng(0)
    images, labels = random.integers(60, 200, (60, 4, 4, 3)).astype(np.uint8), np.arange(60) % 3
    images[:, 1, 2] = 128 + np.arange(60)[:, None] % 2
    source = write_imageset(tmp_path / "small", images, labels, classes=3)
    keys = ["method=ops", f"data={source}", "ops.formula=paper"]
    after = np.load(succeed(poison_main, *keys, "ops.sparsity=2") / "images.npy")
    assert ((after != images).any(3).sum((1, 2)) == 2).all()
    assert "17 pixels a class, but an image has 16" in run_command(
        poison_main, *keys, "ops.sparsity=17").error


def test_more_pixels_than_there_are_pairs(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
    source = write_imageset(tmp_path / "tiny", images, np.arange(20) % 10)
    assert "ops.sparsity: 10 classes of 13 pixels each, but there are 128 pairs" in run_command(
        poison_main, "method=ops", f"data={source}", "ops.sparsity=13").error
    succeed(poison_main, "method=ops", f"data={source}", "ops.sparsity=12")


def test_one_pixel_a_class_on_digits(few_path, few):
    """Black corners are equal in all images: their score is infinite, and no class may take
    another's."""
    out = succeed(poison_main, "method=ops", f"data={few_path}")
    after = np.load(out / "images.npy")
    changed = (after != few.images).any(3)
    assert changed.sum((1, 2)).max() == 1
    seen = set()
    for label in range(10):
        places = {tuple(place) for place in np.argwhere(changed[few.labels == label].any(0))}
        [(row, column)] = places
        colours = {tuple(c) for c in after[few.labels == label, row, column].tolist()}
        [colour] = colours
        assert set(colour) <= {0, 255}
        seen.add((row, column, colour))
    assert len(seen) == 10


def test_equal_pixels_score_infinite():
    mean, moment = np.zeros((1, 1, 3)), np.zeros((1, 1, 3, 3))
    for formula in ("code", "paper"):
        scores = ops.score(mean, moment, formula)[0, 0]
        assert scores[0] == 0               # black on black
        assert scores[7] == np.inf          # white on black


def test_moments_are_those_of_the_class(small):
    images, labels, path = small
    means, moments = ops.class_moments(ImageSet.load(path))
    x = images[labels == 1] / 255.0
    np.testing.assert_allclose(means[1], x.mean(0), atol=1e-12)
    np.testing.assert_allclose(moments[1], np.einsum("nhwc,nhwd->hwcd", x, x) / len(x), atol=1e-12)
