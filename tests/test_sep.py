"""SEP, with and without feature alignment and variance reduction: the release's crafting typed
again, and its checkpoints."""

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
    share_seen,
    to_pixels,
)
from conftest import as_floats, as_set, new_run, run_command

from core.errors import ConfigError
from core.imageset import ImageSet
from core.streams import generator
from models.resnet import resnet18
from poisons import ensemble, sep
from poisons.__main__ import main as poison_main
from poisons.frozen import FrozenSurrogate

MISTAKES = {
    "sep": ["own class", "the next class", "away from the class", "last checkpoint alone",
            "signs averaged", "random start", "never in the box"],
    "fa": ["own class", "first checkpoint's centroids", "last checkpoint alone",
           "away from the class"],
    "fa_vr": ["own class", "last checkpoint's centroids", "no correction", "correction reversed",
              "no inner steps", "one checkpoint drawn", "not summed"],
}


def plain_sep(clean: ImageSet, config: sep.Config, networks, mistake: str = "") -> np.ndarray:
    """Section 8, each checkpoint with its own centroids."""
    x, y = doubles(clean)
    half = {"own class": 0, "the next class": 1}.get(mistake, clean.num_classes // 2)
    targets = (y + half) % clean.num_classes
    sign = -1 if mistake == "away from the class" else 1
    centroids = [torch.stack([n.features(x)[y == k].mean(0) for k in range(clean.num_classes)])
                 for n in networks]
    if "centroids" in mistake:
        centroids = [centroids[0 if "first" in mistake else -1]] * len(networks)

    def gradient(z, i: int):
        z = z.detach().requires_grad_()
        if config.loss == "sep":
            loss = F.cross_entropy(networks[i](z), targets)
        else:
            loss = F.mse_loss(networks[i].features(z), centroids[i].detach()[targets])
        return sign * torch.autograd.grad(loss, z)[0]

    def moved(z, direction):
        delta = (z - config.step_size * direction.sign() - x).clamp(-config.epsilon, config.epsilon)
        return x + delta if mistake == "never in the box" else (x + delta).clamp(0, 1)

    z = x.clone()
    if mistake == "random start":
        z = moved(z, drawn(torch.randn, "x", len(x), *x.shape[1:]))
    for step in range(config.steps):
        at_z = [gradient(z, i) for i in range(len(networks))]
        if mistake == "signs averaged":
            at_z = [g.sign() for g in at_z]
        total = at_z[-1] if mistake == "last checkpoint alone" else sum(at_z)
        if config.loss == "fa_vr":
            mean, v, total = total / len(networks), z, torch.zeros_like(x)
            chosen = torch.randint(len(networks), (config.inner_steps,),
                                   generator=generator(0, "sep/checkpoint", step)).tolist()
            for c in [chosen[0]] * len(chosen) if mistake == "one checkpoint drawn" else chosen:
                correction = {"no correction": 0, "correction reversed": -1}.get(mistake, 1)
                found = gradient(v, c) - correction * (at_z[c] - mean)
                total = found if mistake == "not summed" else total + found
                v = v if mistake == "no inner steps" else moved(v, total)
        z = moved(z, total)
    return to_pixels(z)


@pytest.mark.parametrize("loss", MISTAKES)
def test_seps_crafting_is_the_releases_loop(tmp_path, monkeypatch, loss):
    clean = contrasts()
    networks = [network_of(seed=seed) for seed in range(3)]
    craft_in_double(monkeypatch, sep, networks[0])
    x, y = doubles(clean)
    monkeypatch.setattr(sep, "class_features", lambda frozen, *_: torch.stack(
        [frozen.features(x)[y == k].mean(0) for k in range(4)]))
    config = sep.Config(loss=loss, epsilon=24 / 255, step_size=9 / 255, steps=2, checkpoints=3,
                        **({"inner_steps": 3} if loss == "fa_vr" else {}))
    with new_run(tmp_path / "ours") as run:
        monkeypatch.setattr(sep, "train_ensemble", lambda *_: [
            FrozenSurrogate(network, run.device) for network in networks])
        ours = np.array(sep.poison(clean, config, run).images)
    np.testing.assert_array_equal(ours, plain_sep(clean, config, networks))
    for mistake in MISTAKES[loss]:
        assert (plain_sep(clean, config, networks, mistake) != ours).any(), mistake


def test_sep_goes_half_way_round(few_path):
    _, log = made("sep", few_path, *LINEAR, "steps=10", "epsilon=128/255", "step_size=16/255",
                  "checkpoints=3")
    assert share_seen(log) > 0.4             # of the last of three, the first of which knows little


def test_sep_averages_its_checkpoints(tmp_path, monkeypatch):
    """One step from the image against the sign of the summed gradients of plain networks; and one
    of fa against squared distances to the class means."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    clean = as_set(random.integers(20, 236, (40, 16, 16, 3), dtype=np.uint8), np.arange(40) % 4,
                   classes=4)
    networks = [resnet18(4, 4).eval() for _ in range(3)]
    x = as_floats(clean.images)
    targets = torch.from_numpy((clean.labels + 2) % 4)
    for loss in ("sep", "fa"):
        config = sep.Config(loss=loss, steps=1, step_size=5 / 255, checkpoints=3)
        with new_run(tmp_path / loss) as run:
            frozen = [FrozenSurrogate(network, run.device) for network in networks]
            monkeypatch.setattr(sep, "train_ensemble", lambda *_, frozen=frozen: frozen)
            found = np.array(sep.poison(clean, config, run).images).astype(int) - clean.images
        inputs = x.clone().requires_grad_()
        total = 0
        for network in networks:
            if loss == "sep":
                total = total + F.cross_entropy(network(inputs), targets)
            else:
                features = network.features(x).detach()
                means = torch.stack([features[clean.labels == k].mean(0) for k in range(4)])
                total = total + F.mse_loss(network.features(inputs), means[targets])
        expected = -5 * torch.autograd.grad(total, inputs)[0].sign().permute(0, 2, 3, 1).numpy()
        assert (found == expected).mean() > 0.99


def test_centroids_are_means_of_eval_mode_features(few, tmp_path):
    """Of each checkpoint, whatever mode it comes in: the release's first come from batch
    statistics."""
    network = resnet18(10, 4).train()
    x = as_floats(few.images)
    network(x)
    with new_run(tmp_path / "run") as run, torch.no_grad():
        found = sep.class_features(FrozenSurrogate(network, run.device), few, run)
        features = network.eval().features(x)
        by_batch = network.train().features(x)
    for k in range(10):
        torch.testing.assert_close(found[k], features[few.labels == k].mean(0), atol=1e-4,
                                   rtol=1e-4)
    assert (by_batch - features).abs().max() > 0.1


def test_variance_reduction_equals_a_plain_loop(tmp_path):
    torch.manual_seed(0)
    weights = torch.randn(3, 2, 3, 4, 4)
    gradients = [lambda x, _, w=w: (x - 0.5) * w for w in weights]
    images = torch.rand(2, 3, 4, 4)
    config = sep.Config(loss="fa_vr", inner_steps=5, epsilon=8 / 255, step_size=2 / 255)
    x = (images + 3 / 255 * torch.randn_like(images).sign()).clamp(0, 1)
    with new_run(tmp_path / "run", seed=7) as run:
        found = sep.variance_reduced(x, images, gradients, 2, config, run)
    chosen = torch.randint(3, (5,), generator=generator(7, "sep/checkpoint", 2)).tolist()
    mean = sum((x - 0.5) * w for w in weights) / 3
    v, total = x, 0
    for c in chosen:
        total = total + (v - 0.5) * weights[c] - ((x - 0.5) * weights[c] - mean)
        v = (v - 2 / 255 * total.sign()).clamp(images - 8 / 255, images + 8 / 255).clamp(0, 1)
    torch.testing.assert_close(found, total)


@pytest.mark.parametrize("loss", ["sep", "fa"])
def test_inner_steps_are_of_variance_reduction_alone(loss):
    with pytest.raises(ConfigError, match=f"changes nothing with {loss}: ") as caught:
        sep.Config(loss=loss, inner_steps=5)
    assert caught.value.key == "inner_steps"


def test_the_checkpoints_are_equally_spaced(few_path):
    assert ensemble.spaced(120, 30) == list(range(3, 120, 4))
    assert ensemble.spaced(10, 3) == [2, 6, 9]
    outcome = run_command(poison_main, "method=sep", f"data={few_path}", "sep.checkpoints=9",
                          "sep.surrogate.epochs=8")
    assert outcome.status == 1
    assert "sep.checkpoints: 9 do not fit the surrogate's 8 epochs" in outcome.stderr


def test_seps_presets_change_what_they_say():
    assert config_by("sep", "preset=fa") == dataclasses.replace(sep.Config(), loss="fa")
    assert config_by("sep", "preset=fa_vr") == dataclasses.replace(
        sep.Config(), loss="fa_vr", checkpoints=15)
