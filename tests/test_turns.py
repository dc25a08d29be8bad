"""AUE and MI-UE against code EhanW/AUE-AAP and hala64/mi-ue: their loop typed again."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacks import config_by, doubles, poisoned_by, to_double
from conftest import as_set, new_run

from core.errors import ConfigError
from core.imageset import ImageSet
from core.training import Normalised
from core.views import apply, draw
from poisons import aue, mi_ue, turns
from poisons.transforms import contrastive_views

TINY = {"width": 2, "batch_size": 8, "epochs": 2, "steps": 2, "epsilon": 20 / 255,
        "step_size": 7.3 / 255}
CONFIGS = {
    "aue": aue.Config(**TINY, strength=0.8),
    "mi_ue": mi_ue.Config(**TINY, last_step_size=13 / 255, noise_batch=12, distance_weight=0.3)}
ATTACKS = {"aue": aue, "mi_ue": mi_ue}
MISTAKES = {
    "both": ["ascent", "batch statistics while the noise moves", "noise begins at 0 every epoch",
             "rate stays", "rate of the epoch after", "noise moves in the surrogate's order",
             "last incomplete batch left out", "gradient clipped", "to the nearest level",
             "noise moves first", "images not clipped"],
    "aue": ["no augmentation while the noise moves", "no augmentation while the surrogate learns",
            "the same draws for every step"],
    "mi_ue": ["no image mirrored", "mirrored anew at every step", "noise mirrored too",
              "step stays", "features of logits", "an image not among its own class",
              "distance of a channel not divided", "not normalised"]}


@pytest.fixture(scope="module")
def small() -> ImageSet:
    """20 images of 8x8 in four classes; batches of 8 leave 4. Some values are black or white, but
    next to never two of a pixel: of these, rounding decides on which the gradient of the hue is."""
    random = np.random.default_rng(0)
    images = random.integers(16, 240, (20, 8, 8, 3)).astype(np.uint8)
    images[:, ::2, ::2, 0] = random.choice([0, 255], (20, 4, 4))
    return as_set(images, random.permutation(np.arange(20) % 4), classes=4)


def plain_pairs(h: torch.Tensor, y: torch.Tensor, config: mi_ue.Config, mistake: str = ""
                ) -> torch.Tensor:
    """Image by image."""
    total, everyone = 0.0, torch.arange(len(h))
    for i in range(len(h)):
        terms = (h @ h[i] / (h.norm(dim=1) * h[i].norm()) / config.temperature).exp()
        same, others = y == y[i], everyone != i
        own = terms[same & others if mistake == "an image not among its own class" else same].sum()
        away = (h[i] - h[same & others]).norm(dim=1).sum()
        below = (terms if config.form == "released" else terms[~same]).sum()
        total = total - torch.log((own + 1e-8) / (below + 1e-8))
        divisor = 1 if mistake == "distance of a channel not divided" or config.form == "paper" \
            else h.shape[1]
        total = total + config.distance_weight * torch.log(1 + away / divisor + torch.zeros(()))
    return total / len(h)


def plain_turns(clean: ImageSet, name: str, run, mistake: str = "") -> np.ndarray:
    config = CONFIGS[name]
    x, y = doubles(clean)
    delta = torch.zeros_like(x)
    model, _ = turns.build_surrogate(clean, config, run)
    if name == "mi_ue" and mistake != "not normalised":
        model = Normalised(model, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    weights = list(model.double().parameters())
    velocity = [torch.zeros_like(weight) for weight in weights]
    learnt = moved = 0

    def augmented(images, stream: str, step: int):
        if name != "aue" or mistake == f"no augmentation while the {stream}":
            return images
        if mistake == "the same draws for every step":
            step = 0
        named = {"noise moves": "noise", "surrogate learns": "surrogate"}[stream]
        return apply(images, draw(contrastive_views(0.8, True), len(images), (8, 8),
                                  run.stream(f"aue/{named}", step)))

    def mirrored(images, noise, which: str, number: int):
        if name != "mi_ue" or mistake == "no image mirrored":
            return images, noise
        drawn = torch.rand(len(images), generator=run.stream(f"{which}/flips", number)) < 0.5
        images, noise = images.clone(), noise.clone()
        for i in drawn.nonzero()[:, 0]:
            images[i] = images[i].flip(2)
            if mistake == "noise mirrored too":
                noise[i] = noise[i].flip(2)
        return images, noise

    def order(which: str, epoch: int, size: int):
        return torch.randperm(len(x), generator=run.stream(f"{which}/batches", epoch)).split(size)

    def learn(epoch: int) -> None:
        nonlocal learnt
        e = epoch + (mistake == "rate of the epoch after")
        rate = 1e-6 + (0.1 - 1e-6) * (1 + math.cos(math.pi * e / config.epochs)) / 2
        rate = 0.1 if mistake == "rate stays" else rate
        model.train()
        batches = order("surrogate", epoch, 8)
        for rows in batches[:2] if mistake == "last incomplete batch left out" else batches:
            images, noise = mirrored(x[rows], delta[rows], "surrogate", learnt)
            noised = images + noise
            if mistake != "images not clipped":
                noised = noised.clamp(0, 1)
            noised = augmented(noised, "surrogate learns", learnt)
            loss = F.cross_entropy(model(noised).float(), y[rows])
            gradients = torch.autograd.grad(loss, weights)
            if mistake == "gradient clipped":
                length = sum(g.square().sum() for g in gradients).sqrt()
                gradients = [g * (0.5 / length).clamp(max=1) for g in gradients]
            with torch.no_grad():
                for weight, g, v in zip(weights, gradients, velocity, strict=True):
                    v.mul_(0.9).add_(g + 1e-4 * weight)
                    weight.sub_(rate * v)
            learnt += 1

    def move(epoch: int) -> None:
        nonlocal delta, moved
        if mistake == "noise begins at 0 every epoch":
            delta = torch.zeros_like(x)
        model.train(mistake == "batch statistics while the noise moves")
        size, batch = config.step_size, 8
        if name == "mi_ue":
            batch = 12
            if mistake != "step stays":
                e = epoch + 1       # the release counts from 1
                size = (config.epochs - e + 1) / config.epochs * (7.3 - 13) / 255 + 13 / 255
        which = "surrogate" if mistake == "noise moves in the surrogate's order" else "noise"
        for number, rows in enumerate(order(which, epoch, batch)):
            number += epoch * 2
            for _ in range(config.steps):
                at = moved if mistake == "mirrored anew at every step" else number
                images, _ = mirrored(x[rows], delta[rows], "noise", at)
                inside = (images + delta[rows]).clamp(0, 1)
                noised = inside.clone().requires_grad_()
                if name == "aue":
                    seen = augmented(noised, "noise moves", moved)
                    loss = F.cross_entropy(model(seen), y[rows])
                elif mistake == "features of logits":
                    loss = plain_pairs(model(noised), y[rows], config, mistake)
                else:
                    loss = plain_pairs(model.features(noised), y[rows], config, mistake)
                [gradient] = torch.autograd.grad(loss, noised)
                sign = -1 if mistake == "ascent" else 1
                delta[rows] = (inside - sign * size * gradient.sign() - images).clamp(
                    -config.epsilon, config.epsilon)
                moved += 1

    for epoch in range(config.epochs):
        for turn in (move, learn) if mistake == "noise moves first" else (learn, move):
            turn(epoch)
    made = (x.float() + delta.float()).clamp(0, 1).permute(0, 2, 3, 1) * 255
    rounded = made.round() if mistake == "to the nearest level" else (made + 0.01).floor()
    return rounded.numpy().astype(np.uint8)


@pytest.mark.parametrize("name", ["aue", "mi_ue"])
def test_the_attack_is_the_releases_loop(tmp_path, small, name, monkeypatch):
    """In double precision, the same bytes; each mistake that one could make gives others."""
    with new_run(tmp_path / "plain", method=name) as run:
        plain = {mistake: plain_turns(small, name, run, mistake)
                 for mistake in ["", *MISTAKES["both"], *MISTAKES[name]]}
    to_double(monkeypatch, turns, makes=["build_surrogate", "on_device"], takes=["Noise"])
    ours = poisoned_by(ATTACKS[name], small, CONFIGS[name], tmp_path / "ours", name)
    np.testing.assert_array_equal(ours, plain[""])
    same = [mistake for mistake, other in plain.items() if mistake and (other == ours).all()]
    assert not same


def test_pairs_are_the_releases_and_the_papers():
    """Values of four features in the plane, measured once on the release's own function."""
    h = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 1])

    def loss(labels=y, **keys) -> float:
        return mi_ue.pair_loss(h, labels, mi_ue.Config(**keys)).item()

    assert loss() == pytest.approx(0.0247902, abs=1e-7)
    assert loss(temperature=1.0) == pytest.approx(0.3834868, abs=1e-7)
    assert loss(form="paper") == pytest.approx(-6.5156915, abs=1e-7)
    assert loss(temperature=1.0, form="paper") == pytest.approx(-0.8029988, abs=1e-7)
    assert loss(temperature=1.0, distance_weight=1.0) - loss(temperature=1.0) == pytest.approx(
        math.log(1.5), abs=1e-7)
    for form in ("released", "paper"):      # no pair of two classes
        assert loss(torch.zeros(4), form=form) == pytest.approx(0)
        alone = h.clone().requires_grad_()
        mi_ue.pair_loss(alone, torch.zeros(4), mi_ue.Config(form=form)).backward()
        assert alone.grad.isfinite().all()
    random = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 2, 1, 0, 2, 2, 3])
    for form in ("released", "paper"):
        config = mi_ue.Config(form=form, distance_weight=0.4)
        ours, plain = random.clone().requires_grad_(), random.clone().requires_grad_()
        values = mi_ue.pair_loss(ours, labels, config), plain_pairs(plain, labels, config)
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(value, h)[0] for value, h in
                                     zip(values, (ours, plain), strict=True)))
    assert 0 <= mi_ue.pair_loss(random, labels, mi_ue.Config()) <= math.log(9)


