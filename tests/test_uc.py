"""UC: its generator, clusters and loss, the whole attack typed again, and weights from outside.

The plain loop computes in double precision, as the attack does here, and must give the same bytes.
"""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacks import (
    doubles,
    poisoned_by,
    random_network,
    random_set,
    share_seen,
    to_double,
    to_pixels,
)
from conftest import as_set, count, log_of, new_run, run_command, succeed, write_imageset
from torchvision import models

import evaluate
from core.errors import ConfigError, UserError
from core.imageset import ImageSet
from core.training import Normalised
from core.views import Views, draw
from models.generator import Generator
from models.resnet import resnet18
from poisons import uc
from poisons.__main__ import main as poison_main

SMALL = {"clusters": 3, "width": 4, "epochs": 2, "batch_size": 12, "epsilon": 48 / 255,
         "learning_rate": 2e-2, "last_rate": 1e-3, "weight_decay": 0.05}


@pytest.fixture(scope="module")
def small() -> ImageSet:
    """20 images of 8x8 in four classes; batches of 12 leave 8."""
    return random_set(20, -60, 316)


# --- facts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(224, 224), (32, 32), (9, 14)])
def test_the_generator_keeps_the_size(shape):
    with torch.no_grad():
        made = Generator(4)(torch.rand(1, 3, *shape))
    assert made.shape == (1, 3, *shape)
    assert made.abs().max() < 1


def test_no_row_of_what_the_generator_makes_is_cut_away():
    """But where sides are no multiple of 4: a border too wide would be cut unseen."""
    with torch.no_grad():
        assert Generator(4).layers(torch.rand(1, 3, 32, 36)).shape == (1, 3, 32, 36)


