"""The SGD loop for classifiers: schedules and steps against torch's own, scores against loops."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS, as_floats, as_set, new_run
from torch import nn
from torch.optim import lr_scheduler

import core.run
from core import config, training
from core.batches import Augmentation, Batches
from core.errors import ConfigError, UserError
from core.request import parse
from core.training import Normalised, Protocol, accuracy, learning_rate, train_classifier
from core.views import Views
from learners import smoothing, standard

PER_EPOCH = 7


def torch_rates(make, steps: int, every: int) -> list[float]:
    """The rate of each step under one of torch's schedulers, stepped once in `every` steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimizer)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    return rates


def our_rates(total: int, **keys) -> list[float]:
    protocol = Protocol(learning_rate=0.1, **keys)
    return [learning_rate(protocol, step, total, PER_EPOCH) for step in range(total)]


def test_a_warm_up_climbs_straight_and_the_cosine_follows_it():
    """The rates of AUE's release at its epochs, but for its last rate of 1e-6."""
    aue = Protocol(epochs=200, learning_rate=0.5, warmup_epochs=10)
    found = [learning_rate(aue, epoch * PER_EPOCH, 200 * PER_EPOCH, PER_EPOCH)
             for epoch in (0, 4, 9, 10, 105, 199)]
    assert found == pytest.approx([0.05, 0.25, 0.5, 0.5, 0.25, 3.417e-5], rel=1e-3)
    by_step = Protocol(steps=40, learning_rate=0.1, warmup_epochs=2, schedule="multistep",
                       milestones=(20,))
    found = [learning_rate(by_step, step, 40, PER_EPOCH) for step in (0, 6, 13, 14, 19, 20)]
    assert found == pytest.approx([0.1 / 14, 0.05, 0.1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("epochs", [1, 2, 12, 60])
def test_cosine_is_torchs_stepped_once_an_epoch(epochs):
    steps = epochs * PER_EPOCH
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, epochs), steps, PER_EPOCH)
    assert our_rates(steps, schedule="cosine", epochs=epochs) == pytest.approx(expected, abs=1e-12)


def test_multistep_is_torchs():
    expected = torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [3, 5], 0.1), 8 * PER_EPOCH,
                           PER_EPOCH)
    found = our_rates(8 * PER_EPOCH, schedule="multistep", epochs=8, milestones=(3, 5))
    assert found == pytest.approx(expected, rel=1e-12)
    halved = torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [3, 5], 0.5), 8 * PER_EPOCH,
                         PER_EPOCH)
    assert our_rates(8 * PER_EPOCH, schedule="multistep", epochs=8, milestones=(3, 5),
                     gamma=0.5) == pytest.approx(halved, rel=1e-12)


def test_warm_multistep_is_torchs_linear_climb_then_multistep():
    """SEP's release counts its batches from one: the first does not stand at 1e-3."""
    expected = torch_rates(lambda o: lr_scheduler.LinearLR(o, 0.01, 1.0, PER_EPOCH),
                           PER_EPOCH + 1, 1)[1:]
    expected += torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [3, 5], 0.1), 8 * PER_EPOCH,
                            PER_EPOCH)[PER_EPOCH:]
    found = our_rates(8 * PER_EPOCH, schedule="warm_multistep", epochs=8, milestones=(3, 5))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("epochs", [1, 3, 12])
def test_onecycle_is_torchs_without_its_momentum(epochs):
    steps = epochs * PER_EPOCH
    expected = torch_rates(lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=steps, anneal_strategy="cos", cycle_momentum=False), steps, 1)
    found = our_rates(steps, schedule="onecycle", epochs=epochs)
    assert found == pytest.approx(expected, rel=1e-9)
    assert max(found) <= 0.1


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_onecycle_of_a_handful_of_steps_is_a_rate(steps):
    found = our_rates(steps, schedule="onecycle", epochs=1)
    assert all(0 < rate <= 0.1 for rate in found)


def test_protocols_that_count_steps_change_the_rate_by_step():
    """REM: 40,000 steps, the rate a tenth every 16,000."""
    protocol = Protocol(steps=40_000, schedule="multistep", milestones=(16_000, 32_000))
    found = [learning_rate(protocol, step, 40_000, 390)
             for step in (0, 15_999, 16_000, 31_999, 32_000, 39_999)]
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 30), 30, 1)
    assert our_rates(30, schedule="cosine", steps=30) == pytest.approx(expected, abs=1e-12)


