"""PIL: the release's crafting and its surrogate's training typed again, and what its noise does."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacks import (
    config_by,
    contrasts,
    craft_in_double,
    doubles,
    drawn,
    made,
    poisoned_by,
    to_pixels,
)
from conftest import new_run

from core.imageset import ImageSet
from models.classifiers import classifier
from poisons import pil
from poisons.surrogates import train_surrogate

MISTAKES = ["x - delta clipped", "delta kept where x - delta is an image",
            "x + delta published", "start from nothing", "noise away from the class",
            "image left alone", "divergence the other way round", "step of the gradient"]


def plain_pil(clean: ImageSet, config: pil.Config, network, mistake: str = "") -> np.ndarray:
    """The release's PILAdversary.attack."""
    x, y = doubles(clean)
    delta = config.epsilon * (2 * drawn(torch.rand, "pil/start", len(x), *x.shape[1:]) - 1)
    if mistake == "start from nothing":
        delta = torch.zeros_like(delta)
    uniform = torch.full((clean.num_classes,), 1 / clean.num_classes, dtype=torch.float64)
    for _ in range(config.steps):
        delta.requires_grad_()
        image = x - delta
        unsure = network(image.clamp(0, 1) if mistake == "x - delta clipped" else image).softmax(1)
        if mistake == "divergence the other way round":
            kl = (unsure * (unsure / uniform).log()).sum(1).mean()
        else:
            kl = (uniform * (uniform / unsure).log()).sum(1).mean()
        weight = 1.0 if mistake == "image left alone" else config.weight
        sign = -1 if mistake == "noise away from the class" else 1
        loss = weight * sign * F.cross_entropy(network(delta), y) + (1 - weight) * kl
        [gradient] = torch.autograd.grad(loss, delta)
        step = gradient / gradient.abs().max() if mistake == "step of the gradient" else \
            gradient.sign()
        delta = (delta.detach() - config.step_size * step).clamp(-config.epsilon, config.epsilon)
        if mistake == "delta kept where x - delta is an image":
            delta = torch.max(torch.min(delta, x), x - 1)
    return to_pixels(x + delta if mistake == "x + delta published" else x - delta)


def test_pils_crafting_is_the_releases_loop(tmp_path, monkeypatch):
    clean = contrasts()
    torch.manual_seed(0)
    network = classifier("two_linear", 4, (8, 8)).double()
    craft_in_double(monkeypatch, pil, network)
    # a weight at which both terms count on so small a network
    config = pil.Config(epsilon=24 / 255, step_size=5 / 255, steps=8, weight=0.5)
    ours = poisoned_by(pil, clean, config, tmp_path / "ours", "pil")
    np.testing.assert_array_equal(ours, plain_pil(clean, config, network))
    for mistake in MISTAKES:
        assert (plain_pil(clean, config, network, mistake) != ours).any(), mistake


TRAINING_MISTAKES = ["shuffled", "last batch dropped", "weight decay", "constant rate",
                     "no momentum", "gradients clipped", "a bias"]


def plain_pil_training(clean: ImageSet, config: pil.Surrogate, first, second, mistake: str = ""
                       ) -> torch.Tensor:
    """The release's train_model as formulas, of the product of both layers: (K, pixels)."""
    x, y = doubles(clean)
    weights = [first.double().clone(), second.double().clone()]
    if mistake == "a bias":
        weights.append(torch.zeros(clean.num_classes, dtype=torch.float64))
    velocity = [torch.zeros_like(weight) for weight in weights]
    decay = 5e-4 if mistake == "weight decay" else 0.0
    for epoch in range(config.epochs):
        rate = config.learning_rate * (1 + math.cos(math.pi * epoch / config.epochs)) / 2
        if mistake == "constant rate":
            rate = config.learning_rate
        order = torch.arange(len(x))
        if mistake == "shuffled":
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(config.batch_size):
            if mistake == "last batch dropped" and len(rows) < config.batch_size:
                continue
            for weight in weights:
                weight.requires_grad_()
            logits = x[rows].flatten(1) @ weights[0].T @ weights[1].T + sum(weights[2:])
            gradients = torch.autograd.grad(F.cross_entropy(logits, y[rows]), weights)
            norm = sum((g**2).sum() for g in gradients).sqrt()
            scale = min(1.0, 0.1 / norm.item()) if mistake == "gradients clipped" else 1.0
            momentum = 0.0 if mistake == "no momentum" else 0.9
            with torch.no_grad():
                for i, gradient in enumerate(gradients):
                    velocity[i] = momentum * velocity[i] + scale * gradient + decay * weights[i]
                    weights[i] = weights[i].detach() - rate * velocity[i]
    return weights[1] @ weights[0]


