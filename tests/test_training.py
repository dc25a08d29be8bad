"""The SGD loop for classifiers: schedules and steps against torch's own, scores against loops."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import as_floats, as_set, new_run
from torch import nn

import core.run
from core import training
from core.batches import Augmentation, Batches
from core.errors import UserError
from core.training import Normalised, Protocol, accuracy, learning_rate, train_classifier
from core.views import Views
from learners import smoothing, standard

# --- the loop --------------------------------------------------------------------------------


def linear(classes: int = 10, side: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("keys", [
    {"epochs": 3, "clip_norm": None},
    {"epochs": 2, "clip_norm": 0.05, "nesterov": True, "schedule": "onecycle"},
    {"epochs": 3, "momentum": 0.0, "weight_decay": 0.1, "flip": False, "crop_padding": 0},
    {"steps": 13, "epochs": 99, "schedule": "multistep", "milestones": (5,), "drop_last": False},
])
def test_training_is_plain_sgd(tmp_path, few, keys):
    """The same minibatches through torch.optim by hand give the same weights."""
    protocol = Protocol(batch_size=50, learning_rate=0.02, **keys)
    with new_run(tmp_path / "a") as run:
        trained, result = train_classifier(linear(), few, None, protocol, run)
        ours = weights(trained)

    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=protocol.momentum,
                                weight_decay=protocol.weight_decay, nesterov=protocol.nesterov)
    per_epoch = 6 if protocol.drop_last else 7                  # 320 rows in fifties
    total = protocol.steps or protocol.epochs * per_epoch
    step = 0
    with new_run(tmp_path / "b") as run:
        batches = Batches(few, 50, run, "classifier", drop_last=protocol.drop_last,
                          augmentation=Augmentation(protocol.crop_padding, protocol.flip))
        while step < total:
            for x, y in batches.epoch(step // per_epoch):
                if step == total:
                    break
                optimizer.param_groups[0]["lr"] = learning_rate(protocol, step, total, per_epoch)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                if protocol.clip_norm:
                    nn.utils.clip_grad_norm_(model.parameters(), protocol.clip_norm)
                optimizer.step()
                step += 1
    torch.testing.assert_close(ours, weights(model), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(ours, weights(linear()), atol=1e-4)
    full, rest = divmod(total, per_epoch)
    assert result.images == full * (300 if protocol.drop_last else 320) + rest * 50
    assert math.isnan(result.last)
    assert math.isnan(result.best)


def test_scores_are_the_shares_of_right_answers(tmp_path, few, digits):
    model = linear()
    rest = digits.first(1237)
    with torch.no_grad():
        expected = (model(as_floats(rest.images)).argmax(1).numpy() == rest.labels).mean()
    with new_run(tmp_path / "out") as run:
        assert accuracy(model, rest, run) == expected           # 1,237 = 2 * 500 + 237


def test_scoring_uses_running_statistics_and_leaves_them(tmp_path, few):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 10))
    with new_run(tmp_path / "out") as run:
        accuracy(model, few, run)
    assert model[0].num_batches_tracked == 0
    assert torch.equal(model[0].running_mean, torch.zeros(3))


def test_a_result_tells_last_best_and_curve(tmp_path, few):
    protocol = Protocol(epochs=5, batch_size=64, learning_rate=0.05, crop_padding=0, flip=False,
                        test_every=2)
    with new_run(tmp_path / "out") as run:
        model, result = train_classifier(linear(), few, few, protocol, run)
        assert accuracy(model, few, run) == result.last
        log = [line for line in run.folder.log.lines() if line["loop"] == "classifier"]
    assert [epoch for epoch, _ in result.curve] == [2, 4, 5]        # the last is always tested
    scores = [score for _, score in result.curve]
    assert result.last == scores[-1]
    assert result.best == max(scores)
    assert dict(result.curve)[result.best_epoch] == result.best
    assert result.epochs == 5
    assert [line["at"] for line in log] == [0, 1, 2, 3, 4]
    assert [line.get("accuracy") for line in log] == [None, scores[0], None, scores[1], scores[2]]
    assert log[-1]["train_accuracy"] == result.train_accuracy
    assert log[0]["loss"] > log[-1]["loss"]


def test_testing_never_changes_the_training(tmp_path, few):
    with_tests, without = (Protocol(epochs=3, batch_size=64, learning_rate=0.05, test_every=every)
                           for every in (1, 0))
    found = []
    for i, protocol in enumerate((with_tests, without)):
        with new_run(tmp_path / str(i)) as run:
            model, result = train_classifier(linear(), few, few.first(100), protocol, run)
            found.append(weights(model))
            assert len(result.curve) == (3 if protocol.test_every else 1)
    assert torch.equal(*found)


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_follow_the_set_where_it_is_not_shuffled(tmp_path, few, shuffle):
    orders = []

    def loss(model, images, labels, step):
        orders.append(labels.tolist())
        return training.cross_entropy(model, images, labels, step)

    with new_run(tmp_path / "out") as run:
        train_classifier(linear(), few, None, Protocol(epochs=2, batch_size=160, shuffle=shuffle),
                         run, loss=loss)
    assert ([*orders[0], *orders[1]] == few.labels.tolist()) == (not shuffle)
    assert (orders[:2] == orders[2:]) == (not shuffle)


def test_training_learns(tmp_path, digits):
    train, test = digits.first(1000), digits.first(1437)
    test = as_set(test.images[1000:], test.labels[1000:])
    protocol = Protocol(epochs=6, batch_size=64, crop_padding=0, flip=False, learning_rate=0.05)
    with new_run(tmp_path / "out") as run:
        _, result = train_classifier(linear(), train, test, protocol, run)
    assert result.last > 0.85
    assert result.train_accuracy > 0.85


def test_a_loss_that_is_not_a_number_ends_in_a_sentence(tmp_path, few):
    protocol = Protocol(epochs=2, batch_size=64, learning_rate=1e30, clip_norm=None)
    with new_run(tmp_path / "out") as run, \
            pytest.raises(UserError, match=r"classifier: loss became (nan|inf).*lower the lear"):
        train_classifier(linear(), few, None, protocol, run)
    assert not (tmp_path / "out").exists()


def test_a_network_that_diverges_in_its_last_step_is_not_scored(tmp_path, few):
    """Its last loss was of the weights before that step, and argmax of NaN answers a class."""
    protocol = Protocol(epochs=1, batch_size=len(few), learning_rate=3e38, clip_norm=None)
    model = nn.Sequential(linear(), nn.Linear(10, 10))
    with new_run(tmp_path / "out") as run, pytest.raises(
            UserError, match=r"^a network.s answers became nan or infinite: its training div"):
        train_classifier(model, few, few, protocol, run)
    assert not (tmp_path / "out").exists()


def test_normalisation_sits_inside_the_model():
    x = torch.rand(5, 3, 4, 4)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    found = Normalised(nn.Identity(), mean, std)(x)
    for i in range(3):
        torch.testing.assert_close(found[:, i], (x[:, i] - mean[i]) / std[i])


def test_a_protocol_with_mean_and_std_trains_on_normalised_images(tmp_path, few):
    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(x.detach().amin().item())
            return super().forward(x.flatten(1))

    seen = []
    protocol = Protocol(epochs=1, batch_size=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
                        learning_rate=1e-3)
    with new_run(tmp_path / "out") as run:
        train_classifier(Spy(768, 10), few, few, protocol, run)
    assert len(seen) == 5 + 1
    assert set(seen) == {-2.0}                                  # black is (0 - 0.5) / 0.25


# --- a learner's own loss and transform ------------------------------------------------------

# Shaped as what people train against availability poisons. Each is what a module of learners/ would
# hold; beside it stands what it has to give, worked out on its own.
PROTOCOL = Protocol(epochs=2, batch_size=80, learning_rate=0.05, crop_padding=0, flip=False)
EPSILON = 4 / 255


def normed() -> nn.Module:
    """Small, with running statistics and dropout: train and eval mode differ."""
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 10))


def mixup(run):
    """Two images and their labels in one, in the share that (seed, step) draws."""

    def transform(images, labels, step):
        share, other = mixed(run, step, len(images))
        shares = F.one_hot(labels, 10).float()
        return (share * images + (1 - share) * images[other],
                share * shares + (1 - share) * shares[other])

    return transform


def mixed(run, step: int, count: int):
    generator = run.stream("mixup", step)
    return torch.rand((), generator=generator), torch.randperm(count, generator=generator)


def adversarial(run):
    """Two signed steps in eval mode, then the loss of the images where they end."""

    def loss(model, images, labels, step):
        model.eval()
        drawn = torch.rand(images.shape, generator=run.stream("adversary", step))
        delta = (2 * drawn - 1) * EPSILON
        for _ in range(2):
            delta.requires_grad_()
            upward, = torch.autograd.grad(F.cross_entropy(model(images + delta), labels), delta)
            delta = (delta.detach() + EPSILON / 2 * upward.sign()).clamp(-EPSILON, EPSILON)
        model.train()
        logits = model(images + delta)
        return F.cross_entropy(logits, labels), logits

    return loss


def hardest_of_three(run):
    """UEraser's: of three augmented copies of an image the one with the largest loss counts."""

    def loss(model, images, labels, step):
        generator = run.stream("copies", step)
        copies = [images + 0.1 * torch.randn(images.shape, generator=generator) for _ in range(3)]
        logits = [model(copy) for copy in copies]
        losses = torch.stack([F.cross_entropy(one, labels, reduction="none") for one in logits])
        return losses.amax(0).mean(), logits[0]

    return loss


