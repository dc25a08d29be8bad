"""GUE against code hong-xian/gue: its network, its numbers, its loop typed again, and its weights.

The plain loop computes in double precision, as the attack does here, and must give the same bytes.
"""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacks import config_by, doubles, poisoned_by, random_set, tensors
from conftest import as_floats, as_set, count, log_of, new_run, run_command, succeed
from torch import nn

from core.errors import UserError
from core.imageset import ImageSet
from models.classifiers import classifier
from models.noise_unet import NoiseUNet
from poisons import gue
from poisons.__main__ import main as poison_main
from poisons.noise import LIFT

SMALL = {"epsilon": 48 / 255, "width": 3, "epochs": 2, "batch_size": 12, "inner_steps": 3,
         "inner_rate": 2e-2, "learning_rate": 0.3, "generator_rate": 3.0,
         "classifier": gue.Classifier(width=3)}


@pytest.fixture(scope="module")
def small() -> ImageSet:
    """20 images of 8x8 in four classes; batches of 12 leave 8."""
    return random_set(20, -60, 316)


# --- facts -----------------------------------------------------------------------------------


def plain_unet(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The release's network in eval mode, from its state dict."""
    def layer(name: str, conv: int, x: torch.Tensor, padding: int) -> torch.Tensor:
        at = {key: weights[f"{name}.{number}.{key}"] for number, keys in (
            (conv, ("weight", "bias")), (conv + 1, ("running_mean", "running_var")))
              for key in keys}
        gamma, beta = (weights[f"{name}.{conv + 1}.{key}"] for key in ("weight", "bias"))
        x = F.conv2d(x, at["weight"], at["bias"], padding=padding)
        return F.batch_norm(x, at["running_mean"], at["running_var"], gamma, beta)

    def double(name: str, x: torch.Tensor) -> torch.Tensor:
        return layer(name, 3, layer(name, 0, x, 1).relu(), 1).relu()

    def up(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)

    skips = []
    for level in (1, 2, 3, 4):
        x = double(f"dconv_down{level}", F.avg_pool2d(x, 2) if skips else x)
        skips.append(x)
    for level in (3, 2, 1):
        x = double(f"dconv_up{level}", torch.cat([up(x), skips[level - 1]], 1))
    return torch.tanh(layer("conv_last", 0, x, 0))


def some_generator(width: int) -> NoiseUNet:
    """With statistics of its own, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = NoiseUNet(width, 1.0)
        generator(torch.rand(4, 3, 16, 16))
    return generator.eval()


@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (32, 32)])
def test_the_generator_is_the_releases(shape):
    generator, images = some_generator(4), torch.rand(2, 3, *shape)
    with torch.no_grad():
        made, plain = generator(images), plain_unet(generator.state_dict(), images)
    torch.testing.assert_close(made, plain)
    assert made.shape == images.shape
    with torch.device("meta"):
        assert count(NoiseUNet()) == 7_788_681


def test_the_clean_loss_is_of_the_worst_wrong_class():
    logits, labels = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
    assert gue.worst_wrong(logits, labels).item() == pytest.approx(2.4076059)
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 4, 2, 3, 1, 1])
    torch.testing.assert_close(gue.worst_wrong(logits, labels), plain_clean_loss(logits, labels))


def test_the_multiplier_by_hand():
    """(7.5 + 2) / 5; never below 0; 0 where q is flat."""
    def multiplier(f_theta, q_theta, q_a):
        return gue.multiplier_of((torch.tensor(f_theta),), (torch.tensor(q_theta),),
                                 (torch.tensor(q_a),), 1.5).item()

    assert multiplier([1.0, 0.0], [-2.0, 0.0], [1.0]) == pytest.approx(1.9)
    assert multiplier([9.0, 0.0], [2.0, 0.0], [1.0]) == 0
    assert multiplier([1.0, 0.0], [0.0, 0.0], [0.0]) == 0


# --- the plain loop --------------------------------------------------------------------------


MISTAKES = [
    "generator in train mode at the end", "running statistics of a pass a batch", "not shuffled",
    "last batch dropped", "noise not clipped", "rounded to nearest", "least wrong class",
    "own class too", "f of noised images", "theta_T goes on", "Adam goes on", "inner steps plain",
    "theta_T is theta", "generator follows g", "norm of theta's part", "f helps q",
    "lambda for theta alone", "theta follows f alone", "theta follows g alone", "generator ascends",
    "momentum"]


def plain_clean_loss(logits: torch.Tensor, labels: torch.Tensor, mistake: str = "") -> torch.Tensor:
    """Over every wrong class in turn, as the release."""
    classes = logits.shape[1]
    first = 0 if mistake == "own class too" else 1
    losses = torch.stack([F.cross_entropy(logits, (labels + i) % classes, reduction="none")
                          for i in range(first, classes)])
    if mistake == "own class too":
        return losses.sum(0).mean()
    return (losses.amin(0) if mistake == "least wrong class" else losses.amax(0)).mean()


def plain_gue(clean: ImageSet, config: gue.Config, run, mistake: str = "") -> np.ndarray:
    x, y = doubles(clean)
    nets = {}
    for name in ("classifier", "generator", "follower"):
        with run.initialisation(name if name == "generator" else "classifier"):
            nets[name] = NoiseUNet(config.width) if name == "generator" else classifier(
                "resnet18", 4, (8, 8), config.classifier.width)
    theta, generator, follower = nets["classifier"], nets["generator"], nets["follower"]
    of_theta, of_a, of_follower = (list(net.parameters()) for net in (theta, generator, follower))
    velocity = [torch.zeros_like(a) for a in of_a]
    moments, adam_step = None, 0

    def noised() -> torch.Tensor:
        """A pass of its own every time, as in the release."""
        if mistake == "running statistics of a pass a batch":
            generator.apply(lambda part: setattr(part, "momentum", 1 - 0.9 ** (1 / 5)))
        made = images + config.epsilon * generator(images)
        return made if mistake == "noise not clipped" else made.clamp(0, 1)

    for epoch in range(config.epochs):
        order = torch.randperm(20, generator=run.stream("gue/batches", epoch))
        if mistake == "not shuffled":
            order = torch.arange(20)
        for rows in order.split(12)[: 1 if mistake == "last batch dropped" else 2]:
            images, labels = x[rows], y[rows]
            if mistake != "theta_T goes on":
                follower.load_state_dict(theta.state_dict())
            if moments is None or mistake != "Adam goes on":
                moments = [[torch.zeros_like(w) for w in of_follower] for _ in range(2)]
                adam_step = 0
            for _ in range(0 if mistake == "theta_T is theta" else config.inner_steps):
                loss = F.cross_entropy(follower(noised()), labels)
                adam_step += 1
                with torch.no_grad():
                    for w, d, m, v in zip(of_follower, torch.autograd.grad(loss, of_follower),
                                          *moments, strict=True):
                        m.mul_(0.9).add_(0.1 * d)
                        v.mul_(0.999).add_(0.001 * d * d)
                        if mistake == "inner steps plain":
                            w.sub_(config.inner_rate * d)
                        else:
                            w.sub_(config.inner_rate * (m / (1 - 0.9**adam_step))
                                   / ((v / (1 - 0.999**adam_step)).sqrt() + 1e-8))
            seen = noised() if mistake == "f of noised images" else images
            f = plain_clean_loss(theta(seen), labels, mistake)
            f_theta = torch.autograd.grad(f, of_theta)
            g = F.cross_entropy(theta(noised()), labels)
            q = g - F.cross_entropy(follower(noised()), labels)
            g_theta = torch.autograd.grad(g, of_theta, retain_graph=True)
            q_a = torch.autograd.grad(g if mistake == "generator follows g" else q, of_a)
            step(config, mistake, of_theta, of_a, f_theta, g_theta, q_a, velocity)
    generator.train(mistake == "generator in train mode at the end")
    with torch.no_grad():
        made = (x + config.epsilon * generator(x) + LIFT).clamp(0, 1).permute(0, 2, 3, 1) * 255
    return (made.round() if mistake == "rounded to nearest" else made.floor()).numpy().astype(
        np.uint8)


def step(config, mistake, of_theta, of_a, f_theta, g_theta, q_a, velocity) -> None:
    """lambda, and a step of both players."""
    flat_f, flat_g, flat_a = (torch.cat([part.flatten() for part in parts])
                              for parts in (f_theta, g_theta, q_a))
    norm = (flat_g**2).sum() + (flat_a**2).sum()
    if mistake == "norm of theta's part":
        norm = (flat_g**2).sum()
    sign = -1 if mistake == "f helps q" else 1
    lambda_a = lambda_theta = F.relu((config.eta * norm - sign * (flat_f * flat_g).sum())
                                     / (norm + 1e-8))
    if mistake == "lambda for theta alone":
        lambda_a = 1.0
    if mistake == "theta follows f alone":
        lambda_theta = 0.0
    with torch.no_grad():
        for a, d, v in zip(of_a, q_a, velocity, strict=True):
            v.mul_(0.9 if mistake == "momentum" else 0.0).add_(lambda_a * d)
            a.sub_(config.generator_rate * (-v if mistake == "generator ascends" else v))
        for w, by_f, by_g in zip(of_theta, f_theta, g_theta, strict=True):
            keep = 0.0 if mistake == "theta follows g alone" else 1.0
            w.sub_(config.learning_rate * (keep * by_f + lambda_theta * by_g))


class InDouble(nn.Module):
    """A network of double precision that takes any images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.double())