def test_an_image_is_at_0_from_itself():
    """In float32, of more rows than torch subtracts by itself (25)."""
    h = 100 + torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(30)                   # nobody else is of its class
    config = mi_ue.Config(distance_weight=1.0)
    without = mi_ue.pair_loss(h, labels, mi_ue.Config())
    torch.testing.assert_close(mi_ue.pair_loss(h, labels, config), without)
    labels = labels % 3
    ours = mi_ue.pair_loss(h, labels, config) - mi_ue.pair_loss(h, labels, mi_ue.Config())
    apart = (h[:, None] - h[None]).norm(dim=2) * (labels[:, None] == labels)
    torch.testing.assert_close(ours, (1 + apart.sum(1) / 16).log().mean(), rtol=1e-5, atol=0)


def test_rates_and_steps_are_the_releases(tmp_path, small):
    """The first epochs' in the log; the others' by the formula."""
    rates = [turns.cosine(0.1, 1e-6, epoch / 60) for epoch in (0, 15, 30, 59)]
    assert rates == pytest.approx([0.1, 0.0853555, 0.0500005, 6.95e-5], abs=1e-7)
    config = aue.Config(width=2, batch_size=16, epochs=2, steps=1)
    with new_run(tmp_path / "out", method="aue") as run:
        aue.poison(small, config, run)
        lines = [line for line in run.folder.log.lines() if "learning_rate" in line]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.1, 0.0500005])