KINDS = {"mixup": lambda run: {"transform": mixup(run)},
         "views": lambda run: {"protocol": dataclasses.replace(PROTOCOL, views=Views())},
         "hardest of three": lambda run: {"loss": hardest_of_three(run)},
         "both": lambda run: {"transform": lambda images, labels, step: (images.flip(3), labels),
                              "loss": adversarial(run)}}


def trained_with(kind: str, out, few, stop: int | None = None):
    """(weights and running statistics, log) after training; None if killed at a step before."""
    model = normed()
    with new_run(out) as run:
        keys, last = KINDS[kind](run), -1
        loss = keys.pop("loss", training.cross_entropy)
        protocol = keys.pop("protocol", PROTOCOL)

        def watched(model, images, labels, step):
            nonlocal last
            assert model.training
            assert step == last + 1 or last == -1
            last = step
            if step == stop:
                raise Died
            return loss(model, images, labels, step)

        try:
            train_classifier(model, few, few, protocol, run, loss=watched, **keys)
        except Died:
            return None
        assert last == 7                    # counted over both epochs, of four batches each
        log = [{k: v for k, v in line.items() if k != "seconds"} for line in run.folder.log.lines()]
        return {**model.state_dict()}, log


class Died(Exception):
    pass


@pytest.mark.parametrize("kind", ["mixup", "views", "hardest of three", "both"])
def test_a_killed_run_with_a_loss_or_a_transform_goes_on_with_the_same_bytes(
        tmp_path, monkeypatch, few, kind):
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0)
    state, log = trained_with(kind, tmp_path / "whole", few)
    for stop in (2, 5):
        assert trained_with(kind, tmp_path / f"{stop}", few, stop) is None
        again, its_log = trained_with(kind, tmp_path / f"{stop}", few)
        assert its_log == log
        for key, value in state.items():
            assert torch.equal(again[key], value), key


