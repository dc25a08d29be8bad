"""Cutout, mixup and cutmix against the releases' loops over images."""

import math

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, as_set, new_run

from core.imageset import ImageSet
from core.request import parse
from learners import cutmix, cutout, mixup
from scripts.tables import plan, spec

SHAPE = (10, 14)        # height and width differ, so that one in the other's place shows


def classes(count: int) -> ImageSet:
    """A set of one black image for each of so many classes."""
    return as_set(np.zeros((count, 8, 8, 3), np.uint8), np.arange(count), count)


def random_images(count: int) -> torch.Tensor:
    """As the loop gives them: channels-last."""
    drawn = torch.rand(count, *SHAPE, 3, generator=torch.Generator().manual_seed(0))
    return drawn.permute(0, 3, 1, 2)


def constants(count: int) -> torch.Tensor:
    """Image i is i everywhere, and of class i."""
    return torch.arange(count).float()[:, None, None, None].expand(count, 3, *SHAPE)


def test_cutouts_hole_is_the_releases(transform_of):
    """Cutout of EM's code, with the drawn centres; the rim cuts holes down to a quarter."""
    images, labels = random_images(600) + 0.1, torch.arange(600)
    transform, run = transform_of(cutout, cutout.Config(size=6), classes(600))
    found, same = transform(images, labels, 3)
    centres = run.rng("cutout", 3).integers(SHAPE, size=(600, 2))
    areas = []
    for image, seen, (y, x) in zip(images.numpy(), found.numpy(), centres, strict=True):
        mask = np.ones(SHAPE, np.float32)
        y1, y2 = np.clip(y - 6 // 2, 0, SHAPE[0]), np.clip(y + 6 // 2, 0, SHAPE[0])
        x1, x2 = np.clip(x - 6 // 2, 0, SHAPE[1]), np.clip(x + 6 // 2, 0, SHAPE[1])
        mask[y1:y2, x1:x2] = 0
        np.testing.assert_array_equal(seen, image * mask)
        areas.append((mask == 0).sum())
    assert torch.equal(same, labels)
    assert (min(areas), max(areas)) == (9, 36)
    assert len({tuple(centre) for centre in centres}) > 0.95 * math.prod(SHAPE)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(transform(images, labels, 4)[0], found)


def released(kind: str, images: np.ndarray, labels: np.ndarray, config, rng):
    """MixUp and CutMix of ISS's code, image for image; what they draw is drawn for the batch."""
    count, (height, width) = len(images), images.shape[2:]
    found, shares = images.copy(), np.eye(count)[labels]
    draws = count if config.draws == "image" else 1
    for _ in range(config.rounds):
        partner = rng.permutation(count)
        lam = rng.beta(config.alpha, config.alpha, draws)
        lam[rng.random(draws) >= config.probability] = 1
        if kind == "cutmix":
            sides = np.array([[int(height * math.sqrt(1 - one)), int(width * math.sqrt(1 - one))]
                              for one in lam])
            inside = config.box == "inside"
            places = rng.integers(SHAPE - sides + 1 if inside else SHAPE, size=sides.shape)
        for i in range(count):
            of, other, one = i % draws, partner[i], lam[i % draws]
            if kind == "cutmix":
                (cut_y, cut_x), (y, x) = sides[of], places[of]
                y1, y2, x1, x2 = y, y + cut_y, x, x + cut_x
                if not inside:
                    y1, y2 = np.clip(y - cut_y // 2, 0, height), np.clip(y + cut_y // 2, 0, height)
                    x1, x2 = np.clip(x - cut_x // 2, 0, width), np.clip(x + cut_x // 2, 0, width)
                found[i, :, y1:y2, x1:x2] = images[other, :, y1:y2, x1:x2]
                one = 1 - (y2 - y1) * (x2 - x1) / (height * width)
            elif config.em_release and one < 1:
                found[i] = found[i] * one + images[other] * (1 - images[other])
            else:
                found[i] = found[i] * one + images[other] * (1 - one)
            shares[i] = shares[i] * one + np.eye(count)[labels[other]] * (1 - one)
    return found, shares


@pytest.mark.parametrize(("module", "keys"), [
    (mixup, {}), (mixup, {"rounds": 1, "probability": 1.0}), (mixup, {"draws": "batch"}),
    (mixup, {"alpha": 0.2}), (mixup, {"em_release": True}), (cutmix, {}), (cutmix, {"rounds": 3}),
    (cutmix, {"rounds": 1, "probability": 1.0, "box": "inside"}), (cutmix, {"draws": "batch"})])
def test_mixing_is_the_releases_loop(transform_of, module, keys):
    images, labels = random_images(24), torch.randperm(24)
    config = module.Config(**keys)
    transform, run = transform_of(module, config, classes(24))
    found, shares = transform(images, labels, 5)
    expected = released(module.__name__.split(".")[1], images.numpy(), labels.numpy(), config,
                        run.rng("mixing", 5))
    np.testing.assert_allclose(found, expected[0], atol=1e-6)
    np.testing.assert_allclose(shares, expected[1], atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(transform(images, labels, 6)[1], shares)


@pytest.mark.parametrize("box", ["clipped", "inside"])
def test_a_label_has_the_share_of_its_pixels(transform_of, box):
    transform, _ = transform_of(cutmix, cutmix.Config(rounds=1, probability=1.0, box=box),
                                classes(100))
    found, shares = transform(constants(100), torch.arange(100), 0)
    for label in range(100):
        np.testing.assert_allclose(shares[:, label], (found == label).float().mean((1, 2, 3)),
                                   atol=1e-6)
    kept = shares.diagonal()
    assert kept.min() < 0.4                             # boxes of all sizes
    assert kept.max() == 1


def test_the_mean_of_constants_is_their_labels_shares(transform_of):
    """Exactly lambda where 0 meets 1; in two rounds, the weighted mean of three."""
    transform, _ = transform_of(mixup, mixup.Config(), classes(60))
    found, shares = transform(constants(60), torch.arange(60), 0)
    expected = (shares * torch.arange(60.0)).sum(1)[:, None, None, None].expand_as(found)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    transform, _ = transform_of(mixup, mixup.Config(rounds=1, probability=1.0), classes(2))
    for step in range(20):
        found, shares = transform(constants(2), torch.arange(2), step)
        assert torch.equal(found[:, 0, 0, 0], shares[:, 1])


def test_a_quarter_stays_as_it_is_and_any_share_is_alike(transform_of):
    labels = torch.arange(1000)
    transform, _ = transform_of(mixup, mixup.Config(), classes(1000))
    kept = transform(torch.zeros(1000, 3, 1, 1), labels, 0)[1].diagonal()
    assert (kept == 1).float().mean().item() == pytest.approx(1 / 4, abs=0.04)
    transform, _ = transform_of(mixup, mixup.Config(rounds=1, probability=1.0),
                                classes(1000))
    kept, rest = transform(torch.zeros(1000, 3, 1, 1), labels, 0)[1].topk(2).values.T
    assert (kept - rest).abs().mean().item() == pytest.approx(1 / 2, abs=0.04)


@pytest.mark.parametrize("module", [mixup, cutmix])
def test_a_set_of_one_class_trains(tmp_path, images, module):
    """There is nothing to tell apart, and nothing breaks."""
    one = as_set(images, classes=1)
    config = module.Config(architecture="linear", epochs=1, batch_size=20)
    with new_run(tmp_path / "out") as run:
        assert module.fit(one, one, config, run).last == 1


def test_presets_are_the_other_releases():
    def preset(name: str, word: str):
        return parse([str(CONFIGS / f"learners/{name}.yaml"), f"preset={word}"], "",
                     "evaluate").config

    assert preset("mixup", "kornia") == mixup.Config(rounds=1, probability=1.0)
    assert preset("cutmix", "kornia") == cutmix.Config(rounds=1, probability=1.0, box="inside")
    assert preset("cutmix", "batch") == cutmix.Config(rounds=1, draws="batch")
    assert preset("mixup", "em_release") == mixup.Config(em_release=True)


def test_apbenchs_table_mixes_as_apbench_does(monkeypatch):
    """Each image once, as kornia does by default, and not twice with probability one half."""
    monkeypatch.chdir(ROOT)
    cells = plan.cells_of(spec.read("configs/tables/em_imagenet.yaml"))
    found = {cell.column.name: cell.record.job.config for cell in cells}
    assert {(found[name]["rounds"], found[name]["probability"])
            for name in ("cutmix", "mixup")} == {(1, 1)}
    assert found["cutmix"]["box"] == "inside"
