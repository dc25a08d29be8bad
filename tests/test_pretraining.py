"""SimCLR, MoCo and BYOL as learners: their loop, their probe, neighbours, several processes."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, new_run, process, run_command, succeed, write_imageset
from methods import poisoned_by, smoke_config
from safetensors.torch import load_file
from torch import nn

import evaluate
from core import config, records
from core.batches import Batches
from core.contrastive import LOSS_SCALE, MOMENTA, nt_xent
from core.errors import UserError
from core.imageset import ImageSet
from core.views import Views, apply, draw
from learners import advcl_reduced, byol, moco, pretraining, simclr
from learners import probe as probe_module
from learners.probe import Probe, images_of, knn_accuracy, linear_probe, votes
from models import contrastive as networks
from scripts.tables import wording

LINE = ("method=simclr", "simclr.architecture=linear", "simclr.epochs=1", "simclr.batch_size=16",
        "simclr.neighbours=5", "simclr.probe.epochs=1")


@pytest.fixture
def data(few, tmp_path):
    return write_imageset(tmp_path / "few", few.images[:40], few.labels[:40])


# --- protocol --------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "values"), [
    (simclr, (0.5, LOSS_SCALE["simclr"], 0.5)), (moco, (0.3, LOSS_SCALE["moco"], 0.2)),
    (byol, (1.0, 1.0, None))])
def test_defaults_are_those_of_cp(module, values):
    found = module.Config()
    assert (found.learning_rate, found.loss_scale, getattr(found, "temperature", None)) == values
    assert (found.epochs, found.batch_size, found.weight_decay) == (1000, 512, 1e-4)
    views = {key: getattr(found.views, key) for key in (
        "scale", "ratio", "flip", "jitter", "brightness", "contrast", "saturation", "hue", "grey",
        "blur", "solarize")}
    assert views == {
        "scale": (0.2, 1), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "jitter": 0.8, "brightness": 0.4,
        "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "grey": 0.2, "blur": 0, "solarize": 0}
    probe = found.probe
    assert (probe.epochs, probe.batch_size, probe.learning_rate) == (100, 512, 1)
    assert (probe.momentum, probe.gamma) == (0.9, 0.2)
    assert (probe.weight_decay, probe.milestones) == (0, (60, 75, 90))
    assert MOMENTA == {"moco": 0.99, "byol": 0.999}


def test_the_rate_climbs_to_the_cosine_and_follows_it():
    """CP: from 0.01 in ten epochs, step by step; then once an epoch, the first being 1."""
    protocol = simclr.Config()

    def rate(step: int) -> float:
        return pretraining.learning_rate(protocol, step, 1000, 97)

    top = 0.499877
    assert rate(0) == 0.01
    assert rate(485) == pytest.approx((0.01 + top) / 2, abs=1e-6)
    assert rate(969) < top
    assert rate(970) == rate(970 + 96) == pytest.approx(
        0.0005 + 0.4995 * (1 + math.cos(math.pi * 11 / 1000)) / 2)
    assert rate(97_000 - 1) == pytest.approx(0.0005)
    # A training that ends within the warm-up climbs to where its own cosine ends.
    short = [pretraining.learning_rate(protocol, step, 5, 97) for step in (0, 97, 484)]
    assert short == pytest.approx([0.01 + (0.0005 - 0.01) * step / 970 for step in (0, 97, 484)])


def test_the_yamls_normalise_as_cp_does(monkeypatch):
    for name, method in (("simclr", "simclr"), ("moco", "moco"), ("byol", "byol")):
        outcome = run_command(evaluate.main, ROOT / f"configs/learners/{name}.yaml", "data=digits",
                              "like=cifar10", "--dry-run")
        found = config.parse(outcome.stdout, "it").value[method].value
        assert [item.value for item in found["std"].value] == ["0.2023", "0.1994", "0.201"]


# --- the loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["linear", "resnet18"])
def test_the_loop_is_this_plain_one(few, tmp_path, architecture):
    """Seen to fail for: one view twice, the loss without its scale, views of another step, the rate
    of another epoch, no weight decay, normalisation left out, eval mode after the neighbours."""
    protocol = config.build(simclr.Config, config.read([], [
        f"it.{text}" for text in (
            "epochs=2", "batch_size=20", f"architecture={architecture}", "warmup_epochs=1",
            "width=2", "test_every=1", "neighbours=5", "probe.epochs=1", "weight_decay=0.1",
            "mean=[0.4,0.5,0.6]", "std=[0.2,0.2,0.3]")]).value["it"], "")
    data = few.first(50)
    with new_run(tmp_path / "out") as run:
        found = simclr.fit(data, data, protocol, run).network
        with run.initialisation("encoder"):
            network, channels = networks.encoder(architecture, 10, data.image_shape, 2)
        with run.initialisation("heads"):
            head = networks.head(channels)
        weights = [*network.parameters(), *head.parameters()]
        momenta = [torch.zeros_like(weight) for weight in weights]
        batches = Batches(data, 20, run, "pretraining")
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (protocol.mean, protocol.std))
        for epoch in range(2):
            for step, (images, _) in enumerate(batches.epoch(epoch)):
                number = 2 * epoch + step
                generator = run.stream("pretraining/views", number)
                views = [apply(images, draw(protocol.views, 20, (16, 16), generator))
                         for _ in range(2)]
                z = head(network.features((torch.cat(views) - mean) / std)).chunk(2)
                loss = nt_xent(*z, temperature=0.5) * (0.5 / 0.07 / 4)
                gradients = torch.autograd.grad(loss, weights)
                top = pretraining.cosine_rate(0.5, 1, 2)
                rate = 0.01 + (top - 0.01) * step / 2 if epoch == 0 else 0.0005
                with torch.no_grad():
                    for weight, momentum, gradient in zip(weights, momenta, gradients,
                                                          strict=True):
                        momentum.mul_(0.9).add_(gradient + 0.1 * weight)
                        weight -= rate * momentum
        state = run.load_state("pretraining")["objects"]["method"]
    assert bool(list(found.parameters())) == (architecture == "resnet18")
    for name, weight in network.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, atol=1e-5, rtol=1e-3)
    for name, weight in head.state_dict().items():
        torch.testing.assert_close(state[f"network.head.{name}"], weight, atol=1e-5, rtol=1e-4)


# --- probe and neighbours --------------------------------------------------------------------


class Pixels(torch.nn.Module):
    """Features are the mean colour; in training mode they would be another's."""

    def features(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return images.mean((2, 3))


def coloured(rows: int, seed: int) -> ImageSet:
    """Three classes: red, green, blue, of any brightness."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    images = np.zeros((rows, 8, 8, 3), np.uint8)
    for row, label in enumerate(labels):
        images[row, :, :, label] = rng.integers(60, 256)
        images[row] += rng.integers(0, 20, (8, 8, 3), dtype=np.uint8) * (images[row] < 200)
    meta = {"name": "coloured", "fingerprint": str(seed), "classes": ["r", "g", "b"],
            "root": {"data": "coloured"}, "test": None, "lineage": []}
    return ImageSet(images, labels, meta)


def test_neighbours_vote_by_their_cosines():
    weights = votes(torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[0, 1, 2]]), 3, 0.1)
    assert weights[0].tolist() == pytest.approx([8103.08, 2980.96, 1096.63], rel=1e-5)
    two = votes(torch.tensor([[0.9, 0.8, 0.85]]), torch.tensor([[0, 1, 1]]), 3, 0.1)
    assert two[0].tolist() == pytest.approx([8103.08, 2980.96 + 4914.77, 0], rel=1e-5)


def test_the_nearest_neighbour_is_that_of_the_cosine(tmp_path):
    """A dim red has a bright image of red and green as its nearest by the product, black by the
    distance."""
    colours = np.uint8([[250, 250, 0], [0, 0, 10], [60, 0, 0]])
    meta = coloured(3, 0).meta
    data = ImageSet(np.broadcast_to(colours[:, None, None], (3, 8, 8, 3)), np.arange(3), meta)
    test = ImageSet(np.full((1, 8, 8, 3), np.uint8([20, 0, 0])), np.array([2]), meta)
    with new_run(tmp_path / "out") as run:
        assert knn_accuracy(Pixels(), data, test, 1, 0.1, run) == 1


def test_neighbours_and_a_linear_probe_tell_colours(tmp_path):
    data, test = coloured(60, 0), coloured(31, 1)
    with new_run(tmp_path / "out") as run:
        assert knn_accuracy(Pixels(), data, test, 5, 0.1, run) == 1
        wrong = ImageSet(data.images, (data.labels + 1) % 3, data.meta)
        assert knn_accuracy(Pixels(), wrong, test, 5, 0.1, run) == 0
        found = linear_probe(Pixels(), 3, data, test, Probe(epochs=20, batch_size=16,
                                                            milestones=(15,)), Views(), run)
    assert found.last == found.best == 1
    assert found.best_epoch < 20                    # the first that is best
    assert [epoch for epoch, _ in found.curve] == list(range(1, 21))
    log = (tmp_path / "out.partial/log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["accuracy"] == 1


def test_a_linear_probe_is_a_plain_loop(tmp_path, monkeypatch):
    """SGD retyped, on the features that it was shown. Sees: a rate that falls an epoch early or
    late or not by its factor, no momentum, weight decay of 0, a bias that is not trained, the
    last and shorter batch dropped, an accuracy before the epoch's steps."""
    shown, trained = [], []

    class Seen(Pixels):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            shown.append(super().features(images))
            return shown[-1]

    real = probe_module.sgd
    monkeypatch.setattr(probe_module, "sgd", lambda linear, *rest, **keys: trained.append(
        (linear, copy.deepcopy(linear))) or real(linear, *rest, **keys))
    values = Probe(epochs=4, batch_size=32, learning_rate=0.1, momentum=0.8, weight_decay=0.05,
                   milestones=(1, 3), gamma=0.5)
    with new_run(tmp_path / "out") as run:
        found = linear_probe(Seen(), 3, coloured(80, 0), coloured(31, 1), values, Views(), run)
    [(linear, start)] = trained
    test, *batches = shown
    assert [len(batch) for batch in batches] == [32, 32, 16] * 4
    weight, bias = (part.detach().double() for part in start.parameters())
    speeds, curve = [0.0, 0.0], []
    for step, batch in enumerate(batches):
        rate = 0.1 * (1, 0.5, 0.5, 0.25)[step // 3]
        inputs, labels = batch.double(), batch.argmax(1)      # a class is a colour
        errors = (inputs @ weight.T + bias).softmax(1) - F.one_hot(labels, 3)
        slopes = errors.T @ inputs / len(batch) + 0.05 * weight, errors.mean(0) + 0.05 * bias
        speeds = [0.8 * speed + slope for speed, slope in zip(speeds, slopes, strict=True)]
        weight, bias = weight - rate * speeds[0], bias - rate * speeds[1]
        if step % 3 == 2:
            hits = (test.double() @ weight.T + bias).argmax(1) == test.argmax(1)
            curve.append((step // 3 + 1, hits.sum().item() / 31))
    assert linear.weight.detach().numpy() == pytest.approx(weight.numpy(), abs=1e-6)
    assert linear.bias.detach().numpy() == pytest.approx(bias.numpy(), abs=1e-6)
    assert found.curve == curve
    assert len({accuracy for _, accuracy in curve}) > 1


def test_a_probe_sees_cropped_and_mirrored_images_alone(tmp_path, monkeypatch):
    seen = []
    real = pretraining.views.draw
    monkeypatch.setattr("core.views.draw", lambda views, *rest: seen.append(views) or
                        real(views, *rest))
    views = Views(scale=(0.5, 1.0), blur=0.5, solarize=0.5, cutout=2, noise=8 / 255)
    with new_run(tmp_path / "out") as run:
        linear_probe(Pixels(), 3, coloured(30, 0), coloured(9, 1), Probe(epochs=1), views, run)
    assert set(seen) == {Views(scale=(0.5, 1.0), jitter=0, grey=0)}


@pytest.mark.parametrize("flip", [0, 0.5])
def test_a_probe_may_crop_padded_images(tmp_path, monkeypatch, flip):
    """As AdvCL's: images of their own size, shifted over black and mirrored where views are, and no
    view is drawn."""
    monkeypatch.setattr("core.views.draw", None)
    data, shown = coloured(30, 0), []

    class Seen(Pixels):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            shown.append((255 * images).round().permute(0, 2, 3, 1).numpy())
            return super().features(images)

    with new_run(tmp_path / "out") as run:
        linear_probe(Seen(), 3, data, coloured(9, 1), Probe(epochs=1, crop_padding=2),
                     Views(flip=flip), run)
    _, batch = shown                                    # the test images come first
    padded = np.pad(data.images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    crops = [padded[:, down : down + 8, right : right + 8][:, :, :: -1 if flip else 1]
             for down in range(5) for right in range(5)]
    found = [any((image == crop).all((1, 2, 3)).any() for crop in crops) for image in batch]
    assert 5 < sum(found) < 25 if flip else all(found)      # about half are mirrored
    assert not all((image == data.images).all((1, 2, 3)).any() for image in batch)


def test_a_probe_takes_clean_images_of_a_poisoned_set(data, tmp_path):
    """By default; and the record says so. Released: the set alone."""
    poisoned = poisoned_by("random_signs", data, tmp_path / "poisoned", "data=digits", "--limit",
                           "40")
    train, clean = ImageSet.load(poisoned), ImageSet.load(data)
    run = SimpleNamespace(settings={})
    known, told = images_of(train, Probe(data="released"), run)
    assert (known, told) == (train, ())
    assert images_of(clean, Probe(), run) == (clean, ())
    for which in ("clean", "released"):
        out = succeed(evaluate.main, *LINE, f"data={poisoned}", f"test={data}",
                      f"simclr.probe.data={which}", f"out={tmp_path / which}")
        record = records.load(out)
        assert record["probe"]["data"] == which
        assert record["probe"]["knn"][-1][0] == 1
        assert (record["probe"]["rows"], record["probe"]["features"]) == (40, 768)
        assert wording.saw(record) == {
            "clean": "40 clean labelled images (40 of them originals of the set)",
            "released": "nothing"}[which]


def test_an_encoder_of_smaller_views_sees_whole_images():
    """Of another size than its views: resized, not cut."""
    network = pretraining.AtSize(torch.nn.Identity(), (4, 4))
    network.network.features = torch.nn.Flatten()
    images = torch.rand(2, 3, 8, 8)
    whole = F.interpolate(images, (4, 4), mode="bilinear", antialias=True).flatten(1)
    assert torch.equal(network.features(images), whole)
    assert torch.equal(network.features(images[:, :, :4, :4]), images[:, :, :4, :4].flatten(1))


# --- what an encoder is good for -------------------------------------------------------------


def test_a_kept_encoder_is_fine_tuned_and_saw_no_labels(data, tmp_path):
    encoder = succeed(evaluate.main, *LINE, "simclr.architecture=resnet18", "simclr.width=2",
                      f"data={data}", "keep_network=true", f"out={tmp_path / 'encoder'}")
    weights = load_file(encoder / "network.safetensors")
    assert not [name for name in weights if name.startswith(("linear.", "head."))]
    tune = ("method=pretrained", f"data={data}", f"pretrained.weights={encoder}",
            "pretrained.stem=auto", "pretrained.steps=1", "pretrained.batch_size=16",
            "pretrained.learning_rate=1e-30", "pretrained.freeze=blocks", "keep_network=true")
    tuned = succeed(evaluate.main, *tune, "pretrained.width=2")
    found = load_file(tuned / "network.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert found["linear.weight"].shape == (10, 16)
    assert wording.saw(records.load(tuned)) == "the set itself"
    outcome = run_command(evaluate.main, *tune, "pretrained.width=3")
    assert outcome.error == (f"{encoder} has width 2, but this training has 3: set "
                             "pretrained.width")
    outcome = run_command(evaluate.main, *tune, "pretrained.width=2", "pretrained.stem=imagenet")
    assert "holds the weights of another network: stem.0.weight is 2x3x3x3" in outcome.error


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(("keys", "error"), [
    (["method=moco", "moco.queue=100"],
     "command line: moco.queue: a queue of 100 keys is not filled by whole batches of 512: write a "
     "multiple of batch_size"),
    (["method=simclr", "simclr.batch_size=1"],
     "command line: simclr.batch_size: 1 is out of range: it must be at least 2"),
    (["method=simclr"], "the probe has 40 images, fewer than 200 neighbours: lower it"),
    (["method=simclr", "simclr.neighbours=5"],
     "the set has 40 rows, too few for a batch of 512: lower batch_size"),
    (["method=simclr", "--smoke"],
     "the set has 40 rows, and --smoke takes batches of 64: leave data= out, for embedded digits, "
     "or leave --smoke out and lower batch_size"),
    (["method=simclr", "simclr.mean=[0.5,0.5,0.5]"], "mean and std go together"),
])
def test_what_cannot_be_is_said(data, keys, error):
    outcome = run_command(evaluate.main, *keys, f"data={data}", f"test={data}")
    assert outcome.status == 1
    assert error in outcome.error
    assert not list((data.parent / "runs").rglob("record.json"))


def test_an_encoder_that_diverges_in_its_last_step_is_not_probed(few, tmp_path):
    """Its last loss was of the weights before that step; the classifier behind it is not to blame.
    """
    protocol = simclr.Config(width=2, epochs=1, batch_size=20, warmup_epochs=0, neighbours=5,
                             learning_rate=1e38)
    data = few.first(20)
    with new_run(tmp_path / "out") as run, pytest.raises(UserError) as caught:
        simclr.fit(data, data, protocol, run)
    assert str(caught.value) == (
        "pretraining: knn_accuracy became nan in epoch 1; lower the learning rate, or look at the "
        "data")


def test_shares_that_are_not_equal_are_refused(few, tmp_path):
    with new_run(tmp_path / "out") as run:
        run.world = type(run.world)(0, 3)
        with pytest.raises(config.UserError, match="3 processes cannot share 64 images equally"):
            simclr.fit(few, few, smoke_config("learners", "simclr"), run)


# --- several processes -----------------------------------------------------------------------


def test_processes_share_batches():
    """Two, with the losses, weights, running statistics and the queue of one. (Rounding grows:
    BYOL's loss has no temperature, but its heads have batch norm over 8 rows.)"""
    both = process("-m", "tests.sharing_ranks", ranks=2)
    stdout, stderr = both.communicate(timeout=180)
    assert both.returncode == 0, stderr
    apart = json.loads(stdout)
    assert apart.keys() == {"simclr", "moco", "byol"}
    assert max(value for found in apart.values() for value in found.values()) < 1e-3


@pytest.mark.slow
def test_processes_share_a_learner(data, tmp_path):
    line = ("method=moco", "moco.width=2", "moco.steps=3", "moco.batch_size=16", "moco.queue=64",
            "moco.neighbours=5", "moco.probe.epochs=1", f"data={data}", f"test={data}",
            "keep_network=true")
    both = process(ROOT / "evaluate.py", *line, f"out={tmp_path / 'both'}", ranks=2,
                   torchrun=True)
    succeed(evaluate.main, *line, f"out={tmp_path / 'alone'}")
    stdout, stderr = both.communicate(timeout=180)
    assert both.returncode == 0, stderr
    assert len(stdout.splitlines()) == 1
    one, two = (load_file(tmp_path / out / "network.safetensors") for out in ("alone", "both"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-3, rtol=1e-2)


# --- the reduced form of AdvCL ---------------------------------------------------------------


def reduced(**options):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 6),
                                  torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 4), networks.Unit())
    networks.double_norms(network)
    return advcl_reduced.Reduced(network, advcl_reduced.Config(**options))


def test_an_attacked_image_moves_away_within_its_radius():
    method, seen = reduced(epsilon=16 / 255, iterations=3), []
    first, second, images = torch.rand(3, 6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    embed = method.embed
    method.embed = lambda which, *parts: seen.append((which, *parts)) or embed(which, *parts)
    start = torch.zeros_like(images).uniform_(-16 / 255, 16 / 255)
    last = method(first, second, images, start)
    assert [which for which, *_ in seen] == ["clean", *["attacked"] * 3, "clean", "attacked"]
    attacked = seen[-1][1]
    assert 8 / 255 < (attacked - images).abs().max() <= 16 / 255 + 1e-6
    assert 0 <= attacked.min() <= attacked.max() <= 1

    known = embed("clean", first, second)
    before, after = (nt_xent(*known, *embed("attacked", x), temperature=0.5)
                     for x in (images, attacked))
    assert after > before
    torch.testing.assert_close(last, after)
    last.backward()
    assert method.network[1].weight.grad.abs().sum() > 0


def test_the_attack_is_a_plain_loop():
    """Signed ascent on the loss of all three views. Sees: descent, another step, a step not of the
    last one's end, norms of the clean views, a start that is clipped or left out."""
    method = reduced(epsilon=16 / 255, step_size=3 / 255, iterations=4, temperature=0.3)
    torch.nn.init.uniform_(method.network[2].attacked.weight)
    first, second, images = torch.rand(3, 6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    start = torch.empty_like(images).uniform_(-16 / 255, 16 / 255)
    twin = copy.deepcopy(method)
    known = [part.detach() for part in twin.embed("clean", first, second)]
    moved = images + start
    for _ in range(4):
        moved = moved.detach().requires_grad_()
        nt_xent(*known, *twin.embed("attacked", moved), temperature=0.3).backward()
        # the image stays an image, and within the radius of the clean one
        moved = moved + 3 / 255 * moved.grad.sign()
        moved = torch.minimum(torch.maximum(moved, images - 16 / 255), images + 16 / 255)
        moved = moved.clamp(0, 1)
    seen, embed = [], method.embed
    method.embed = lambda which, *parts: seen.append(parts[0]) or embed(which, *parts)
    method(first, second, images, start)
    torch.testing.assert_close(seen[-1], moved.detach(), atol=1e-6, rtol=0)


def test_what_is_attacked_is_cropped_and_mirrored_and_starts_anywhere_in_the_radius(few):
    """Beside two views; another crop and start of every image, and of every step."""
    epsilon = 8 / 255
    see = advcl_reduced.views_and_image(
        advcl_reduced.Config(crop_padding=2, views=Views(flip=0.3)), (16, 16))
    images = torch.tensor(few.images[:200]).permute(0, 3, 1, 2) / 255
    _, _, image, start = see(images, torch.Generator().manual_seed(0), slice(0, 200))
    assert start.shape == image.shape == images.shape
    assert -epsilon <= start.min() < -0.999 * epsilon
    assert 0.999 * epsilon < start.max() <= epsilon
    assert start.std().item() == pytest.approx(epsilon / math.sqrt(3), rel=0.02)
    assert start.flatten(1).std(0).min() > epsilon / 3          # each image its own
    places, mirrored = set(), 0
    padded = F.pad(images, (2, 2, 2, 2))
    for i in range(200):
        fits = [(down, right, flip) for down in range(5) for right in range(5) for flip in (0, 1)
                if torch.equal(image[i], padded[i, :, down : down + 16, right : right + 16]
                               .flip([2] if flip else []))]
        assert fits
        places.update(fit[:2] for fit in fits)
        mirrored += fits[0][2]
    assert len(places) == 25
    assert 40 < mirrored < 80
    again = see(images, torch.Generator().manual_seed(1), slice(0, 200))
    assert not torch.equal(again[2], image)
    assert not torch.equal(again[3], start)
    mine = see(images, torch.Generator().manual_seed(0), slice(50, 100))
    assert torch.equal(mine[2], image[50:100])                  # of several processes
    assert torch.equal(mine[3], start[50:100])


def test_norms_of_clean_and_of_attacked_images_are_apart():
    """Statistics go to those in use; a network with one set has the names of a plain one."""
    method, images = reduced(), torch.rand(6, 3, 2, 2)
    norms = method.network[2]
    method.embed("attacked", images)
    assert torch.equal(norms.clean.running_mean, torch.zeros(6))
    assert norms.attacked.running_mean.abs().sum() > 0
    plain = networks.single_norms(method.network, "attacked")
    assert isinstance(method.network[2], networks.TwoNorms)
    assert "2.running_mean" in plain.state_dict()
    method.eval()
    assert torch.equal(plain.eval()(images), method.embed("attacked", images)[0])
    assert not torch.equal(plain(images), method.embed("clean", images)[0])


@pytest.mark.parametrize("views", [1, 2])
def test_norms_of_shares_are_those_of_as_many_gpus(views):
    """Each share of 4 of 12 images is normalised with all its views, as a GPU that has it would;
    gradients too. Running statistics are the first share's, as DistributedDataParallel sends."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(),
                            nn.Linear(5 * 36, 7), nn.BatchNorm1d(7)).double()
    split = copy.deepcopy(network)
    networks.split_norms(split, 4, views)
    x = torch.rand(views, 12, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    shares = []
    for first in (8, 4, 0):                             # the first share last: its statistics stay
        gpu = copy.deepcopy(network)
        share = gpu(x[:, first : first + 4].flatten(0, 1)).unflatten(0, (views, 4))
        shares.insert(0, share)
    expected = torch.cat(shares, 1)
    found = split(x.flatten(0, 1)).unflatten(0, (views, 12))
    torch.testing.assert_close(found, expected)
    weights = torch.rand_like(expected)
    torch.testing.assert_close(*(torch.autograd.grad((values * weights).sum(), x)
                                 for values in (found, expected)))
    whole = network(x.flatten(0, 1)).unflatten(0, (views, 12))
    assert not torch.allclose(whole, expected, atol=1e-2)
    split.eval()
    torch.testing.assert_close(split(x[0]), gpu.eval()(x[0]))


def test_advcl_reduced_tells_both_probes(data, tmp_path, monkeypatch):
    """Of images that are read once; each on the norms that the record names."""
    read, probed = [], []

    def spy(network, *rest):
        probed.append({part.which for part in network.modules()
                       if isinstance(part, networks.TwoNorms)})
        return linear_probe(network, *rest)

    for module in (pretraining, advcl_reduced):
        monkeypatch.setattr(module, "images_of",
                            lambda *known: read.append(known) or images_of(*known))
        monkeypatch.setattr(module, "linear_probe", spy)
    out = succeed(evaluate.main, "method=advcl_reduced", "advcl_reduced.width=2",
                  "advcl_reduced.steps=2", "advcl_reduced.batch_size=16",
                  "advcl_reduced.neighbours=5", "advcl_reduced.probe.epochs=1", f"data={data}",
                  f"test={data}", "keep_network=true")
    assert len(read) == 1
    assert probed == [{"attacked"}, {"clean"}]
    probe = records.load(out)["probe"]
    assert probe["norms"] == "attacked"
    assert {"last", "best", "best_epoch"} == probe["clean_norms"].keys()
    plain, _ = networks.encoder("resnet18", 10, (16, 16), 2)
    assert load_file(out / "network.safetensors").keys() == plain.state_dict().keys()