def test_the_generator_is_the_releases():
    """7,841,411 parameters; most of its first noise is beyond the budget."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        generator = Generator()
        assert count(generator) == 7_841_411
        beyond = (generator(torch.rand(1, 3, 32, 32)).abs() > 16 / 255).float().mean()
    assert 0.8 < beyond < 0.92
    with pytest.raises(RuntimeError, match="train mode"):
        generator.eval()


def test_the_loss_of_two_numbers_by_hand():
    features = torch.tensor([[0.0, math.log(3)]])
    centre = torch.zeros(2)
    by_hand = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    assert uc.divergence(features, centre).item() == pytest.approx(by_hand, abs=1e-6)
    assert by_hand == pytest.approx(0.143841, abs=1e-6)
    twice = uc.divergence(features.repeat(2, 1), centre).item()     # a mean over images
    assert twice == pytest.approx(by_hand, abs=1e-6)
    apart = uc.nearness(features, torch.stack([centre, features[0]]))
    torch.testing.assert_close(apart, torch.tensor([[-by_hand, 0.0]],
                                                          dtype=torch.float32))


# --- the plain loop --------------------------------------------------------------------------


def network_of() -> torch.nn.Module:
    """A random ResNet-18 of width 4 with statistics of its own, in double precision."""
    return random_network(lambda: Normalised(resnet18(4, 4), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))


MISTAKES = ["the own centre", "the centre before", "its cluster's images", "shuffled",
            "input anew at every step", "rate by the epoch", "decay beside the gradient",
            "divergence the other way round", "noise not clamped", "images not clipped",
            "no crop", "no flip", "surrogate in train mode", "generator in eval mode at the end",
            "one generator for all", "noise of the target's cluster"]


def plain_uc(clean: ImageSet, config: uc.Config, network, run, mistake: str = "") -> np.ndarray:
    x, _ = doubles(clean)
    with torch.no_grad():
        found = uc.k_means(network.features(x), config.clusters, run)
    centres, assigned = found["centres"], found["clusters"]
    noises, generator = [], None
    for number in range(config.clusters):
        if generator is None or mistake != "one generator for all":
            with run.initialisation(f"generator{number}"):
                generator = Generator(config.width)
        noises.append(plain_generator(number, x, assigned, centres, generator, config, network,
                                      run, mistake))
    which = (assigned + 1) % config.clusters if mistake == "noise of the target's cluster" \
        else assigned
    return to_pixels(x + torch.stack([noises[k] for k in which]))


def plain_generator(number, x, assigned, centres, generator, config, network, run, mistake):
    offset = {"the own centre": 0, "the centre before": -1}.get(mistake, config.target_offset)
    target = centres[(number + offset) % config.clusters].softmax(0)
    order = torch.nonzero(assigned == number)[:, 0] if mistake == "its cluster's images" \
        else torch.arange(len(x))
    start = torch.rand(1, 3, 8, 8, generator=run.stream("uc/start", number))
    parameters = list(generator.parameters())
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    step, steps = 0, config.epochs * -(-len(order) // config.batch_size)
    for epoch in range(config.epochs):
        if mistake == "shuffled":
            order = torch.randperm(len(x), generator=run.stream(f"generator{number}/batches",
                                                                epoch))
        for rows in order.split(config.batch_size):
            if mistake == "input anew at every step":
                start = torch.rand(1, 3, 8, 8, generator=run.stream("anew", step))
            noise = generator(start)
            if mistake != "noise not clamped":
                noise = noise.clamp(-config.epsilon, config.epsilon)
            seen = crops(x[rows], config, run.stream(f"uc/views{number}", step), mistake) + noise
            if mistake != "images not clipped":
                seen = seen.clamp(0, 1)
            network.train(mistake == "surrogate in train mode")
            q = network.features(seen).softmax(1)
            network.eval()
            if mistake == "divergence the other way round":
                loss = (q * (q / target).log()).sum(1).mean()
            else:
                loss = (target * (target / q).log()).sum(1).mean()
            at = epoch / config.epochs if mistake == "rate by the epoch" else step / steps
            rate = config.last_rate + (config.learning_rate - config.last_rate) \
                * (1 + np.cos(np.pi * at)) / 2
            step += 1
            with torch.no_grad():
                gradients = torch.autograd.grad(loss, parameters)
                for p, g, m, v in zip(parameters, gradients, means, squares, strict=True):
                    if mistake == "decay beside the gradient":
                        p.mul_(1 - rate * config.weight_decay)
                    else:
                        g = g + config.weight_decay * p
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.999).add_(0.001 * g * g)
                    p.sub_(rate * (m / (1 - 0.9**step))
                           / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
    if mistake == "generator in eval mode at the end":
        generator.train(False)
    with torch.no_grad():
        return generator(start)[0].clamp(-config.epsilon, config.epsilon)


def crops(images, config, generator, mistake) -> torch.Tensor:
    """Each image enlarged as a whole, then cut and mirrored."""
    larger = round(8 * config.enlarged)
    views = Views(scale=None, resize=config.enlarged, jitter=0.0, grey=0.0)
    drawn = draw(views, len(images), (8, 8), generator)
    made = []
    for image, box, mirrored in zip(images, drawn.boxes, drawn.mirrored, strict=True):
        big = F.interpolate(image[None], (larger, larger), mode="bilinear", antialias=True)[0]
        top, left = (round(float(place) * larger / 8) for place in box[:2])
        cut = image if mistake == "no crop" else big[:, top : top + 8, left : left + 8]
        made.append(cut.flip(2) if mirrored and mistake != "no flip" else cut)
    return torch.stack(made)


@pytest.fixture
def in_double(monkeypatch):
    """The attack in double precision, on this network."""
    monkeypatch.setattr(uc, "train_surrogate", lambda *_: network_of())
    to_double(monkeypatch, uc, makes=["on_device"], takes=["viewed"])
    torch.set_default_dtype(torch.float64)      # of generators, too; conftest sets it back


def test_the_attack_is_the_releases_loop(tmp_path, small, in_double):
    """The same bytes; and each mistake that one could make gives others, after one epoch."""
    config = uc.Config(**SMALL)
    ours = poisoned_by(uc, small, config, tmp_path / "ours")
    with new_run(tmp_path / "plain") as run:
        np.testing.assert_array_equal(ours, plain_uc(small, config, network_of(), run))
        once = dataclasses.replace(config, epochs=1)
        right = plain_uc(small, once, network_of(), run)
        for mistake in MISTAKES:
            made = plain_uc(small, once, network_of(), run, mistake)
            assert (made != right).any(), mistake


def test_a_generator_may_see_its_cluster_alone(tmp_path, small, in_double):
    values = {**SMALL, "clusters": 2, "batch_size": 7}
    ours = poisoned_by(uc, small, uc.Config(**values, scope="cluster"), tmp_path / "ours")
    with new_run(tmp_path / "plain") as run:
        plain = plain_uc(small, uc.Config(**values), network_of(), run, "its cluster's images")
    np.testing.assert_array_equal(ours, plain)


# --- clusters, and what is stored ------------------------------------------------------------


@pytest.fixture(scope="module")
def made(few, tmp_path_factory):
    """An attack on a few digits whose labels are shuffled, and the clean set."""
    place = tmp_path_factory.mktemp("uc")
    clean = write_imageset(place / "clean", few.images, few.labels)
    return clean, succeed(poison_main, "method=uc", f"data={clean}", "uc.clusters=4",
                          "uc.epochs=3", "uc.width=8", "uc.batch_size=64", "uc.epsilon=64/255",
                          "uc.learning_rate=1e-2", "uc.surrogate.architecture=resnet18",
                          "uc.surrogate.width=8", "uc.surrogate.epochs=4",
                          "uc.surrogate.batch_size=64", f"out={place / 'poisoned'}")


def test_a_cluster_has_one_noise_and_the_assignment_is_stored(made):
    clean, out = made
    before, after = (np.load(path / "images.npy").astype(int) for path in (clean, out))
    clusters, centres = np.load(out / "clusters.npy"), np.load(out / "centres.npy")
    assert (clusters.dtype, clusters.shape, centres.shape) == (np.int64, (len(before),), (4, 64))
    assert set(clusters) == {0, 1, 2, 3}
    levels = []
    for number in range(4):
        change = (after - before)[clusters == number]
        free = (after[clusters == number] > 0) & (after[clusters == number] < 255)
        least = np.where(free, change, 999).min(0)
        most = np.where(free, change, -999).max(0)
        assert (most - least)[least < 999].max() == 0       # one noise, but where it was clipped
        levels.append(least)
    assert any((one != other).any() for one, other in itertools.pairwise(levels))
    meta = json.loads((out / "meta.json").read_text())
    assert {"clusters.npy", "centres.npy"} <= set(meta["digests"])


def test_images_move_to_the_next_cluster(made):
    """The surrogate's features of most images are nearest to the centre that was meant."""
    log = log_of(made[1])
    assert share_seen(log) > 0.4        # chance: 0.25
    [sizes] = [line["sizes"] for line in log if line["loop"] == "cluster"]
    assert sizes == np.bincount(np.load(made[1] / "clusters.npy")).tolist()
    lines = [line for line in log if line["loop"] == "generator0"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    batches = math.ceil(sum(sizes) / 64)            # each generator's, of all images
    rates = [1e-6 + (1e-2 - 1e-6) * (1 + math.cos(math.pi * last / (3 * batches))) / 2
             for last in (batches - 1, 2 * batches - 1, 3 * batches - 1)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(rates)


def test_k_means_is_of_the_runs_seed(tmp_path):
    """Where it starts decides what it finds in features that lie in no clusters."""
    features = torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for i, seed in enumerate((0, 0, 1, 2)):
        with new_run(tmp_path / f"out{i}", seed=seed) as run:
            found.append(uc.k_means(features, 7, run))
    first, again, *others = found
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first["clusters"], other["clusters"]) for other in others)
    for one in found:
        assert one["centres"].shape == (7, 5)
        distance = torch.cdist(features, one["centres"])
        assert torch.equal(distance.argmin(1), one["clusters"])


