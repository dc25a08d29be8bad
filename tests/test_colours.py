"""Colour normalisation against DUNE's loop over images, and OpenCV's colour spaces."""

import numpy as np
import pytest
import torch
from conftest import CONFIGS

from core.imageset import to_floats
from core.request import parse
from learners import channel_normalised, colours

# What cv2.cvtColor of OpenCV 4.11 gives of RGB in Lab and YUV, and of colours in these in RGB.
RGB = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (10, 200, 90), (200, 31, 77)]
IN_LAB = [(136, 208, 195), (224, 42, 211), (82, 207, 20), (255, 128, 128), (181, 63, 171),
          (112, 193, 146)]
IN_YUV = [(76, 91, 255), (150, 54, 0), (29, 239, 103), (255, 128, 128), (131, 108, 22),
          (87, 123, 227)]
OTHERS = [(0, 0, 0), (255, 0, 255), (128, 10, 240), (60, 250, 3), (9, 128, 128), (200, 128, 1)]
FROM_LAB = [(0, 64, 194), (0, 255, 0), (0, 152, 0), (73, 0, 255), (13, 13, 13), (0, 211, 255)]
FROM_YUV = [(0, 125, 0), (255, 232, 0), (255, 110, 0), (0, 84, 255), (9, 9, 9), (55, 255, 200)]


@pytest.fixture(scope="module")
def coloured() -> np.ndarray:
    """Images of weak and strong contrast, one of a single colour, one with a constant channel."""
    random = np.random.default_rng(0)
    low, high = np.sort(random.integers(0, 256, (2, 40, 1, 1, 3)), axis=0)
    images = random.integers(low, high + 1, (40, 12, 9, 3)).astype(np.uint8)
    images[0] = 7, 70, 200
    images[1, ..., 1] = 99
    return images


def in_colours(images: np.ndarray | list) -> torch.Tensor:
    return torch.tensor(np.asarray(images, np.uint8)).view(1, 1, -1, 3)


def test_the_colour_spaces_are_opencvs():
    rgb, others = in_colours(RGB), in_colours(OTHERS)
    assert torch.equal(colours.to_lab(rgb), in_colours(IN_LAB))
    assert torch.equal(colours.to_yuv(rgb), in_colours(IN_YUV))
    assert torch.equal(colours.from_lab(others), in_colours(FROM_LAB))
    assert torch.equal(colours.from_yuv(others), in_colours(FROM_YUV))


def test_lab_and_yuv_are_their_definitions():
    """In floats, as CIE and BT.601 have them; OpenCV's fixed point is a few levels apart."""
    rgb = np.random.default_rng(0).integers(0, 256, (2000, 3))
    x = rgb / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.412453, 0.212671, 0.019334], [0.357580, 0.715160, 0.119193],
                             [0.180423, 0.072169, 0.950227]]) / (0.950456, 1, 1.088754)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), xyz * 841 / 108 + 16 / 116)
    lab = np.stack([(116 * f[:, 1] - 16) * 2.55, 500 * (f[:, 0] - f[:, 1]) + 128,
                    200 * (f[:, 1] - f[:, 2]) + 128], 1)
    found = colours.to_lab(in_colours(rgb))
    assert np.abs(found[0, 0].numpy() - lab).max() < 3.5
    assert (colours.from_lab(found)[0, 0].numpy().astype(int) - rgb).std() < 2

    luma = rgb @ (0.299, 0.587, 0.114)
    yuv = np.stack([luma, 0.492 * (rgb[:, 2] - luma) + 128, 0.877 * (rgb[:, 0] - luma) + 128], 1)
    found = colours.to_yuv(in_colours(rgb))
    assert np.abs(found[0, 0].numpy() - yuv.clip(0, 255)).max() < 1.5
    u, v = yuv[:, 1] - 128, yuv[:, 2] - 128
    back = np.stack([luma + 1.14 * v, luma - 0.395 * u - 0.581 * v, luma + 2.032 * u], 1)
    inside = (yuv[:, 2] <= 255) & (yuv[:, 2] >= 0)
    assert np.abs(colours.from_yuv(found)[0, 0].numpy() - back)[inside].max() < 4


def per_image_channel_normalization(image: np.ndarray) -> np.ndarray:
    x = image.astype(np.float32)
    for c in range(3):
        std = x[:, :, c].std()
        x[:, :, c] = (x[:, :, c] - x[:, :, c].mean()) / (1.0 if std < 1e-6 else std)
    if x.max() - x.min() < 1e-6:
        return np.zeros_like(image)
    return ((x - x.min()) / (x.max() - x.min()) * 255).clip(0, 255).astype(np.uint8)


def equalize_hist(channel: np.ndarray) -> np.ndarray:
    """OpenCV's: the darkest level that is there becomes 0."""
    counts = [int((channel == level).sum()) for level in range(256)]
    first = next(level for level in range(256) if counts[level])
    if counts[first] == channel.size:
        return channel
    scale, total, table = 255 / (channel.size - counts[first]), 0, np.zeros(256)
    for level in range(first + 1, 256):
        total += counts[level]
        table[level] = round(total * scale)
    return table[channel].astype(np.uint8)


def whitening(image: np.ndarray, there, back) -> np.ndarray:
    x = there(torch.tensor(image)[None])[0].numpy().astype(np.float32)
    for c in range(3):
        std = x[:, :, c].std()
        x[:, :, c] = (x[:, :, c] - x[:, :, c].mean()) / (1.0 if std < 1e-6 else std)
        low, high = x[:, :, c].min(), x[:, :, c].max()
        x[:, :, c] = 0 if high - low < 1e-6 else (x[:, :, c] - low) / (high - low) * 255
    return back(torch.tensor(x.clip(0, 255).astype(np.uint8))[None])[0].numpy()


LOOPS = {
    "picn": per_image_channel_normalization,
    "histeq": lambda image: np.stack([equalize_hist(image[:, :, c]) for c in range(3)], 2),
    "lab": lambda image: whitening(image, colours.to_lab, colours.from_lab),
    "yuv": lambda image: whitening(image, colours.to_yuv, colours.from_yuv)}


@pytest.mark.parametrize("mode", LOOPS)
def test_each_mode_is_dunes_loop(mode, coloured, transform_of, few):
    """Where a value is a whole level but for rounding, dropping the fraction may go either way."""
    transform, _ = transform_of(channel_normalised, channel_normalised.Config(mode=mode), few)
    found, labels = transform(to_floats(torch.from_numpy(coloured)), torch.arange(40), 0)
    assert torch.equal(labels, torch.arange(40))
    assert found.is_contiguous(memory_format=torch.channels_last)
    found = found.permute(0, 2, 3, 1).mul(255).numpy()
    expected = np.stack([LOOPS[mode](image) for image in coloured])
    apart = np.abs(found - expected)
    assert (apart > 0.01).mean() < (0.08 if mode in ("lab", "yuv") else 0.005)
    assert np.abs(apart).mean() < 0.3
    assert np.abs(found - coloured).mean() > 10


def test_presets_are_the_modes():
    for mode in ("histeq", "lab", "yuv"):
        line = [str(CONFIGS / "learners/channel_normalised.yaml"), f"preset={mode}"]
        assert parse(line, "", "evaluate").config == channel_normalised.Config(mode=mode)