def plain_loop(run, few, gradients) -> nn.Module:
    """The batches of PROTOCOL through `gradients(model, x, y, step)` and torch's SGD."""
    model = normed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    batches = Batches(few, 80, run, "classifier", augmentation=Augmentation(0, False))
    for step in range(8):
        x, y = list(batches.epoch(step // 4))[step % 4]
        optimizer.param_groups[0]["lr"] = learning_rate(PROTOCOL, step, 8, 4)
        optimizer.zero_grad()
        gradients(model, x, y, step)
        nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
    return model


@pytest.mark.parametrize("mistake", [None, "hard labels", "the same draw every step"])
def test_mixup_is_two_cross_entropies(tmp_path, few, mistake):
    found, log = trained_with("mixup", tmp_path / "a", few)
    hits = []
    with new_run(tmp_path / "b") as run:
        def gradients(model, x, y, step):
            share, other = mixed(run, 0 if mistake == "the same draw every step" else step, len(x))
            logits = model(share * x + (1 - share) * x[other])
            if mistake == "hard labels":
                share = share.round()
            (share * F.cross_entropy(logits, y)
             + (1 - share) * F.cross_entropy(logits, y[other])).backward()
            answers = logits.argmax(1)
            hits.append((share * (answers == y) + (1 - share) * (answers == y[other])).mean())
        expected = plain_loop(run, few, gradients).state_dict()
    same = all(torch.allclose(found[key], value, rtol=1e-4, atol=1e-6)
               for key, value in expected.items())
    assert same == (mistake is None)
    if mistake is None:
        assert log[1]["train_accuracy"] == pytest.approx(float(sum(hits[4:]) / 4))


def test_training_ends_early_and_is_scored_there(tmp_path, few):
    """At the rates of all its epochs; whoever resumes what has ended does not go on."""
    protocol = Protocol(epochs=5, batch_size=80, test_every=0)
    for _ in range(2):
        with new_run(tmp_path / "out") as run:
            model, result = train_classifier(linear(), few, few, protocol, run,
                                             after_epoch=lambda epoch, model: epoch == 2)
            assert [epoch for epoch, _ in result.curve] == [3]
            assert (result.epochs, result.images) == (3, 3 * 320)
            assert result.last == accuracy(model, few, run)
            assert run.folder.log.lines()[-1]["learning_rate"] == learning_rate(protocol, 11, 20, 4)


def test_a_loss_gets_float32_logits_in_any_precision(tmp_path, few):
    inside, outside = [], []
    model = normed()
    model[2].register_forward_hook(lambda module, given, logits: inside.append(logits.dtype))

    def loss(network, images, labels, step):
        logits = network(images)
        outside.append(logits.dtype)
        return F.cross_entropy(logits, labels), logits

    job = core.run.Job("tests", "test", "test", 1, {}, 0, {})
    device = core.run.DeviceSettings(device="cpu", precision="bf16")
    with core.run.Run(job, out=tmp_path / "out", device=device) as run:
        train_classifier(model, few.first(80), None, PROTOCOL, run, loss=loss)
    assert (set(inside), set(outside)) == ({torch.bfloat16}, {torch.float32})


@pytest.mark.parametrize("s", [0.0, 0.1, 0.6])
def test_label_smoothing_is_its_formula(tmp_path, few, s):
    """The cross-entropy with q(k) = (1 - s) [k = y] + s / K, written out."""
    rows, config = few.first(96), smoothing.Config(
        epochs=1, batch_size=96, width=4, crop_padding=0, flip=False, label_smoothing=s)
    with new_run(tmp_path / "a") as run:
        result = smoothing.fit(rows, rows, config, run)
        [log] = run.folder.log.lines()
    with new_run(tmp_path / "b") as run:
        [(x, y)] = Batches(rows, 96, run, "classifier").epoch(0)
        p = standard.build(rows, config, run)(x).softmax(1)
        expected = 0.0
        for i in range(96):
            for k in range(10):
                expected -= ((1 - s) * (k == y[i]) + s / 10) * p[i, k].log() / 96
        assert log["loss"] == pytest.approx(expected.item(), rel=1e-5)
        assert result.train_accuracy == pytest.approx((p.argmax(1) == y).float().mean().item())
        plain = standard.fit(rows, rows, config, run)
    assert (plain == dataclasses.replace(result, seconds=plain.seconds,
                                         images_per_second=plain.images_per_second)) or s > 0


# --- optimisers --------------------------------------------------------------------------------


def test_adam_is_torchs(tmp_path, few):
    """Two steps on one batch; `momentum` is its first beta."""
    protocol = dataclasses.replace(PROTOCOL, optimizer="adam", learning_rate=1e-2, momentum=0.5,
                                   nesterov=False, weight_decay=0.1, clip_norm=None, epochs=1,
                                   batch_size=40, schedule="constant", steps=None)
    rows, model, plain = few.first(80), normed(), normed()
    plain.load_state_dict(model.state_dict())
    with new_run(tmp_path / "out") as run:
        batches = list(Batches(rows, 40, run, "classifier", augmentation=Augmentation(
            protocol.crop_padding, protocol.flip)).epoch(0))
        train_classifier(model, rows, None, protocol, run)
    optimizer = torch.optim.Adam(plain.parameters(), 1e-2, (0.5, 0.999), weight_decay=0.1)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
