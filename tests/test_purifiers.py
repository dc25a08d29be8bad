"""Gray, JPEG, BDR, identity, blur, noise, median and bilateral against Pillow, NumPy, SciPy and
torchvision, through the command."""

import io
import math

import numpy as np
import pytest
import torch
from conftest import CONFIGS, run_command, succeed, write_imageset
from PIL import Image
from scipy.ndimage import correlate
from torchvision.transforms.v2.functional import gaussian_blur

import purify
from purifiers import blur


def purified(path, name: str, *arguments) -> np.ndarray:
    out = succeed(purify.main, CONFIGS / "purifiers" / f"{name}.yaml", f"data={path}", *arguments)
    return np.load(out / "images.npy")


@pytest.fixture
def colours(tmp_path):
    """1,100 random 12x20 images (more than a slice of rows), all corners of the colour cube."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1100, 12, 20, 3), dtype=np.uint8)
    images[:8] = np.array(list(np.ndindex(2, 2, 2)), np.uint8)[:, None, None] * 255
    return write_imageset(tmp_path / "colours", images, rng.integers(0, 10, 1100)), images


def test_gray_is_pillows_luma_in_three_channels(colours):
    path, images = colours
    found = purified(path, "gray")
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    np.testing.assert_array_equal(found, np.repeat(expected[..., None], 3, axis=3))


def test_gray_is_the_rounded_bt601_formula(colours):
    path, images = colours
    luma = images @ np.array([0.299, 0.587, 0.114])     # Pillow's weights are these to 1/65536
    assert np.abs(purified(path, "gray")[..., 0] - luma).max() <= 0.5 + 255 * 3 * 0.5 / 65536


def test_gray_leaves_grey_levels_as_they_are(tmp_path):
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), 3, axis=3)
    path = write_imageset(tmp_path / "grey", levels, np.zeros(1, np.int64))
    np.testing.assert_array_equal(purified(path, "gray"), levels)


@pytest.mark.parametrize("quality", [None, 1, 50, 100])
def test_jpeg_is_pillows(colours, quality):
    path, images = colours
    found = purified(path, "jpeg", *([f"jpeg.quality={quality}"] if quality else []))
    for image, row in zip(images[:200], found[:200], strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=quality or 10, subsampling="4:2:0")
        np.testing.assert_array_equal(row, np.asarray(Image.open(file)))


def test_bdr_2_leaves_four_levels(colours):
    path, images = colours
    found = purified(path, "bdr")
    assert np.unique(found).tolist() == [0, 64, 128, 192]
    np.testing.assert_array_equal(found, images // 64 * 64)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bdr_keeps_the_top_bits(colours, bits):
    path, images = colours
    step = 2 ** (8 - bits)
    np.testing.assert_array_equal(purified(path, "bdr", f"bdr.bits={bits}"), images // step * step)


def test_identity_changes_nothing(colours):
    path, images = colours
    np.testing.assert_array_equal(purified(path, "identity"), images)


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_dvaes_bdr_is_int_of_four_x_over_four(tmp_path, bits):
    """Of every level, as its code computes it; for two bits white stays and 192 becomes 191."""
    path = write_imageset(tmp_path / "all", np.arange(256, dtype=np.uint8).repeat(3)
                          .reshape(1, 16, 16, 3), np.zeros(1, np.int64))
    found = purified(path, "bdr", "bdr.form=dvae", f"bdr.bits={bits}")
    x = torch.arange(256).div(255)                          # ToTensor's floats
    expected = ((2**bits * x).int().float() / 2**bits * 255).round()
    np.testing.assert_array_equal(found[0, ..., 0].ravel(), expected)
    if bits == 2:
        assert np.unique(found).tolist() == [0, 64, 128, 191, 255]
        iss = purified(path, "bdr")
        assert np.abs(found.astype(int) - iss).max() == 63


def test_dvaes_gray_keeps_what_ours_rounds(colours):
    """0.2989 R + 0.587 G + 0.114 B in floats: less than a grey level apart."""
    path, images = colours
    kept = images.astype(np.float64) @ (0.2989, 0.587, 0.114)
    assert np.abs(purified(path, "gray")[..., 0] - kept).max() < 0.6


@pytest.mark.parametrize("name", ["gray", "jpeg", "bdr", "identity"])
def test_labels_and_order_stay_and_a_limit_is_a_prefix(colours, name):
    path, _ = colours
    out = succeed(purify.main, CONFIGS / "purifiers" / f"{name}.yaml", f"data={path}")
    np.testing.assert_array_equal(np.load(out / "labels.npy"), np.load(path / "labels.npy"))
    part = succeed(purify.main, CONFIGS / "purifiers" / f"{name}.yaml", f"data={path}",
                   "--limit", 37)
    assert part != out
    np.testing.assert_array_equal(np.load(part / "images.npy"), np.load(out / "images.npy")[:37])
    np.testing.assert_array_equal(np.load(part / "labels.npy"), np.load(path / "labels.npy")[:37])


@pytest.mark.parametrize(("arguments", "words"), [
    (["bdr", "bdr.bits=0"], "bdr.bits: 0 is out of range: it must be at least 1 and at most 8"),
    (["bdr", "bdr.bits=9"], "bdr.bits: 9 is out of range"),
    (["bdr", "bdr.bits=2.5"], "bdr.bits: 2.5 is not a whole number"),
    (["jpeg", "jpeg.quality=0"], "jpeg.quality: 0 is out of range"),
    (["jpeg", "jpeg.quality=101"], "jpeg.quality: 101 is out of range"),
    (["gray", "gray.mix=1"], "unknown key 'gray.mix'"),
    (["gray", "checkpoint=x"], "checkpoint: gray is not trained and takes none"),
    (["blur", "blur.kernel=4"], "blur.kernel: 4 is out of range: it must be at least 1 in steps"),
    (["blur", "blur.kernel=25"], "blur.kernel: 25 is too large to be mirrored at the border of "
                                 "images of 12x20"),
    (["blur", "blur.sigma=0"], "blur.sigma: 0 is out of range: it must be above 0"),
    (["noise", "noise.scale=8"], "noise.scale: 8 is above 1, but budgets are in [0, 1] units: "
                                 "write 8/255"),
    (["median", "median.kernel=2"], "median.kernel: 2 is out of range"),
    (["bilateral", "bilateral.sigma_colour=75"], "bilateral.sigma_colour: 75 is above 1, but"),
    (["bilateral", "bilateral.diameter=25"], "bilateral.diameter: 25 is too large to be mirrored"),
    (["coin", "coin.severity=8"], "coin.severity: 8 is out of range: it must be at least 1 and at "
                                  "most 7"),
])
def test_impossible_settings_are_refused(colours, arguments, words):
    name, *rest = arguments
    outcome = run_command(purify.main, CONFIGS / "purifiers" / f"{name}.yaml",
                          f"data={colours[0]}", *rest)
    assert outcome.status == 1
    assert words in outcome.error


# --- blur, noise, median ----------------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "kernel"), [(0.5, 3), (1.0, 3), (1.7, 5)])
def test_blur_is_torchvisions_and_the_formula(colours, sigma, kernel):
    path, images = colours
    found = purified(path, "blur", f"blur.sigma={sigma}", f"blur.kernel={kernel}")
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255
    expected = gaussian_blur(floats, [kernel, kernel], [sigma, sigma]).mul(255)
    assert (torch.from_numpy(found).permute(0, 3, 1, 2) - expected).abs().max() <= 0.5 + 1e-3
    weights = blur.weights_of(blur.Config(sigma=sigma, kernel=kernel))
    away = torch.arange(kernel) - kernel // 2
    formula = torch.tensor([math.exp(-x * x / (2 * sigma**2)) for x in away.tolist()])
    torch.testing.assert_close(weights.float(), formula / formula.sum())


@pytest.mark.parametrize(("preset", "axis"), [("binomial", [1, 2, 1]), ("mean", [1, 1, 1])])
def test_rems_low_pass_filters(colours, preset, axis):
    """Of every pixel, the border mirrored without being repeated, as OpenCV does."""
    path, images = colours
    kernel = np.outer(axis, axis) / np.sum(axis) ** 2
    found = purified(path, "blur", f"preset={preset}")
    for image, row in zip(images[:20], found[:20], strict=True):
        expected = np.stack([correlate(image[..., c].astype(float), kernel, mode="mirror")
                             for c in range(3)], -1)
        assert np.abs(row - expected).max() <= 0.5 + 1e-3


def test_the_published_blur_changes_nothing_and_says_so(colours):
    path, images = colours
    weights = blur.weights_of(blur.Config())
    assert 1e-22 < weights[0] == weights[2] < 3e-22
    for arguments, identity in (([], True), (["preset=sigma05"], False)):
        outcome = run_command(purify.main, CONFIGS / "purifiers/blur.yaml", f"data={path}",
                              *arguments)
        log = (outcome.path / "log.jsonl").read_text()
        assert ("this blur changes nothing" in outcome.stderr) == identity
        assert (f'"identity": {str(identity).lower()}' in log)
        assert np.array_equal(np.load(outcome.path / "images.npy"), images) == identity


def test_uniform_noise_brightens_by_up_to_eight_levels(tmp_path):
    """U(0, 8) of its own for every value: truncated, as released, 0 to 7 equally often."""
    grey = np.full((300, 16, 16, 3), 100, np.uint8)
    path = write_imageset(tmp_path / "grey", grey, np.arange(300) % 10)
    added = purified(path, "noise", "noise.rounding=floor").astype(int) - 100
    counts = np.bincount(added.ravel(), minlength=8) / added.size
    np.testing.assert_allclose(counts, 1 / 8, atol=0.005)
    assert len(np.unique(added.reshape(300, -1), axis=0)) == 300
    rounded = purified(path, "noise").astype(int) - 100
    assert (rounded.min(), rounded.max()) == (0, 8)
    assert rounded.mean() == pytest.approx(4, abs=0.05)


def test_gaussian_noise_has_its_scale(tmp_path):
    grey = np.full((100, 16, 16, 3), 128, np.uint8)
    path = write_imageset(tmp_path / "grey", grey, np.arange(100) % 10)
    added = purified(path, "noise", "preset=gaussian") / 255 - 128 / 255
    assert added.mean() == pytest.approx(0, abs=1e-3)
    assert added.std() == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize("kernel", [3, 5])
def test_median_is_the_middle_of_the_sorted_neighbourhood(tmp_path, kernel):
    images = np.random.default_rng(0).integers(0, 256, (3, 7, 9, 3), dtype=np.uint8)
    path = write_imageset(tmp_path / "set", images, np.arange(3))
    found, half = purified(path, "median", f"median.kernel={kernel}"), kernel // 2
    for n, y, x, c in np.ndindex(images.shape):
        around = sorted(images[n, min(max(y + v, 0), 6), min(max(x + u, 0), 8), c]
                        for v in range(-half, half + 1) for u in range(-half, half + 1))
        assert found[n, y, x, c] == around[len(around) // 2]


def test_bilateral_is_opencvs_formula(tmp_path):
    """Pixel by pixel; the corners of the square around one are left out."""
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 7, 3), dtype=np.uint8)
    images[0] = images[0] // 8 + 100                    # similar colours: those that count
    path = write_imageset(tmp_path / "set", images, np.arange(2))
    found = purified(path, "bilateral", "bilateral.diameter=5", "bilateral.sigma_space=2")
    padded = np.pad(images.astype(float), [(0, 0), (2, 2), (2, 2), (0, 0)], mode="reflect")
    for n, y, x in np.ndindex(images.shape[:3]):
        total, weights, here = np.zeros(3), 0.0, images[n, y, x].astype(float)
        for v, u in np.ndindex(5, 5):
            away = (v - 2) ** 2 + (u - 2) ** 2
            if away <= 4:
                there = padded[n, y + v, x + u]
                weight = math.exp(-away / (2 * 2**2)
                                  - np.abs(there - here).sum() ** 2 / (2 * 75**2))
                total, weights = total + weight * there, weights + weight
        assert np.abs(found[n, y, x] - total / weights).max() <= 0.5 + 1e-3
