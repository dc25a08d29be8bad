"""TAP: the release's crafting typed again for the whole set at once, its shift, its constants."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacks import (
    LINEAR,
    config_by,
    contrasts,
    craft_in_double,
    doubles,
    drawn,
    made,
    network_of,
    poisoned_by,
    share_seen,
    tensors,
    to_pixels,
)
from conftest import new_run, succeed

from core.imageset import ImageSet
from core.streams import BLOCK, generator
from poisons import tap
from poisons.__main__ import main as poison_main
from poisons.transforms import shift_and_flip

MISTAKES = ["start clipped to the box", "start uniform", "own class", "away from the class",
            "no transform", "the same draw every step", "black outside", "never in the box",
            "last restart", "worst restart"]


def plain_tap(clean: ImageSet, config: tap.Config, network, mistake: str = "") -> np.ndarray:
    """Section 4, in the release's normalised units but for delta."""
    x, y = doubles(clean)
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (tap.CIFAR_MEAN, tap.CIFAR_STD))
    targets = y if mistake == "own class" else (y + 1) % clean.num_classes
    sign = -1 if mistake == "away from the class" else 1

    def augmented(images, name: str, step: int):
        draws = drawn(torch.rand, name, len(x), 3) if mistake == "the same draw every step" else \
            torch.rand(BLOCK, 3, generator=generator(0, f"{name}/{step}"))[: len(x)].double()
        theta = torch.zeros(len(x), 2, 3, dtype=torch.float64)
        theta[:, 0, 0] = torch.where((draws[:, 2] < 0.5) & config.flip, -1.0, 1.0)
        theta[:, 1, 1] = 1
        theta[:, :, 2] = (2 * draws[:, :2] - 1) * config.shift * 2 / 7
        grid = F.affine_grid(theta, list(images.shape), align_corners=True)
        if mistake == "black outside":
            return (F.grid_sample(images, grid, align_corners=True) - mean) / std
        return F.grid_sample((images - mean) / std, grid, align_corners=True)

    def loss(delta, restart: int, step: int):
        images = x + delta
        seen = (images - mean) / std if mistake == "no transform" else \
            augmented(images, f"tap/shift{restart}", step)
        return sign * F.cross_entropy(network.network(seen), targets)

    noises, losses = [], []
    for restart in range(config.restarts):
        if mistake == "start uniform":
            delta = config.epsilon * (2 * drawn(torch.rand, f"tap/start{restart}", len(x),
                                                *x.shape[1:]) - 1)
        else:
            delta = config.epsilon * drawn(torch.randn, f"tap/start{restart}", len(x), *x.shape[1:])
        delta = delta.clamp(-config.epsilon, config.epsilon)
        if mistake == "start clipped to the box":
            delta = torch.max(torch.min(delta, 1 - x), -x)
        for step in range(config.steps):
            delta.requires_grad_()
            [gradient] = torch.autograd.grad(loss(delta, restart, step), delta)
            delta = delta.detach() - config.step_size * gradient.sign()
            delta = delta.clamp(-config.epsilon, config.epsilon)
            if mistake != "never in the box":
                delta = torch.max(torch.min(delta, 1 - x), -x)
        noises.append(delta)
        losses.append(loss(delta, restart, config.steps).item())
    assert mistake or losses[0] < losses[1]         # so that the best is not the last
    best = {"last restart": -1, "worst restart": int(np.argmax(losses))}.get(
        mistake, int(np.argmin(losses)))
    return to_pixels(x + noises[best])


def test_taps_crafting_is_the_releases_loop(tmp_path, monkeypatch):
    clean = contrasts()
    network, scaled = network_of(), tap.ShiftAndFlip._scaled
    craft_in_double(monkeypatch, tap, network)
    monkeypatch.setattr(tap.ShiftAndFlip, "_scaled",
                        lambda self, draws: scaled(self, draws.double()))
    config = tap.Config(epsilon=24 / 255, step_size=3 / 255, steps=6, restarts=2, shift=2.0)
    ours = poisoned_by(tap, clean, config, tmp_path / "ours")
    np.testing.assert_array_equal(ours, plain_tap(clean, config, network))
    for mistake in MISTAKES:
        assert (plain_tap(clean, config, network, mistake) != ours).any(), mistake