def test_pils_surrogate_is_trained_as_the_releases(tmp_path, few):
    """320 digits in batches of 96, the last of 32; its classes stand in random order."""
    config = dataclasses.replace(pil.Surrogate(), batch_size=96, epochs=6)
    with new_run(tmp_path / "run") as run:
        with run.initialisation("surrogate"):
            fresh = classifier("two_linear", 10, (16, 16))
        first, second = (p.detach() for p in fresh.parameters())
        assert (first.shape, second.shape) == ((10, 768), (10, 10))
        model = train_surrogate(few, config, run)
    ours = [p.detach().double() for p in model.parameters()]
    assert len(ours) == 2
    ours = ours[1] @ ours[0]

    def apart(mistake: str = "") -> float:
        return ((plain_pil_training(few, config, first, second, mistake) - ours).norm()
                / (ours - second.double() @ first.double()).norm()).item()

    assert apart() < 1e-5
    for mistake in TRAINING_MISTAKES:
        assert apart(mistake) > 1e-4, mistake


def test_pil_trains_in_index_order(few, monkeypatch, tmp_path):
    """The attack asks for it, with the release's constants."""
    asked = {}

    def trained(clean, config, run, **keys):
        asked.update(keys, config=config)
        raise InterruptedError

    monkeypatch.setattr(pil, "train_surrogate", trained)
    with new_run(tmp_path / "run") as run, pytest.raises(InterruptedError):
        pil.poison(few, pil.Config(), run)
    surrogate = asked["config"]
    assert (surrogate.architecture, surrogate.epochs, surrogate.batch_size, surrogate.drop_last,
            surrogate.learning_rate, surrogate.momentum, surrogate.weight_decay,
            surrogate.schedule, surrogate.clip_norm, surrogate.crop_padding, surrogate.flip,
            surrogate.shuffle) == (
        "two_linear", 30, 512, False, 3e-3, 0.9, 0.0, "cosine", None, 0, False, False)


def test_pils_noise_is_what_the_line_sees(few_path, few, tmp_path):
    """Its loss falls, retyped for a plain matrix, and the noise alone is recognised."""
    images, _ = made("pil", few_path, "surrogate.learning_rate=0.05", "epsilon=32/255",
                     "step_size=3/255")
    with new_run(tmp_path / "again", method="pil", config={}) as run:
        poisoned = pil.poison(few, pil.Config(
            epsilon=32 / 255, step_size=3 / 255,
            surrogate=dataclasses.replace(pil.Surrogate(), learning_rate=0.05)), run)
        np.testing.assert_array_equal(np.array(poisoned.images), images)
        state = run.load_state("surrogate")["objects"]["model"]
    weight = state["linear.weight"].double() @ state["body.1.weight"].double()

    def loss(delta: np.ndarray) -> float:
        flat = torch.from_numpy(delta.transpose(0, 3, 1, 2).reshape(len(delta), -1))
        image = torch.from_numpy((few.images / 255.0).transpose(0, 3, 1, 2).reshape(len(delta), -1))
        labels = torch.from_numpy(np.array(few.labels))
        kl = -(F.log_softmax((image - flat) @ weight.T, 1).mean(1)) - math.log(10)
        return float((0.9 * F.cross_entropy(flat @ weight.T, labels, reduction="none")
                      + 0.1 * kl).mean())

    delta = (few.images / 255.0) - images / 255.0       # published: x - delta
    noise = np.random.default_rng(0).uniform(-32 / 255, 32 / 255, delta.shape)
    assert loss(delta) < 0.8 * loss(noise)


def test_pils_yaml_has_its_defaults():
    assert config_by("pil") == pil.Config()
