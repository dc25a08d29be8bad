"""HYPO: the release's crafting typed again, and its variants with the network that it trained."""

import dataclasses
import math

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
    to_pixels,
)
from conftest import as_floats, new_run, run_command

from core.imageset import ImageSet
from poisons import hypo
from poisons.__main__ import main as poison_main
from poisons.surrogates import train_surrogate


def linear_surrogate(clean: ImageSet, tmp_path) -> torch.nn.Module:
    """The network that HYPO trains with the keys LINEAR, trained once more."""
    config = dataclasses.replace(hypo.Surrogate(), architecture="linear", epochs=10, batch_size=32,
                                 schedule="onecycle", milestones=(), crop_padding=0, flip=False)
    with new_run(tmp_path / "surrogate") as run:
        return train_surrogate(clean, config, run)


@torch.no_grad()
def cross_entropy(model, images: np.ndarray, labels: np.ndarray) -> float:
    return F.cross_entropy(model(as_floats(images)), torch.from_numpy(np.array(labels))).item()


MISTAKES = ["the next class", "away from the class", "random start", "never in the box",
            "batch statistics", "epsilon / steps a step", "no ball"]


def plain_hypo(clean: ImageSet, config: hypo.Config, network, mistake: str = "") -> np.ndarray:
    """Section 9: steps of epsilon / 5 from the image, onto the ball, then the box."""
    x, y = doubles(clean)
    network.train(mistake == "batch statistics")
    targets = (y + 1) % clean.num_classes if mistake == "the next class" else y
    size = config.epsilon / (config.steps if mistake == "epsilon / steps a step" else 5)
    z = x.clone()
    if mistake == "random start":
        z = (x + config.epsilon * drawn(torch.randn, "x", len(x), *x.shape[1:])).clamp(0, 1)
    for _ in range(config.steps):
        z.requires_grad_()
        [gradient] = torch.autograd.grad(F.cross_entropy(network(z), targets), z)
        if mistake == "away from the class":
            gradient = -gradient
        if config.norm == "linf":
            delta = z.detach() - size * gradient.sign() - x
            delta = delta if mistake == "no ball" else delta.clamp(-config.epsilon, config.epsilon)
        else:
            lengths = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            delta = z.detach() - size * gradient / lengths - x
            if mistake != "no ball":
                delta = delta.flatten(1).renorm(2, 0, config.epsilon).view_as(x)
        z = x + delta if mistake == "never in the box" else (x + delta).clamp(0, 1)
    network.eval()
    return to_pixels(z)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 24 / 255), ("l2", 2.0)])
def test_hypos_crafting_is_the_releases_loop(tmp_path, monkeypatch, norm, epsilon):
    clean = contrasts()
    network = network_of()
    craft_in_double(monkeypatch, hypo, network)
    config = hypo.Config(norm=norm, epsilon=epsilon, steps=8)
    ours = poisoned_by(hypo, clean, config, tmp_path / "ours")
    np.testing.assert_array_equal(ours, plain_hypo(clean, config, network))
    for mistake in MISTAKES:
        assert (plain_hypo(clean, config, network, mistake) != ours).any(), mistake


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hypo_helps_the_surrogate(few_path, few, norm, tmp_path):
    """Its loss on the images falls, with the network that it trained, trained here again."""
    epsilon = "24/255" if norm == "linf" else "1.5"
    images, log = made("hypo", few_path, *LINEAR, "steps=10", f"norm={norm}", f"epsilon={epsilon}")
    assert share_seen(log) > 0.97
    model = linear_surrogate(few, tmp_path)
    assert cross_entropy(model, images, few.labels) < \
        0.5 * cross_entropy(model, few.images, few.labels)
    delta = (images.astype(float) - few.images) / 255
    if norm == "linf":
        assert np.abs(delta).max() * 255 == pytest.approx(24)
    else:
        lengths = np.sqrt((delta**2).sum((1, 2, 3)))
        assert lengths.max() <= 1.5 + 0.5 / 255 * math.sqrt(768)
        assert lengths.max() > 0.5


def test_hypos_l2_needs_a_radius_of_its_own(few_path):
    outcome = run_command(poison_main, "method=hypo", f"data={few_path}", "hypo.norm=l2")
    assert "hypo.epsilon: an l2 radius of 0.03137 is lost in rounding" in outcome.error
    outcome = run_command(poison_main, "method=hypo", f"data={few_path}", "hypo.step_size=8")
    assert "hypo.step_size: 8 is above 1" in outcome.error
    assert hypo.Config(norm="l2", epsilon=7.0, step_size=1.4).step_size == 1.4


def test_hypos_first_variant_goes_to_the_next_class(few_path):
    _, log = made("hypo", few_path, *LINEAR, "steps=20", "variant=p1", "epsilon=128/255")
    assert share_seen(log) > 0.9


def test_hypos_step_is_a_fifth_of_epsilon_or_its_own(few_path):
    """`step_size: null` is the release's; one step shows it."""
    def change(*keys: str) -> int:
        images, _ = made("hypo", few_path, *LINEAR, "surrogate.epochs=1", "steps=1",
                         "epsilon=40/255", *keys)
        return np.abs(images.astype(int) - np.load(few_path / "images.npy")).max()

    assert change() == change("step_size=8/255") == 8
    assert change("step_size=3/255") == 3


def test_hypos_presets_change_what_they_say():
    assert config_by("hypo") == hypo.Config()
    assert config_by("hypo", "preset=apbench") == hypo.Config(
        step_size=0.8 / 255,
        surrogate=dataclasses.replace(hypo.Surrogate(), architecture="resnet18"))
