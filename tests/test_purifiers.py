"""Gray, JPEG, BDR and identity against Pillow and NumPy, through the command."""

import io

import numpy as np
import pytest
import torch
from conftest import CONFIGS, run_command, succeed, write_imageset
from PIL import Image

import purify


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
])
def test_impossible_settings_are_refused(colours, arguments, words):
    name, *rest = arguments
    outcome = run_command(purify.main, CONFIGS / "purifiers" / f"{name}.yaml",
                          f"data={colours[0]}", *rest)
    assert outcome.status == 1
    assert words in outcome.error
