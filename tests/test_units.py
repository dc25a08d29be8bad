"""Units of other people's noise and images: recognised, asked about, refused."""

import foreign
import numpy as np
import pytest
import torch
from conftest import write_imageset
from foreign import ROWS, imported, nchw, run_import, save, wrong

from core.imageset import ImageSet
from scripts.exchange import units

# fixtures
base, clean, noise, poisoned = foreign.base, foreign.clean, foreign.noise, foreign.poisoned


@pytest.mark.parametrize("name", [name for name in units.NORMALIZED if name != "REM"])
def test_normalised_images_are_no_noise(tmp_path, base, poisoned, name):
    """They keep --radius 8/255 as grey levels would; in order, in another, and a part."""
    mean, deviation = units.NORMALIZED[name]
    values = ((poisoned / 255 - mean) / deviation).astype(np.float32)
    order = np.random.default_rng(2).permutation(ROWS)
    for rows in (slice(None), order, order[:40]):
        np.save(tmp_path / "x.npy", values[rows])
        for words in ([], ["--units", "noise255"], ["--norm", "linf", "--radius", "8/255"]):
            error = wrong(tmp_path / "x.npy", base, *words)
            assert "no noise, but whole images of the base set after Normalize(mean=(" in error
            assert f"), {name}'s; save values * std + mean" in error
    with pytest.raises(AssertionError, match="are no images, which lie in"):
        imported(tmp_path / "x.npy", base, "--units", "images")


def test_scaled_images_say_how_to_read_them(tmp_path, base, clean, noise, poisoned):
    cases = {"signed": (nchw(poisoned / 127.5 - 1), "--units images2"),
             "half": ((poisoned / 127.5 - 1).astype(np.float16), "--units images2"),
             "beyond": ((clean.images + noise * 3) / 255, "--units images"),
             "other": ((poisoned / 255 - 0.3) / 0.4, "Normalize(mean=(0.3"),
             "rem": (poisoned / 255 - 0.5, "REM's"),
             "caffe": (poisoned - np.array([104.0, 117, 123]), "less a mean of (104, 117, 123)"),
             "int8": (poisoned.view(np.int8), "wrapped to int8; save them as uint8")}
    for name, (values, advice) in cases.items():
        np.save(tmp_path / f"{name}.npy", values)
        assert advice in wrong(tmp_path / f"{name}.npy", base), name
    assert "in grey levels; write --units images255" in wrong(
        save(tmp_path / "bytes.npy", poisoned), base, "--units", "noise255")
    for name, asked, expected in (("signed", "images2", poisoned), ("half", "images2", poisoned),
                                  ("beyond", "images", np.clip(clean.images + noise * 3, 0, 255))):
        found = imported(tmp_path / f"{name}.npy", base, "--units", asked)
        np.testing.assert_array_equal(found, expected)


def test_noise_that_follows_its_image_is_noise(tmp_path, base, clean):
    """A tenth more contrast: as alike as an image, but no image."""
    delta = (clean.images - clean.images.mean((1, 2, 3), keepdims=True)) * 0.1 / 255
    found = imported(save(tmp_path / "x.npy", delta.astype(np.float32)), base)
    np.testing.assert_array_equal(found, np.rint(np.clip(
        clean.images + delta.astype(np.float32).astype(np.float64) * 255, 0, 255)))


def test_noise_in_grey_levels_may_follow_its_image(tmp_path, base, clean):
    """As steep as CIFAR-10's Normalize, but without the brightness of the whole image."""
    images = clean.images.astype(np.float32)
    images += np.linspace(-60, 60, ROWS)[:, None, None, None]      # bright ones and dark ones
    other = write_imageset(tmp_path / "other", np.clip(images, 0, 255).astype(np.uint8),
                           np.array(clean.labels))
    shades = images - images.mean((1, 2), keepdims=True)
    np.save(tmp_path / "x.npy", (shades / 255 / 0.12).astype(np.float32))
    imported(tmp_path / "x.npy", other)


def test_smooth_noise_is_noise(tmp_path, base, clean):
    """Grey levels in slow waves, which some photographs look like."""
    random = np.random.default_rng(1)
    waves = random.normal(size=(ROWS, 2, 2, 3)).repeat(16, 1).repeat(16, 2) * 6
    values = np.clip(waves, -16, 16).astype(np.float32)
    np.testing.assert_array_equal(
        imported(save(tmp_path / "x.npy", values), base),
        np.rint(np.clip(clean.images + values.astype(np.float64), 0, 255)))


