"""TAP, HYPO, SEP and PIL: each retyped for one image or checked by what it is for, with the network
that the attack itself trained."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacks import (
    LINEAR,
    config_by,
    doubles,
    poison,
    poisoned_by,
    random_network,
    random_set,
    share_seen,
    tensors,
    to_double,
    to_pixels,
)
from conftest import as_floats, as_set, log_of, new_run, run_command, succeed, write_imageset

from core.errors import ConfigError
from core.imageset import ImageSet
from core.pgd import gradient_of, pgd
from core.streams import BLOCK, generator
from core.training import Normalised
from models.classifiers import classifier
from models.resnet import resnet18
from poisons import ensemble, hypo, pil, sep, tap
from poisons.__main__ import main as poison_main
from poisons.frozen import FrozenSurrogate
from poisons.surrogates import train_surrogate
from poisons.transforms import shift_and_flip

# What these attacks do to digits shows on a linear surrogate; the plain loops have residual ones.
LINEAR_FIELDS = {"architecture": "linear", "epochs": 10, "batch_size": 32, "schedule": "onecycle",
                 "milestones": (), "crop_padding": 0, "flip": False}


def make(name: str, few_path, *keys: str) -> tuple[np.ndarray, list[dict]]:
    """Images and log."""
    out = poison(name, few_path, *keys)
    return np.load(out / "images.npy"), log_of(out)


def surrogate_of(clean: ImageSet, tmp_path, module, **fields):
    """The network that an attack with these keys trains, trained once more."""
    with new_run(tmp_path / "surrogate") as run:
        return train_surrogate(clean, dataclasses.replace(module.Surrogate(), **fields), run)


@torch.no_grad()
def cross_entropy(model, images: np.ndarray, labels: np.ndarray) -> float:
    return F.cross_entropy(model(as_floats(images)), torch.from_numpy(np.array(labels))).item()


def of_one_class(path, few):
    return write_imageset(path, few.images[:64], np.zeros(64, np.int64), classes=1)


@pytest.mark.parametrize("name", ["tap", "sep", "aap", "hypo.variant=p1"])
def test_a_set_of_one_class_has_no_other_to_lead_to(tmp_path, few, name):
    """Its next class would be its own, and nothing would change."""
    method, _, key = name.partition(".")
    clean = of_one_class(tmp_path / "one", few)
    words = [f"{method}.{key}"] if key else []
    outcome = run_command(poison_main, f"method={method}", "--smoke", f"data={clean}", *words)
    assert outcome.status == 1
    assert "has one class: there is no other for the noise to lead to" in outcome.error
    assert "surrogate:" not in outcome.stderr               # before it is trained


@pytest.mark.parametrize("name", ["em", "em_classwise", "aue", "rem", "sem", "hypo.variant=p2",
                                  "tap.targeted=false", "aap.targeted=false"])
def test_the_only_label_of_a_set_has_no_gradient(tmp_path, few, name):
    method, _, key = name.partition(".")
    words = [f"{method}.{key}"] if key else []
    outcome = run_command(poison_main, f"method={method}", "--smoke",
                          f"data={of_one_class(tmp_path / 'one', few)}", *words)
    assert outcome.status == 1
    assert "has one class: the loss of its only label is 0, whatever the noise" in outcome.error
    assert "surrogate:" not in outcome.stderr


def test_noise_that_changes_nothing_is_refused(tmp_path, few):
    """The paper's MI-UE compares classes."""
    outcome = run_command(poison_main, "method=mi_ue", "--smoke", "mi_ue.form=paper",
                          f"data={of_one_class(tmp_path / 'one', few)}")
    assert outcome.status == 1
    assert "no pixel changed: the budget is below a grey level, or the loss has no gradient" in \
        outcome.error


def test_a_target_class_without_images_is_said(tmp_path, few):
    """Of the classes 0, 1 and 3 of four, 3 is half-way round from 1, and 0 leads to none; there is
    no feature to align to."""
    labels = np.repeat([0, 0, 1, 3], 16)
    clean = write_imageset(tmp_path / "gaps", few.images[:64], labels, classes=4)
    said = "50.0% of the images are led to a class that has no image"
    outcome = run_command(poison_main, "method=sep", "--smoke", f"data={clean}")
    assert (outcome.status, outcome.stderr.count(said)) == (0, 1)
    outcome = run_command(poison_main, "method=tap", "--smoke", f"data={clean}")
    assert (outcome.status, outcome.stderr.count("25.0% of the images are led")) == (0, 1)
    for loss in ("fa", "fa_vr"):
        outcome = run_command(poison_main, "method=sep", "--smoke", f"data={clean}",
                              f"sep.loss={loss}")
        assert outcome.status == 1
        assert f"sep.loss: {loss} needs images of every class half-way round" in outcome.error


# --- the plain loops -------------------------------------------------------------------------
#
# What an attack makes of given networks, typed again from its release for the whole set at once,
# in double precision on both sides, so that they have to give the same bytes; and the mistakes that
# each comparison is there for.


