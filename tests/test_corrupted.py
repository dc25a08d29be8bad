"""ECLIPSE's corruption compensation, DUNE's colour noise and EM's uniform noise, image by image."""

import numpy as np
import pytest
import torch
from conftest import CONFIGS, new_run
from PIL import Image

from core import streams
from core.errors import ConfigError
from core.imageset import quantize, to_floats
from core.request import parse
from learners import corrupted, noise, standard


def test_corruption_is_eclipses_loop(transform_of, few, images):
    """RandomGrayscale of the PIL image, ToTensor, noise, clamp, and down to 8 bits."""
    transform, run = transform_of(corrupted, corrupted.Config(), few)
    found, _ = transform(to_floats(torch.from_numpy(images)), torch.arange(60), 3)
    gray = torch.rand(60, 1, 1, 1, generator=run.stream("corrupted", 3)) < 0.4
    drawn = torch.randn(60, 16, 16, 3, generator=run.stream("corrupted/noise", 3))
    assert 12 < gray.sum() < 36
    for image, seen, is_gray, normal in zip(images, found, gray, drawn, strict=True):
        picture = Image.fromarray(image)
        if is_gray:
            picture = picture.convert("L").convert("RGB")
        x = np.clip(np.asarray(picture, np.float32) / 255 + 0.05 * normal.numpy(), 0, 1)
        expected = (x * 255).astype(np.uint8) / 255
        assert np.abs(seen.permute(1, 2, 0).numpy() - expected).max() < 1e-6
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(transform(to_floats(torch.from_numpy(images)), None, 4)[0], found)


def test_colour_noise_is_dunes_loop(transform_of, few, images):
    """RandomPixelShift and RandomGaussianNoise, each clipped."""
    config = parse([str(CONFIGS / "learners/corrupted.yaml"), "preset=dune"], "", "evaluate").config
    transform, run = transform_of(corrupted, config, few)
    found, _ = transform(to_floats(torch.from_numpy(images)), torch.arange(60), 0)
    host = run.stream("corrupted", 0)
    torch.rand(60, generator=host)                      # which are grey: none
    shifts = (2 * torch.rand(60, 3, generator=host) - 1) * 8 / 255
    deviations = torch.rand(60, generator=host) * 8 / 255
    drawn = torch.randn(60, 16, 16, 3, generator=run.stream("corrupted/noise", 0))
    for i, image in enumerate(images):
        x = torch.clamp(torch.tensor(image) / 255 + shifts[i], 0, 1)
        x = torch.clamp(x + drawn[i] * deviations[i], 0, 1)
        assert (found[i].permute(1, 2, 0) - x).abs().max() < 1e-6


def test_noise_is_added_once_and_only_brightens(tmp_path, few, monkeypatch):
    """By 0 to 7 levels, all alike; every epoch sees the same set, and it is not the stored one."""
    seen = {}
    monkeypatch.setattr(standard, "train_classifier",
                        lambda network, train, *rest, **changes: (None, seen.update(
                            train=train, changes=changes)))
    before = few.images.copy()
    with new_run(tmp_path / "out") as run:
        noise.fit(few, few, noise.Config(), run)
    assert not seen["changes"]
    added = seen["train"].images.astype(int) - few.images
    assert added.min() == 0
    counts = np.bincount(added[few.images < 240], minlength=9) / (few.images < 240).sum()
    np.testing.assert_allclose(counts[:8], 1 / 8, atol=0.005)
    assert counts[8:].sum() == 0
    assert (seen["train"].images >= few.images).all()               # and does not wrap round
    dark = (few.images[[0, 256]] < 248).all(0)
    assert (added[0] != added[256])[dark].mean() > 0.8             # a block has its own
    np.testing.assert_array_equal(few.images, before)
    np.testing.assert_array_equal(seen["train"].labels, few.labels)
    for block, rows in enumerate((slice(0, 256), slice(256, 320))):
        x = few.images[rows] / np.float32(255)
        drawn = torch.rand(x.shape, generator=streams.generator(0, "noise", block))
        np.testing.assert_array_equal(
            seen["train"].images[rows], quantize(torch.from_numpy(x) + 8 / 255 * drawn, "floor"))


def test_noise_at_each_step_is_another(transform_of, few, images):
    transform, _ = transform_of(noise, noise.Config(once=False, amount=16 / 255), few)
    floats = to_floats(torch.from_numpy(images))
    one, other = (transform(floats, None, step)[0] - floats for step in (0, 1))
    assert one.min() >= 0
    assert one.max() < 16.01 / 255
    assert one[floats < 0.9].mean().item() == pytest.approx(8 / 255, rel=0.02)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("amount", [8, 0.2 / 255, -0.1])
def test_noise_outside_of_its_range_is_refused(amount):
    with pytest.raises(ConfigError):
        noise.Config(amount=amount)


def test_noise_in_grey_levels_is_refused_with_what_to_write():
    for make in (lambda: noise.Config(amount=8), lambda: corrupted.Config(noise=8),
                 lambda: corrupted.Config(shift=8)):
        with pytest.raises(ConfigError, match="write 8/255"):
            make()
    corrupted.Config(noise=0.0, shift=0.001)
