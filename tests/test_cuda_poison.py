"""CUDA, the class-wise blur: the release's filter values, and scipy's convolution."""

import numpy as np
import pytest
from conftest import run_command, succeed, write_imageset
from scipy.ndimage import correlate

from poisons import cuda
from poisons.__main__ import main as poison_main


def test_the_published_filters():
    """The release's; the first ten of a 100-class run are the same."""
    filters = cuda.draw_filters(10, cuda.Config(), 0)
    np.testing.assert_allclose(
        filters[0], [[.1646, .2146, 1], [.1635, .1271, .1938], [.1313, .2675, .2891]], atol=6e-5)
    np.testing.assert_allclose(
        filters[1], [[1, .0794, .2323], [.1368, .1705, .0056], [.1853, .1836, .1851]], atol=6e-5)
    places = [tuple(np.argwhere(f == 1)[0]) for f in filters]
    assert places == [(0, 2), (0, 0), (0, 1), (0, 2), (2, 0), (0, 2), (2, 2), (0, 0), (1, 0),
                      (1, 1)]
    np.testing.assert_allclose(filters.sum((1, 2)), [2.551, 2.179, 1.638, 2.238, 2.711, 2.474,
                                                     1.925, 2.732, 2.045, 2.232], atol=6e-4)
    np.testing.assert_array_equal(cuda.draw_filters(100, cuda.Config(), 0)[:10], filters)


def test_the_published_filters_of_size_9():
    filters = cuda.draw_filters(100, cuda.Config(kernel=9, blur=0.06), 0)
    places = [tuple(np.argwhere(f == 1)[0]) for f in filters[:5]]
    assert places == [(4, 1), (4, 8), (8, 3), (3, 7), (2, 1)]
    assert filters.sum((1, 2)).mean() == pytest.approx(3.39, abs=0.02)


@pytest.mark.parametrize(("kernel", "shape"), [(3, (16, 16)), (5, (16, 16)), (3, (10, 24))])
def test_the_images_are_blurred_as_by_scipy(tmp_path, kernel, shape):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (30, *shape, 3), dtype=np.uint8)
    images[3] = 0
    labels = np.arange(30) % 10
    path = write_imageset(tmp_path / "clean", images, labels)
    out = succeed(poison_main, "method=cuda", f"data={path}", f"cuda.kernel={kernel}", "seed=4")
    filters = cuda.draw_filters(10, cuda.Config(kernel=kernel), 4)
    after = np.load(out / "images.npy")
    for image, label, got in zip(images, labels, after, strict=True):
        blurred = np.stack([correlate(image[..., c] / 255.0, filters[label], mode="constant")
                            for c in range(3)], -1)
        expected = blurred / max(blurred.max(), 1e-12) * 255
        assert np.abs(got - expected).max() <= 0.5 + 1e-3
        assert got.max() == (255 if image.any() else 0)


def test_a_constant_image_stays_constant_inside_the_border(tmp_path):
    images = np.full((10, 16, 16, 3), 77, np.uint8)
    path = write_imageset(tmp_path / "flat", images, np.arange(10))
    out = succeed(poison_main, "method=cuda", f"data={path}")
    inside = np.load(out / "images.npy")[:, 1:-1, 1:-1]
    assert (inside == 255).all()            # and divided by its own maximum


def test_an_even_kernel_is_refused(few_path):
    outcome = run_command(poison_main, "method=cuda", f"data={few_path}", "cuda.kernel=4")
    assert outcome.status == 1
    assert "cuda.kernel: 4 is out of range: it must be at least 1 in steps of 2" in outcome.stderr


def test_a_kernel_larger_than_the_images_is_refused(few_path):
    assert "cuda.kernel: 17 is larger than the images, 16x16" in run_command(
        poison_main, "method=cuda", f"data={few_path}", "cuda.kernel=17").error