def test_constant_is_constant():
    assert set(our_rates(3 * PER_EPOCH, schedule="constant", epochs=3)) == {0.1}


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


@pytest.mark.parametrize("keys", [
    {"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0}, {"momentum": 1}, {"momentum": -0.1},
    {"nesterov": True, "momentum": 0}, {"weight_decay": -1e-4}, {"crop_padding": -1},
    {"test_every": -1}, {"steps": 0}, {"clip_norm": 0}, {"mean": (0.5, 0.5, 0.5)},
    {"std": (1, 1, 1)},
    {"warmup_epochs": -1}, {"warmup_epochs": 1, "schedule": "onecycle"},
    {"schedule": "multistep"},
    {"mean": (0.5,), "std": (0.5,)}, {"mean": (0.5,) * 3, "std": (0.5,) * 2},
    {"views": Views()}, {"views": Views(), "flip": False},
    {"views": Views(size=16), "crop_padding": 0, "flip": False},
])
def test_impossible_protocols_are_refused(keys):
    with pytest.raises(ConfigError):
        Protocol(**keys)


@pytest.mark.parametrize(("keys", "said"), [
    ({"epochs": 60, "schedule": "multistep", "milestones": (30, 60, 90)},
     "note: training ends after 60 epochs and does not come to milestones 60, 90\n"),
    ({"steps": 90, "schedule": "multistep", "milestones": (30, 90)},
     "note: training ends after 90 steps and does not come to milestones 90\n"),
    ({"epochs": 4, "warmup_epochs": 10},
     "note: training ends after 4 epochs and does not come to warmup_epochs 10\n"),
    ({"epochs": 60, "schedule": "multistep", "milestones": (30, 59)}, ""),
    ({"epochs": 60, "milestones": (90,)}, ""), ({"epochs": 4, "warmup_epochs": 4}, "")])
def test_what_a_schedule_never_comes_to_is_said(tmp_path, capsys, keys, said):
    """The rate of the last epoch is the one before it, and of four warm epochs the whole one."""
    with new_run(tmp_path / "out") as run:
        training.note_marks(Protocol(**keys), run)
    assert capsys.readouterr().err == said
    assert learning_rate(Protocol(epochs=4, warmup_epochs=4), 3, 4, 1) == 0.1
    falling = Protocol(epochs=60, schedule="multistep", milestones=(60,))
    assert learning_rate(falling, 59, 60, 1) == 0.1


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


def test_keys_that_came_later_change_no_fingerprint():
    assert not {"optimizer", "views"} & config.plain(Protocol(), identity=True).keys()
    assert config.plain(Protocol(optimizer="adam"), identity=True)["optimizer"] == "adam"
    with pytest.raises(ConfigError, match="adam has no such form"):
        Protocol(optimizer="adam", nesterov=True)


def test_views_are_keys_of_a_section(tmp_path):
    """Typed one by one, or in a YAML; a wrong one is named in full."""
    yaml, typed = str(CONFIGS / "learners/em60.yaml"), ["standard.crop_padding=0",
                                                       "standard.flip=false"]
    found = parse([yaml, *typed, "standard.views.scale=[0.5, 1]", "standard.views.grey=0"], "",
                  "evaluate").config
    assert found.views == Views(scale=(0.5, 1), grey=0)
    with pytest.raises(UserError, match=r"standard\.views\.hue: 2 is out of range"):
        parse([yaml, *typed, "standard.views.hue=2"], "", "evaluate")
    with pytest.raises(UserError, match=r"standard\.views: takes the place of crop and flip"):
        parse([yaml, "standard.views.hue=0"], "", "evaluate")


def test_bridgepures_vit_is_a_preset():
    found = parse([str(CONFIGS / "learners/bridge120.yaml"), "preset=vit"], "", "evaluate").config
    assert (found.architecture, found.optimizer, found.learning_rate, found.weight_decay,
            found.epochs, found.milestones) == ("vit_small", "adam", 5e-4, 0, 120, (80, 100))


# --- the published protocols -------------------------------------------------------------------

CLIP_5 = {"clip_norm": 5}
AT_224 = {"crop_padding": 0, "flip": False}         # what views take the place of
PROTOCOLS = {
    "em60": {"epochs": 60, "drop_last": True, "schedule": "cosine", **CLIP_5},
    "em100": {"epochs": 100, "drop_last": True, "schedule": "cosine", **CLIP_5},
    "avatar120": {"epochs": 120, "drop_last": False, "schedule": "multistep",
                  "milestones": (80, 100), "gamma": 0.1, **CLIP_5},
    "bridge120": {"epochs": 120, "schedule": "multistep", "milestones": (80, 100), "gamma": 0.1,
                  "clip_norm": None},
    "rem40k": {"steps": 40_000, "drop_last": True, "schedule": "multistep",
               "milestones": (16_000, 32_000), "gamma": 0.1, "mean": (0.5, 0.5, 0.5),
               "std": (1, 1, 1)},
    "tap200": {"epochs": 200, "schedule": "cosine"},
    "iss60": {"epochs": 60, "drop_last": False, "schedule": "cosine", "clip_norm": None},
    "apb200": {"epochs": 200, "drop_last": True, "schedule": "multistep", "milestones": (100,),
               "gamma": 0.5, "clip_norm": None, "shuffle": False},
    "ecl80": {"epochs": 80, "drop_last": False, "schedule": "constant", "weight_decay": 0,
              "clip_norm": None, "test_every": 5},
    "gue100": {"epochs": 100, "batch_size": 256, "drop_last": False, "learning_rate": 0.01,
               "schedule": "multistep", "milestones": (75, 90), "gamma": 0.1, "clip_norm": None},
    "aue200": {"epochs": 200, "drop_last": False, "learning_rate": 0.5, "warmup_epochs": 10,
               "schedule": "cosine", "weight_decay": 1e-4, "clip_norm": None, "test_every": 25},
    "dvae224": {**AT_224, "epochs": 100, "schedule": "cosine", **CLIP_5,
                "views": Views(scale=(0.08, 1), jitter=0, grey=0)},
    "uc90": {**AT_224, "epochs": 90, "batch_size": 512, "drop_last": False,
             "schedule": "cosine", "clip_norm": None, "mean": (0.5, 0.5, 0.5),
             "std": (0.5, 0.5, 0.5),
             "views": Views(scale=None, resize=256 / 224, jitter=0, grey=0)},
    "apb224": {**AT_224, "epochs": 200, "batch_size": 256, "schedule": "cosine", "clip_norm": None,
               "views": Views(scale=None, jitter=1, hue=0.2, grey=0)},
}


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if "steps" not in PROTOCOLS[name]])
def test_a_protocol_is_as_long_on_svhn(name):
    """EM's alone is half as long there, and those that go on from it have its length at hand, and
    mirror its digits no more than it does."""
    line = [str(CONFIGS / f"learners/{name}.yaml"), "data=svhn"]
    expected = 30 if name == "em60" else PROTOCOLS[name]["epochs"]
    found = parse(line, "", "evaluate").config
    assert found.epochs == expected
    assert found.views is None or found.views.flip == 0