def test_taps_surrogate_is_trained_through_the_attacks_own_transform(tmp_path, monkeypatch):
    """Each image of a minibatch by its own draw, another at every step, under its own label."""
    clean = contrasts()
    images, labels = tensors(clean)
    seen = []

    def train_surrogate(clean, config, run, *, transform):
        seen.extend(transform(images, labels, step) for step in (0, 5))
        return network_of().float()

    monkeypatch.setattr(tap, "train_surrogate", train_surrogate)
    with new_run(tmp_path / "out") as run:
        tap.poison(clean, tap.Config(steps=1, restarts=1, shift=2.0), run)
    fill = torch.tensor(tap.CIFAR_MEAN).view(3, 1, 1)
    for step, (moved, kept) in zip((0, 5), seen, strict=True):
        draws = torch.rand(len(images), 3, generator=generator(0, "tap/train", step))
        expected = shift_and_flip(images, (2 * draws[:, :2] - 1) * 2, draws[:, 2] < 0.5, fill)
        assert torch.equal(moved, expected)
        assert torch.equal(kept, labels)


def test_tap_reaches_its_target(few_path, few):
    """The surrogate predicts (y + 1) mod K for nearly all images, digits though they are."""
    images, log = made("tap", few_path, *LINEAR, "steps=40", "restarts=2",
                       "epsilon=160/255", "step_size=8/255", "shift=0.5", "flip=false")
    assert share_seen(log) > 0.95
    assert np.abs(images.astype(int) - few.images).max() == 160
    [restarts] = [line for line in log if line["loop"] == "restarts"]
    assert restarts["best"] == int(np.argmin(restarts["losses"]))
    assert restarts["losses"][0] != restarts["losses"][1]


def test_untargeted_tap_leaves_the_own_class(few_path):
    _, log = made("tap", few_path, *LINEAR, "steps=10", "restarts=1", "epsilon=64/255",
                  "step_size=8/255", "shift=1", "targeted=false")
    assert share_seen(log) < 0.05


def test_targets_are_the_attacks_own(few_path):
    """The poisoned set has the labels of its base."""
    out = succeed(poison_main, "method=tap", f"data={few_path}", "--smoke", "threads=1")
    np.testing.assert_array_equal(np.load(out / "labels.npy"), np.load(few_path / "labels.npy"))


def test_the_shift_is_bilinear_and_fills_with_the_mean():
    """Half a pixel to the left is the mean of neighbours; outside is the mean colour."""
    torch.manual_seed(0)
    images, fill = torch.rand(2, 3, 5, 6), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    moved = shift_and_flip(images, torch.tensor([[0.5, 0.0], [0.0, 2.0]]),
                           torch.tensor([False, False]), fill)
    padded = torch.cat([images[0], fill.expand(3, 5, 1)], 2)
    torch.testing.assert_close(moved[0], (padded[..., :-1] + padded[..., 1:]) / 2)
    down = torch.cat([images[1, :, 2:], fill.expand(3, 2, 6)], 1)
    torch.testing.assert_close(moved[1], down)
    mirrored = shift_and_flip(images, torch.zeros(2, 2), torch.tensor([True, False]), fill)
    torch.testing.assert_close(mirrored[0], images[0].flip(2))
    torch.testing.assert_close(mirrored[1], images[1])


def test_the_shift_is_torchs_affine_grid():
    """As the release does it, in units of half the image, align_corners."""
    torch.manual_seed(0)
    images, fill = torch.rand(8, 3, 9, 12), torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    shifts, mirrored = torch.rand(8, 2) * 6 - 3, torch.arange(8) % 2 == 0
    theta = torch.zeros(8, 2, 3)
    theta[:, 0, 0] = torch.where(mirrored, -1.0, 1.0)
    theta[:, 1, 1] = 1
    theta[:, :, 2] = shifts * 2 / torch.tensor([11, 8])
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    expected = F.grid_sample(images - fill, grid, align_corners=True) + fill
    torch.testing.assert_close(shift_and_flip(images, shifts, mirrored, fill), expected,
                               atol=1e-5, rtol=1e-5)


def test_taps_constants():
    config = tap.Config()
    assert config.step_size == pytest.approx(0.05 * config.epsilon)
    surrogate = config.surrogate
    assert (surrogate.epochs, surrogate.milestones, surrogate.nesterov) == (40, (14, 24, 35), True)
    assert (config.steps, config.restarts) == (250, 8)
    assert config.shift * 2 / 31 == pytest.approx(0.258, abs=1e-3)  # the release's affine +-0.258


def test_flips_are_not_for_svhn():
    assert config_by("tap", "data=svhn") == dataclasses.replace(tap.Config(), flip=False)
