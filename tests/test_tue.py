"""TUE against code renjie3/TUE: its noise's separability, and its loop typed again."""

import dataclasses

import numpy as np
import pytest
import torch
from attacks import config_by, doubles, poisoned_by, random_set, to_double
from conftest import new_run

from core.errors import ConfigError
from core.imageset import ImageSet
from core.views import Views, apply, draw
from poisons import contrast, tue


def plain_csd(noise: torch.Tensor, labels: torch.Tensor, mistake: str = "") -> torch.Tensor:
    """The release's get_linear_noise_csd_loss."""
    flat, centres, widths = noise.flatten(1), [], []
    for label in range(int(labels.max()) + 1):
        own = flat[labels == label]
        if len(own):
            centre = own.mean(0)
            width = sum((row - centre).square().sum().sqrt() for row in own) / len(own)
            centres.append(centre)
            widths.append(width if mistake == "gradient through the widths" else width.item())
    pairs = [(widths[i] + widths[j] + 1e-5) / ((centres[i] - centres[j]).norm() + 1e-5)
             for i in range(len(centres)) for j in range(len(centres)) if i != j]
    return sum(pairs) / len(pairs)


def test_separability_is_the_releases():
    """Value and gradient, with a class of one row and one that the batch lacks."""
    noise = torch.randn(12, 3, 4, 4, dtype=torch.float64,
                        generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, 1, 1, 0, 4, 2, 2, 0, 1, 2, 0, 1])
    ours, plain = tue.csd(noise, labels), plain_csd(noise, labels)
    torch.testing.assert_close(ours, plain)
    found, expected, wrong = (torch.autograd.grad(value, noise)[0] for value in (
        ours, plain, plain_csd(noise, labels, "gradient through the widths")))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, wrong)
    one = tue.csd(noise, torch.zeros(12, dtype=torch.long))
    assert (one, torch.autograd.grad(one, noise)[0].abs().max()) == (0, 0)
    same = tue.csd(torch.zeros_like(noise), labels)         # MoCo's start
    assert same == 1


@pytest.fixture(scope="module")
def small() -> ImageSet:
    return random_set(40, -60, 316)


# another value for each key of the contrastive loss
ELSE = {"algorithm": "byol", "train_steps": 3, "learning_rate": 0.1, "schedule": "cosine",
        "momentum": 0.5, "weight_decay": 0.0, "loss_scale": 2.0, "temperature": 0.3, "queue": 512,
        "target_momentum": 0.5, "dual_branch": "paper", "update_in_noise_steps": False,
        "architecture": "mobilenet_v2", "width": 2, "norm_images": 8, "views": Views(flip=0.0),
        "csd_weight": 5.0}


MISTAKES = ["ascent", "noise of the last batch too", "no separability", "no contrast",
            "rate by the cosine", "start from nothing"]


