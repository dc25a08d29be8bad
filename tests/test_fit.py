"""Priors of another size than the images: purifiers/fit.py, and what commands make of it."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS, run_command, succeed, write_imageset

import purify
import train_ddpm
from core.imageset import ImageSet
from core.request import parse
from purifiers import fit, prior

CPU = torch.device("cpu")
TRAIN = ["method=ddpm", "ddpm.train.width=32", "ddpm.train.batch_size=16", "ddpm.train.steps=3",
         "ddpm.train.multipliers=[1, 1]", "ddpm.train.blocks=1", "ddpm.train.attention=[4]",
         "ddpm.train.sample_every=0", "ddpm.train.crop=8", "threads=1"]
DDPM = ["method=ddpm", "ddpm.t_star=3", "threads=1"]
JCDP = ["method=jcdp", "jcdp.t_star=3", "jcdp.passes=1", "jcdp.threshold=1", "threads=1",
        "jcdp.lpips_net=squeeze", "jcdp.lpips_resize=32", "jcdp.strength=10"]


@pytest.fixture(scope="module")
def small(few, tmp_path_factory):
    """20 digits of 16x16."""
    path = tmp_path_factory.mktemp("fit") / "small"
    return write_imageset(path, few.images[:20], few.labels[:20])


@pytest.fixture(scope="module")
def of_crops(small):
    """A prior of 8x8 crops of 16x16 images."""
    return succeed(train_ddpm.main, *TRAIN, f"data={small}", f"out={small.parent / 'crops'}")


# --- the functions ---------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "side", "overlap", "expected"), [
    (64, 64, 16, [0]), (65, 64, 16, [0, 1]), (112, 64, 16, [0, 48]), (113, 64, 16, [0, 24, 49]),
    (224, 64, 16, [0, 40, 80, 120, 160]), (224, 64, 0, [0, 53, 107, 160]), (16, 8, 0, [0, 8])])
def test_tiles_cover_an_image_and_overlap(length, side, overlap, expected):
    found = fit.starts(length, side, overlap)
    assert found == expected
    assert found[-1] + side == length
    assert all(one + side - other >= overlap for one, other in itertools.pairwise(found))


def test_the_window_falls_to_the_edge():
    weights = fit.window(8, 3)
    assert weights[3, 3] == weights[3, 4] == 1
    torch.testing.assert_close(weights[0, 3:5], torch.full((2,), 0.25))
    torch.testing.assert_close(weights, weights.flip(0).flip(1))
    assert weights.min() > 0
    assert (fit.window(8, 0) == 1).all()


@pytest.mark.parametrize("overlap", [0, 3])
def test_what_looks_at_single_pixels_is_the_same_by_tiles(overlap):
    """Predictions of a network that sees one pixel cannot depend on the tile: weights sum to 1."""
    x, t = torch.randn(3, 3, 20, 14), torch.tensor([7])
    calls = []

    def network(x, t):
        calls.append((x.shape, t.tolist()))
        return x.pow(2) + t.view(-1, 1, 1, 1)

    found = fit.tiled(network, (20, 14), 8, overlap, CPU)(x, t)
    torch.testing.assert_close(found, network(x, t))
    tiles = len(fit.starts(20, 8, overlap)) * len(fit.starts(14, 8, overlap))
    assert calls[0] == ((3 * tiles, 3, 8, 8), [7])
    each = torch.tensor([1, 2, 3])          # a step for every image
    found = fit.tiled(network, (20, 14), 8, overlap, CPU)(x, each)
    torch.testing.assert_close(found, network(x, each))


def test_every_tile_sees_its_place():
    """Against a plain loop over tiles, for a network that sees neighbours."""
    kernel = torch.randn(3, 3, 3, 3)

    def network(x, t):
        return F.conv2d(x, kernel, padding=1)

    x, total, weight = torch.randn(2, 3, 12, 12), torch.zeros(2, 3, 12, 12), torch.zeros(12, 12)
    for top in (0, 4):
        for left in (0, 4):
            rows, columns = slice(top, top + 8), slice(left, left + 8)
            part = network(x[..., rows, columns], None)
            total[..., rows, columns] += part * fit.window(8, 4)
            weight[rows, columns] += fit.window(8, 4)
    found = fit.tiled(network, (12, 12), 8, 4, CPU)(x, torch.tensor([0]))
    torch.testing.assert_close(found, total / weight)


def test_resizing_is_bilinear():
    x = torch.rand(2, 3, 14, 14)
    assert fit.resized(x, (14, 14)) is x
    torch.testing.assert_close(fit.resized(x, (16, 16)),
                               F.interpolate(x, size=[16, 16], mode="bilinear"))


def test_random_crops():
    images = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6)
    seen = set()
    for seed in range(200):
        crops = prior.random_crops(images, 4, torch.Generator().manual_seed(seed))
        for image, crop in zip(images, crops, strict=True):
            top, left = divmod(int(crop[0, 0, 0] - image[0, 0, 0]), 6)
            assert torch.equal(crop, image[:, top : top + 4, left : left + 4])
            seen.add((top, left))
    assert seen == {(top, left) for top in range(3) for left in range(3)}


# --- the commands ----------------------------------------------------------------------------


@pytest.mark.parametrize("line", [DDPM, JCDP], ids=["ddpm", "jcdp"])
def test_every_fit_purifies_and_gives_another_result(small, of_crops, line):
    method, found = line[0].removeprefix("method="), {}
    for key in ("fit=resize", "fit=tiles", "fit=tiles overlap=4"):
        keys = [f"{method}.{word}" for word in key.split()]
        if "overlap" not in key:
            keys.append(f"{method}.overlap=0")
        out = succeed(purify.main, *line, f"data={small}", f"checkpoint={of_crops}", *keys,
                      f"out={key.replace(' ', '-')}")
        found[key] = ImageSet.load(out).images
        assert found[key].shape == (20, 16, 16, 3)
    assert len({images.tobytes() for images in found.values()}) == 3
    meta = json.loads((out / "meta.json").read_text())
    assert meta["lineage"][-1]["config"]["overlap"] == 4


def test_images_that_a_prior_makes_smaller_are_said(small, of_crops):
    outcome = run_command(purify.main, *DDPM, f"data={small}", f"checkpoint={of_crops}",
                          "ddpm.fit=resize", "--limit", "2")
    assert outcome.status == 0
    assert outcome.stderr.count("images of 16x16 are made as small as those of") == 1


@pytest.mark.parametrize(("keys", "message"), [
    ([], r"ddpm.fit: .*crops was trained on crops of 8x8; for 16x16 images write ddpm.fit=tiles"),
    (["ddpm.fit=tiles"], "ddpm.overlap: 16 pixels, but the tiles of .* have 8; write less")])
def test_what_does_not_fit_is_said(small, of_crops, keys, message):
    outcome = run_command(purify.main, *DDPM, f"data={small}", f"checkpoint={of_crops}", *keys)
    assert outcome.status == 1
    assert re.search(message, outcome.error)


def test_images_smaller_than_a_tile(small, of_crops, tmp_path):
    images = np.zeros((4, 4, 4, 3), np.uint8)
    tiny = write_imageset(tmp_path / "tiny", images, np.arange(4))
    outcome = run_command(purify.main, *DDPM, f"data={tiny}", f"checkpoint={of_crops}",
                          "ddpm.fit=tiles", "ddpm.overlap=2")
    assert outcome.status == 1
    assert "are larger than the 4x4 images; write ddpm.fit=resize" in outcome.error
    whole = run_command(purify.main, *DDPM, f"data={tiny}", f"checkpoint={of_crops}")
    assert "was trained on 16x16 images, but the set has 4x4" in whole.error


def test_images_as_large_as_the_crops_need_no_tiles(of_crops, few, tmp_path):
    cut = write_imageset(tmp_path / "cut", few.images[:8, :8, :8], few.labels[:8])
    whole, tiles = (succeed(purify.main, *DDPM, f"data={cut}", f"checkpoint={of_crops}",
                            f"ddpm.fit={fit}", "ddpm.overlap=2", f"out={tmp_path / fit}")
                    for fit in ("whole", "tiles"))
    np.testing.assert_array_equal(ImageSet.load(whole).images, ImageSet.load(tiles).images)


def test_a_crop_larger_than_the_images_is_refused(small):
    outcome = run_command(train_ddpm.main, *TRAIN, f"data={small}", "ddpm.train.crop=32")
    assert outcome.status == 1
    assert "ddpm.train.crop: 32 pixels, but the images have 16x16" in outcome.error


@pytest.mark.parametrize(("method", "words", "expected"), [
    ("ddpm", ["like=pets"], {"fit": "tiles"}), ("jcdp", ["like=imagenet100"], {"fit": "tiles"}),
    ("ddpm", ["like=cifar10"], {"fit": "whole"}),
    ("ddpm", ["like=pets", "preset=lsun256"], {"fit": "resize"}),
    ("jcdp", ["like=pets", "preset=purify_imagenet"],
     {"fit": "resize", "mode": "mse", "target_noise": "image"})])
def test_what_yamls_say_of_large_images(method, words, expected):
    yaml = str(CONFIGS / "purifiers" / f"{method}.yaml")
    config = parse([yaml, *words], "", "purify").config
    assert {key: getattr(config, key) for key in expected} == expected
    if method == "ddpm":
        trained = parse([yaml, *words], "", "train_ddpm").train_config
        tiles = config.fit == "tiles"
        assert trained.crop == (64 if tiles else None)
        assert len(trained.multipliers) == {"tiles": 5, "resize": 6, "whole": 4}[config.fit]