def test_noise_for_images_from_minus_one_to_one_is_asked_about(tmp_path, base, noise, poisoned):
    path = tmp_path / "x.pt"
    torch.save(torch.from_numpy(nchw(noise)).float() / 127.5, path)
    assert "a budget of 16/255, or of 8/255 for images in [-1, 1]; write --units noise or noise2" \
        in wrong(path, base)
    assert "above the 0.031373 of --radius" in wrong(path, base, "--norm", "linf", "--radius",
                                                    "8/255")
    assert "of noise for images in [-1, 1] write --units noise2" in wrong(
        path, base, "--norm", "linf", "--radius", "8/255")
    np.testing.assert_array_equal(imported(path, base, "--units", "noise2"), poisoned)
    for words in (["--units", "noise"], ["--norm", "linf", "--radius", "16/255"]):
        np.testing.assert_array_equal(
            imported(path, base, *words, "--out", tmp_path / words[0]),
            np.clip(ImageSet.load(base).images.astype(int) + 2 * noise, 0, 255))


def test_noise_after_normalize_is_asked_about(tmp_path, base, noise):
    """TAP's packed form: its budget differs by channel. Saturated, and in any layout."""
    for name in ("CIFAR-10", "CIFAR-10 (as many codes have it)", "ImageNet"):
        _, deviation = units.NORMALIZED[name]
        values = (noise / 255 / deviation).astype(np.float32)
        assert f"as after Normalize with {name}'s std" in wrong(
            save(tmp_path / "x.npy", nchw(values)), base)
    imported(tmp_path / "x.npy", base, "--units", "noise")


@pytest.mark.parametrize("values", [
    np.sign(np.arange(ROWS * 3072) % 3 - 1.0).astype(np.int8), np.linspace(-1, 1, ROWS * 3072),
    np.linspace(-1.5, 1.5, ROWS * 3072).astype(np.float32)])
def test_signs_are_no_grey_levels(tmp_path, base, values):
    save(tmp_path / "x.npy", values.reshape(ROWS, 32, 32, 3))
    assert "could be several things; say which with --units" in wrong(tmp_path / "x.npy", base)


def test_units_that_are_ambiguous(tmp_path, base, clean, noise):
    torch.save(torch.from_numpy(nchw(noise)).float() / 8, tmp_path / "cp.pt")   # CP: [-1, 1]
    assert "values from -1 to 1 could be several things; say which with --units" in \
        wrong(tmp_path / "cp.pt", base)
    np.save(tmp_path / "wrapped.npy", noise.astype(np.uint8))
    assert "noise that wrapped? Then write --units wrapped" in wrong(tmp_path / "wrapped.npy", base)
    found = imported(tmp_path / "wrapped.npy", base, "--units", "wrapped")
    np.testing.assert_array_equal(found, np.clip(clean.images.astype(int) + noise, 0, 255))


def test_bytes_that_are_small_are_asked_about(tmp_path, base, noise):
    """uint8 from 0 to 8: noise without its negative half, or dark images."""
    torch.save(torch.from_numpy(nchw(np.maximum(noise, 0))).byte(), tmp_path / "px.pt")
    assert "could be noise or dark images; say which with --units noise255" in run_import(
        tmp_path / "px.pt", base).error
    imported(tmp_path / "px.pt", base, "--units", "noise255")


def test_units_that_the_values_cannot_have(tmp_path, base, noise):
    path = save(tmp_path / "x.npy", (noise / 255).astype(np.float32))
    assert "float32 cannot be noise that wrapped" in wrong(path, base, "--units", "wrapped")
    assert "values from -8 to 8 are no images, which lie in [0, 1]" in wrong(
        save(tmp_path / "y.npy", noise.astype(np.int8)), base, "--units", "images")


def test_a_rounding_error_below_zero_is_no_noise(tmp_path, base, poisoned):
    values = (poisoned / 255).astype(np.float32)
    values[0, 0, 0] = (-1e-7, 1 + 1e-6, 0)
    found = imported(save(tmp_path / "x.npy", values), base)
    np.testing.assert_array_equal(found[1:], poisoned[1:])