@pytest.fixture(scope="module")
def contrasts() -> ImageSet:
    """20 images of 8x8 in four classes, a third of their values black and a third white."""
    return random_set(20, -255, 511)


@pytest.fixture
def in_double(monkeypatch):
    """`in_double(module, network)`: the attack crafts in double precision, on this network."""
    def install(module, network) -> None:
        monkeypatch.setattr(module, "train_surrogate", lambda *_, **__: network.double().eval(),
                            raising=False)      # SEP's is its ensemble's
        to_double(monkeypatch, module)

    return install


def network_of(seed: int = 0) -> torch.nn.Module:
    """A random ResNet-18 of width 4 with statistics of its own, behind CIFAR's mean and std."""
    return random_network(lambda: Normalised(resnet18(4, 4), tap.CIFAR_MEAN, tap.CIFAR_STD), seed)


def drawn(draw, name: str, rows: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """The first rows of a block of noise."""
    return draw(BLOCK, *shape, generator=generator(seed, name))[:rows].double()


TAP_MISTAKES = ["start clipped to the box", "start uniform", "own class", "away from the class",
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


def test_taps_crafting_is_the_releases_loop(tmp_path, contrasts, in_double, monkeypatch):
    network, scaled = network_of(), tap.ShiftAndFlip._scaled
    in_double(tap, network)
    monkeypatch.setattr(tap.ShiftAndFlip, "_scaled",
                        lambda self, draws: scaled(self, draws.double()))
    config = tap.Config(epsilon=24 / 255, step_size=3 / 255, steps=6, restarts=2, shift=2.0)
    ours = poisoned_by(tap, contrasts, config, tmp_path / "ours")
    np.testing.assert_array_equal(ours, plain_tap(contrasts, config, network))
    for mistake in TAP_MISTAKES:
        assert (plain_tap(contrasts, config, network, mistake) != ours).any(), mistake


def test_taps_surrogate_is_trained_through_the_attacks_own_transform(tmp_path, contrasts,
                                                                     monkeypatch):
    """Each image of a minibatch by its own draw, another at every step, under its own label."""
    images, labels = tensors(contrasts)
    seen = []

    def train_surrogate(clean, config, run, *, transform):
        seen.extend(transform(images, labels, step) for step in (0, 5))
        return network_of().float()

    monkeypatch.setattr(tap, "train_surrogate", train_surrogate)
    with new_run(tmp_path / "out") as run:
        tap.poison(contrasts, tap.Config(steps=1, restarts=1, shift=2.0), run)
    fill = torch.tensor(tap.CIFAR_MEAN).view(3, 1, 1)
    for step, (moved, kept) in zip((0, 5), seen, strict=True):
        draws = torch.rand(len(images), 3, generator=generator(0, "tap/train", step))
        expected = shift_and_flip(images, (2 * draws[:, :2] - 1) * 2, draws[:, 2] < 0.5, fill)
        assert torch.equal(moved, expected)
        assert torch.equal(kept, labels)


PIL_MISTAKES = ["x - delta clipped", "delta kept where x - delta is an image",
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


def test_pils_crafting_is_the_releases_loop(tmp_path, contrasts, in_double):
    torch.manual_seed(0)
    network = classifier("two_linear", 4, (8, 8)).double()
    in_double(pil, network)
    # a weight at which both terms count on so small a network
    config = pil.Config(epsilon=24 / 255, step_size=5 / 255, steps=8, weight=0.5)
    ours = poisoned_by(pil, contrasts, config, tmp_path / "ours", "pil")
    np.testing.assert_array_equal(ours, plain_pil(contrasts, config, network))
    for mistake in PIL_MISTAKES:
        assert (plain_pil(contrasts, config, network, mistake) != ours).any(), mistake


PIL_TRAINING_MISTAKES = ["shuffled", "last batch dropped", "weight decay", "constant rate",
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
    for mistake in PIL_TRAINING_MISTAKES:
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


HYPO_MISTAKES = ["the next class", "away from the class", "random start", "never in the box",
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
def test_hypos_crafting_is_the_releases_loop(tmp_path, contrasts, in_double, norm, epsilon):
    network = network_of()
    in_double(hypo, network)
    config = hypo.Config(norm=norm, epsilon=epsilon, steps=8)
    ours = poisoned_by(hypo, contrasts, config, tmp_path / "ours")
    np.testing.assert_array_equal(ours, plain_hypo(contrasts, config, network))
    for mistake in HYPO_MISTAKES:
        assert (plain_hypo(contrasts, config, network, mistake) != ours).any(), mistake


SEP_MISTAKES = {
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


@pytest.mark.parametrize("loss", SEP_MISTAKES)
def test_seps_crafting_is_the_releases_loop(tmp_path, contrasts, in_double, monkeypatch, loss):
    networks = [network_of(seed=seed) for seed in range(3)]
    in_double(sep, networks[0])
    x, y = doubles(contrasts)
    monkeypatch.setattr(sep, "class_features", lambda frozen, *_: torch.stack(
        [frozen.features(x)[y == k].mean(0) for k in range(4)]))
    config = sep.Config(loss=loss, epsilon=24 / 255, step_size=9 / 255, steps=2, checkpoints=3,
                        **({"inner_steps": 3} if loss == "fa_vr" else {}))
    with new_run(tmp_path / "ours") as run:
        monkeypatch.setattr(sep, "train_ensemble", lambda *_: [
            FrozenSurrogate(network, run.device) for network in networks])
        ours = np.array(sep.poison(contrasts, config, run).images)
    np.testing.assert_array_equal(ours, plain_sep(contrasts, config, networks))
    for mistake in SEP_MISTAKES[loss]:
        assert (plain_sep(contrasts, config, networks, mistake) != ours).any(), mistake


# --- TAP -------------------------------------------------------------------------------------


def test_tap_reaches_its_target(few_path, few):
    """The surrogate predicts (y + 1) mod K for nearly all images, digits though they are."""
    images, log = make("tap", few_path, *LINEAR, "steps=40", "restarts=2",
                       "epsilon=160/255", "step_size=8/255", "shift=0.5", "flip=false")
    assert share_seen(log) > 0.95
    assert np.abs(images.astype(int) - few.images).max() == 160
    [restarts] = [line for line in log if line["loop"] == "restarts"]
    assert restarts["best"] == int(np.argmin(restarts["losses"]))
    assert restarts["losses"][0] != restarts["losses"][1]


def test_untargeted_tap_leaves_the_own_class(few_path):
    _, log = make("tap", few_path, *LINEAR, "steps=10", "restarts=1", "epsilon=64/255",
                  "step_size=8/255", "shift=1", "targeted=false")
    assert share_seen(log) < 0.05


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


# --- HYPO ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hypo_helps_the_surrogate(few_path, few, norm, tmp_path):
    """Its loss on the images falls, with the network that it trained, trained here again."""
    epsilon = "24/255" if norm == "linf" else "1.5"
    images, log = make("hypo", few_path, *LINEAR, "steps=10", f"norm={norm}", f"epsilon={epsilon}")
    assert share_seen(log) > 0.97
    model = surrogate_of(few, tmp_path, hypo, **LINEAR_FIELDS)
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
    _, log = make("hypo", few_path, *LINEAR, "steps=20", "variant=p1", "epsilon=128/255")
    assert share_seen(log) > 0.9


def test_hypos_step_is_a_fifth_of_epsilon_or_its_own(few_path):
    """`step_size: null` is the release's; one step shows it."""
    def change(*keys: str) -> int:
        images, _ = make("hypo", few_path, *LINEAR, "surrogate.epochs=1", "steps=1",
                         "epsilon=40/255", *keys)
        return np.abs(images.astype(int) - np.load(few_path / "images.npy")).max()

    assert change() == change("step_size=8/255") == 8
    assert change("step_size=3/255") == 3


def test_pgd_in_an_l2_ball():
    """Against the step and the projection retyped, for a loss whose gradient is known."""
    torch.manual_seed(0)
    images, weights = torch.rand(3, 3, 4, 4) * 0.2 + 0.4, torch.randn(3, 3, 4, 4)
    found = pgd(images, torch.zeros_like(images), gradient_of(lambda x, _: (x * weights).sum()),
                epsilon=0.05, step_size=0.02, steps=4, norm="l2")
    for image_delta, weight in zip(found, weights, strict=True):
        delta = torch.zeros_like(weight)
        for _ in range(4):
            delta = delta - 0.02 * weight / weight.norm()
            delta = delta * min(1.0, 0.05 / delta.norm().item())
        torch.testing.assert_close(image_delta, delta)


# --- SEP -------------------------------------------------------------------------------------


def test_sep_goes_half_way_round(few_path):
    _, log = make("sep", few_path, *LINEAR, "steps=10", "epsilon=128/255", "step_size=16/255",
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


# --- PIL -------------------------------------------------------------------------------------


def test_pils_noise_is_what_the_line_sees(few_path, few, tmp_path):
    """Its loss falls, retyped for a plain matrix, and the noise alone is recognised."""
    images, _ = make("pil", few_path, "surrogate.learning_rate=0.05", "epsilon=32/255",
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


# --- presets ---------------------------------------------------------------------------------


def test_presets_change_what_they_say():
    assert config_by("sep", "preset=fa") == dataclasses.replace(sep.Config(), loss="fa")
    assert config_by("sep", "preset=fa_vr") == dataclasses.replace(
        sep.Config(), loss="fa_vr", checkpoints=15)
    assert config_by("tap", "data=svhn") == dataclasses.replace(tap.Config(), flip=False)
    assert config_by("hypo") == hypo.Config()
    assert config_by("hypo", "preset=apbench") == hypo.Config(
        step_size=0.8 / 255,
        surrogate=dataclasses.replace(hypo.Surrogate(), architecture="resnet18"))
    assert config_by("pil") == pil.Config()


def test_targets_are_the_attacks_own(few_path):
    """The poisoned set has the labels of its base."""
    out = succeed(poison_main, "method=tap", f"data={few_path}", "--smoke", "threads=1")
    np.testing.assert_array_equal(np.load(out / "labels.npy"), np.load(few_path / "labels.npy"))