@pytest.fixture
def in_double(monkeypatch):
    """The attack in double precision."""
    torch.set_default_dtype(torch.float64)      # conftest sets it back
    for name in ("classifier", "NoiseUNet"):
        made = getattr(gue, name)
        monkeypatch.setattr(gue, name, lambda *values, made=made: InDouble(made(*values)))


def test_the_attack_is_the_releases_loop(tmp_path, small, in_double):
    """The same bytes; and each mistake that one could make gives others, after one epoch."""
    config = gue.Config(**SMALL)
    ours = poisoned_by(gue, small, config, tmp_path / "ours")
    with new_run(tmp_path / "plain") as run:
        np.testing.assert_array_equal(ours, plain_gue(small, config, run))
        once = dataclasses.replace(config, epochs=1)
        right = plain_gue(small, once, run)
        for mistake in MISTAKES:
            assert (plain_gue(small, once, run, mistake) != right).any(), mistake


def test_both_losses_are_logged_and_thetas_fall(tmp_path, few):
    """theta descends both: g falls from the first epoch to the last, and f from what it was before
    training, though it stays above the logarithm of the classes."""
    config = gue.Config(width=8, epochs=3, batch_size=64, inner_steps=3, inner_rate=1e-2,
                        epsilon=64 / 255, classifier=gue.Classifier(architecture="linear"))
    images, labels = tensors(few)
    with new_run(tmp_path / "out") as run:
        theta, _ = gue.players(few, config, run)
        before = gue.worst_wrong(theta(images), labels).item()
        gue.poison(few, config, run)
        log = [line for line in run.folder.log.lines() if line["loop"] == "gue"]
    losses = [line["poison_loss"] for line in log]
    assert losses[-1] < losses[0], losses
    assert all(np.log(10) < line["clean_loss"] < before and line["multiplier"] > 0 for line in log)