# --- surrogates ------------------------------------------------------------------------------


def test_torchvisions_weights_give_torchvisions_features(tmp_path, small):
    torch.manual_seed(0)
    theirs = models.resnet18()
    images = torch.rand(4, 3, 32, 32)
    theirs(images)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406),
                                                         (0.229, 0.224, 0.225)))
    config = uc.Config(weights=str(tmp_path / "resnet18.pth"),
                       surrogate=uc.Surrogate(architecture="resnet18", stem="imagenet"))
    with new_run(tmp_path / "out") as run:
        network = uc.surrogate(small, config, run)
    theirs.eval().fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(network.features(images), theirs((images - mean) / std),
                                   atol=1e-4, rtol=1e-4)


def test_a_network_that_was_kept_is_a_surrogate(made, tmp_path):
    """Beside it, no label is needed, and no surrogate trained."""
    clean, _ = made
    record = succeed(evaluate.main, "method=standard", f"data={clean}", "standard.width=2",
                     "standard.epochs=1", "standard.batch_size=16", "keep_network=true",
                     f"test={clean}", f"out={tmp_path / 'record'}")
    line = ["method=uc", f"data={clean}", f"uc.weights={record}",
            "uc.surrogate.architecture=resnet18", "uc.surrogate.width=2", "uc.clusters=2",
            "uc.width=4", "uc.epochs=1"]
    said = run_command(poison_main, *line)
    assert said.error == (f"{record} has mean None, but this training has [0.485, 0.456, 0.406]: "
                          "set uc.surrogate.mean")
    plain = ["uc.surrogate.mean=null", "uc.surrogate.std=null"]
    out = succeed(poison_main, *line, *plain, f"out={tmp_path / 'out'}")
    assert "surrogate" not in {line["loop"] for line in log_of(out)}
    assert json.loads((out / "meta.json").read_text())["lineage"][0]["inputs"]["weights"] == \
        json.loads((record / "meta.json").read_text())["fingerprint"]


# --- mistakes --------------------------------------------------------------------------------


def test_what_cannot_be_is_one_sentence(tmp_path, small):
    with pytest.raises(ConfigError, match="3 of 3 clusters further is the own one"):
        uc.Config(clusters=3, target_offset=3)
    for changes, images, message in (
            ({"clusters": 21}, slice(None), "uc.clusters: 20 images do not fill 21 clusters"),
            ({"clusters": 18, "scope": "cluster"}, slice(None), "a cluster of one image"),
            ({}, np.s_[:, :6], "images of 6x8 pixels are too small for the generator")):
        clean = as_set(small.images[images], small.labels, classes=4)
        config = uc.Config(**{**SMALL, **changes}, surrogate=uc.Surrogate(
            architecture="linear", epochs=1, batch_size=8))
        with new_run(tmp_path / message[:20]) as run, pytest.raises(UserError, match=message):
            uc.poison(clean, config, run)


def test_too_many_clusters_are_refused_before_a_surrogate_is_trained(tmp_path, small, monkeypatch):
    monkeypatch.setattr(uc, "surrogate", None)
    with new_run(tmp_path / "run") as run, pytest.raises(UserError, match="20 images do not fill"):
        uc.poison(small, uc.Config(**{**SMALL, "clusters": 21}), run)