def plain_tue(clean: ImageSet, config: tue.Config, run, mistake: str = "") -> np.ndarray:
    x, y = doubles(clean)
    delta = contrast.uniform(clean, config, run).double()
    if mistake == "start from nothing":
        delta.zero_()
    method = contrast.build(clean, config, run).double()
    optimizer = torch.optim.SGD(method.network.parameters(), 0.5, 0.9, weight_decay=1e-4)
    trained = moved = 0

    def order(name: str, number: int):
        return torch.randperm(len(x), generator=run.stream(f"{name}/batches", number)).split(16)

    def loss_of(noised, name: str, step: int):
        return method(*(apply(noised.clamp(0, 1), draw(
            config.views, len(noised), (8, 8), run.stream(f"{name}/view{which}", step)))
            for which in (1, 2)))

    for epoch in range(config.epochs):
        if mistake == "rate by the cosine":
            optimizer.param_groups[0]["lr"] = 0.5 / (1 + 9 * epoch)
        method.train()
        for _ in range(config.train_steps):
            rows = order("surrogate", trained // 2)[trained % 2]
            optimizer.zero_grad()
            loss_of(x[rows] + delta[rows], "surrogate", trained).backward()
            optimizer.step()
            trained += 1
        method.eval()
        last = 3 if mistake == "noise of the last batch too" else 2
        for rows in order("noise", epoch)[:last]:
            for _ in range(config.steps):
                own = delta[rows].requires_grad_()
                loss = 0.0
                if mistake != "no contrast":
                    loss = config.contrast_weight * loss_of(x[rows] + own, "noise", moved)
                if mistake != "no separability":
                    loss = loss + config.csd_weight * plain_csd(own, y[rows])
                [gradient] = torch.autograd.grad(loss, own)
                sign = -1 if mistake == "ascent" else 1
                delta[rows] = (own.detach() - sign * config.step_size * gradient.sign()).clamp(
                    -config.epsilon, config.epsilon)
                moved += 1
    made = (x.float() + delta).permute(0, 2, 3, 1) + 2**-16
    return (made.clamp(0, 1) * 255).floor().numpy().astype(np.uint8)


def test_the_attack_is_the_releases_loop(tmp_path, small, monkeypatch):
    """In double precision, the same bytes; each mistake that one could make gives others."""
    config = tue.Config(width=2, batch_size=16, epochs=2, train_steps=3, steps=2, learning_rate=0.5,
                        epsilon=32 / 255, step_size=7 / 255, contrast_weight=1.0, csd_weight=0.1)
    with new_run(tmp_path / "plain", method="tue") as run:
        plain = {mistake: plain_tue(small, config, run, mistake) for mistake in ["", *MISTAKES]}
    to_double(monkeypatch, contrast, makes=["build", "on_device"])
    to_double(monkeypatch, tue, makes=["uniform"])
    ours = poisoned_by(tue, small, config, tmp_path / "ours", "tue")
    np.testing.assert_array_equal(ours, plain[""])
    for mistake in MISTAKES:
        assert (plain[mistake] != ours).any(), mistake


def test_no_surrogate_learns_for_a_weight_of_nothing(tmp_path, small, monkeypatch):
    """None is built and no image is read. And the noise of a class comes together: its separability
    falls at every epoch."""
    monkeypatch.setattr(contrast, "build", None)
    monkeypatch.setattr(contrast, "on_device", None)
    config = tue.Config(batch_size=16, epochs=3, steps=3)
    with new_run(tmp_path / "out", method="tue") as run:
        delta = tue.poison(small, config, run).images.astype(float) - small.images
        log = run.folder.log.lines()
    losses = [line["noise_loss"] for line in log]
    assert losses == sorted(losses, reverse=True)
    assert not any({"loss", "learning_rate"} & set(line) for line in log)
    assert np.abs(delta).max() <= 9


def test_values_are_the_releases():
    assert config_by("tue") == tue.Config()
    moco = config_by("tue", "preset=moco")
    assert (moco.contrast_weight, moco.csd_weight, moco.steps, moco.epochs) == (1, 1, 5, 200)
    assert (moco.random_start, moco.train_steps) == (False, None)
    with pytest.raises(ConfigError, match="nothing moves the noise"):
        tue.Config(csd_weight=0.0)
    with pytest.raises(ConfigError, match="changes nothing with simclr: "):
        tue.Config(contrast_weight=1.0, target_momentum=0.5)


def test_noise_of_nothing_has_no_separability_to_descend():
    """All distances are 0, and so is their gradient; a contrastive loss moves the noise."""
    nothing = torch.zeros(12, 3, 4, 4, requires_grad=True)
    for csd in (plain_csd, tue.csd):
        [gradient] = torch.autograd.grad(csd(nothing, torch.arange(12) % 3), nothing)
        assert (gradient == 0).all()            # and not NaN
    with pytest.raises(ConfigError, match="nothing moves the noise") as caught:
        tue.Config(random_start=False)
    assert caught.value.key == "random_start"
    tue.Config(random_start=False, contrast_weight=1.0)


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(tue.Config)
                                 if field.name != "contrast_weight"])
def test_a_key_of_what_does_not_learn_is_refused(key, tmp_path, small):
    """Without a contrastive loss a key gives other noise, or is refused."""
    usual = tue.Config(batch_size=16, epochs=3, steps=3)
    others = {"epsilon": 4 / 255, "step_size": 2 / 255, "steps": 2, "epochs": 2, "last_epoch": 2,
              "noise_batches": 1, "batch_size": 8, "rounding": "round"}
    if key == "random_start":
        with pytest.raises(ConfigError, match="nothing moves the noise"):
            dataclasses.replace(usual, random_start=False)
        return
    if key not in others:
        value = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        value = value if key in value else {key: ELSE[key]}
        with pytest.raises(ConfigError, match="changes nothing without a contrastive loss"):
            dataclasses.replace(usual, **value)
        return
    one = poisoned_by(tue, small, usual, tmp_path / "usual", "tue")
    changed = dataclasses.replace(usual, **{key: others[key]})
    assert (poisoned_by(tue, small, changed, tmp_path / "changed", "tue") != one).any()