def test_mi_ues_steps_rise(monkeypatch):
    monkeypatch.setattr(mi_ue, "take_turns", lambda *given, step_size, **keys: step_size)
    size = mi_ue.poison(None, mi_ue.Config(), None)
    assert [255 * size(epoch - 1) for epoch in (1, 50, 100)] == pytest.approx(
        [0.2, 0.298, 0.398])


def test_strength_is_the_releases():
    views = contrastive_views(0.6, True)
    assert views.scale == pytest.approx((0.46, 1))
    assert (views.brightness, views.contrast, views.saturation) == pytest.approx([0.24] * 3)
    assert (views.hue, views.jitter, views.grey, views.flip) == pytest.approx(
        (0.06, 0.48, 0.12, 0.5))
    areas = [contrastive_views(s, True).scale[0] for s in (0.4, 0.6, 0.8, 1.0)]
    assert areas == pytest.approx([0.64, 0.46, 0.28, 0.1])
    assert contrastive_views(1.0, False).flip == 0


def test_values_are_the_releases():
    assert config_by("aue") == aue.Config()
    assert config_by("aue", "like=cifar100").strength == 1
    assert config_by("mi_ue") == mi_ue.Config()
    paper = config_by("mi_ue", "preset=paper")
    assert (paper.form, paper.distance_weight, paper.last_step_size) == ("paper", 0.1,
                                                                         paper.step_size)
    with pytest.raises(ConfigError, match="go together"):
        mi_ue.Config(mean=None)