# --- weights ---------------------------------------------------------------------------------


@pytest.fixture
def released(tmp_path):
    """A file as the release keeps its generator, and the generator."""
    generator = some_generator(4)
    torch.save(generator.state_dict(), tmp_path / "gue.pth")
    return tmp_path / "gue.pth", generator


def test_a_released_generator_makes_the_noise(released, few_path, few):
    """Of each row, and nothing is trained."""
    file, generator = released
    out = succeed(poison_main, "method=gue", f"data={few_path}", f"gue.weights={file}",
                  "gue.width=4", "out=out")
    images = as_floats(few.images)
    with torch.no_grad():
        made = images + 8 / 255 * plain_unet(generator.state_dict(), images)
    levels = made.permute(0, 2, 3, 1).clamp(0, 1).numpy() * 255
    found = np.load(out / "images.npy").astype(float)
    assert (found - levels).max() < 0.01
    assert (found - levels).min() > -1.01              # rounded down
    assert "gue" not in [line["loop"] for line in log_of(out)]


def test_noise_at_the_budget_is_not_rounded_beyond_it(tmp_path, small, monkeypatch):
    """A saturated generator's is whole levels."""
    class Saturated(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full_like(images, -1.0)

    monkeypatch.setattr(gue, "load_generator", lambda *_: Saturated())
    made = poisoned_by(gue, small, gue.Config(weights="x"), tmp_path / "out")
    np.testing.assert_array_equal(made, np.maximum(small.images.astype(int) - 8, 0))


def test_weights_of_another_network_are_one_sentence(released, few_path, tmp_path):
    file, generator = released
    torch.save({name: tensor for name, tensor in generator.state_dict().items()
                if name != "conv_last.1.bias"}, tmp_path / "short.pth")
    torch.save({"model": generator.state_dict()}, tmp_path / "inside.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name, width, said in (
            (file, 8, f"{file} holds the weights of another network: dconv_down1.0.weight is "
                      "4x3x3x3 float32, but in a generator of width 8 it is 8x3x3x3 float32"),
            ("short.pth", 4, "conv_last.1.bias is not there, but in a generator of width 4"),
            ("inside.pth", 4, "holds more, or other things, than a network's tensors by name"),
            ("text.pth", 4, "text.pth is not a torch file of plain tensors"),
            ("nowhere.pth", 4, "nowhere.pth: no such file")):
        outcome = run_command(poison_main, "method=gue", f"data={few_path}", "out=out",
                              f"gue.weights={tmp_path / name}", f"gue.width={width}")
        assert outcome.status == 1
        assert said in outcome.error


# --- values and mistakes ---------------------------------------------------------------------


def test_values_are_the_releases():
    config = config_by("gue")
    assert config == config_by("gue", "data=cifar100") == gue.Config()
    assert (config.inner_steps, config.inner_rate, config.eta) == (10, 1e-4, 1.5)
    assert (config.learning_rate, config.generator_rate) == (0.01, 0.1)
    assert gue.running_share(gue.Config()) == pytest.approx(0.7175704)      # of twelve passes


def test_what_cannot_be_is_one_sentence(tmp_path, small):
    for images, classes, message in (
            (np.s_[:, :, :6], 4, "images of 8x6 pixels do not fit the generator, .* of 8"),
            (np.s_[:], 1, "has one class: the game needs a wrong one")):
        clean = as_set(small.images[images], small.labels % classes, classes)
        with new_run(tmp_path / str(classes)) as run, pytest.raises(UserError, match=message):
            gue.poison(clean, gue.Config(**SMALL), run)