def test_steps_of_a_protocol_are_of_its_own_data_set():
    """UC's 90 epochs of Pets, 8 steps each: of another set they would be other epochs."""
    for data, steps in (("pets", 90 * 8), ("cifar10", None), ("imagenet100", None)):
        found = parse([str(CONFIGS / "learners/uc90.yaml"), f"data={data}"], "", "evaluate").config
        assert (found.epochs, found.steps) == (90, steps)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_presets_are_the_published_protocols(name):
    tree = config.read([CONFIGS / "learners" / f"{name}.yaml"])
    found = config.build(standard.Config, tree.value["standard"], "standard")
    common = {"batch_size": 128, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
              "nesterov": False, "crop_padding": 4, "flip": True, "architecture": "resnet18",
              "width": 64, "shuffle": True, "warmup_epochs": 0}
    for key, value in {**common, **PROTOCOLS[name]}.items():
        assert getattr(found, key) == value, key
    if name == "bridge120":
        assert tree.value["split"].value == "first:40000"
    if name == "tap200":                                        # of its poison_evaluation
        assert found.mean == (0.4914, 0.4822, 0.4465)
        assert found.std == (0.2023, 0.1994, 0.2010)


@pytest.mark.parametrize(("architecture", "optimizer", "said"), [
    ("vit_small", "sgd", True), ("vit_small", "adam", False), ("resnet18", "sgd", False)])
def test_a_vit_that_sgd_trains_is_said(tmp_path, capsys, architecture, optimizer, said):
    with new_run(tmp_path / "run") as run:
        training.note_marks(standard.Config(architecture=architecture, optimizer=optimizer), run)
    assert ("note: vit_small learns by SGD here" in capsys.readouterr().err) == said
