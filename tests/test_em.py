"""EM, sample-wise and class-wise, against code HanxunH/Unlearnable-Examples: the whole
attack typed again as a plain loop, with its own SGD, on the unfolded network.

Both sides then compute in double precision and must give the same bytes. In float32 they could
not: the surrogate's first steps are chaotic (one ReLU that a last bit turns over changes a
gradient by 0.5 %, and every step at rate 0.1 makes that some 25 times more). In double precision
errors of 1e-10 in the first weights still give the bytes of TINY's few steps. What an attack does
with given weights is tested in float32 in test_pgd.py.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacks import config_by, doubles, to_double, to_pixels
from conftest import Death, as_set, log_of, new_run, operations, run_command, write_imageset

import core.run
from core import imageset
from core.batches import Batches
from core.errors import ConfigError
from core.imageset import ImageSet, quantize
from models.resnet import resnet18
from poisons import crafting, em, em_classwise, minmin
from poisons import noise as noise_files
from poisons.__main__ import main as poison_main

ATTACKS = [em, em_classwise]
TINY = {"width": 4, "max_rounds": 2, "train_steps": 4, "batch_size": 16, "stop_error": 0.0}
OWN = {em: {"steps": 3}, em_classwise: {"share": 0.5}}
each_form = pytest.mark.parametrize("attack", ATTACKS, ids=["em", "em_classwise"])


def tiny(attack, **changes):
    return attack.Config(**{**TINY, **OWN[attack], **changes})


@pytest.fixture(scope="module")
def small() -> ImageSet:
    """42 images of 8x8 in five classes, with black and white pixels; batches of 16 leave 10."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(42) % 5)
    patterns = rng.integers(-60, 316, (5, 8, 8, 3))
    pixels = patterns[labels] + rng.integers(-60, 61, (42, 8, 8, 3))
    return as_set(np.clip(pixels, 0, 255).astype(np.uint8), labels, classes=5)


@pytest.fixture(scope="module")
def grey() -> ImageSet:
    """100 images of 16x16 in four classes, away from black and white so that nothing is clipped."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(100) % 4)
    patterns = rng.integers(-40, 41, (4, 16, 16, 3))
    return as_set((128 + patterns[labels] + rng.integers(-40, 41, (100, 16, 16, 3)))
                  .astype(np.uint8), labels, classes=4)


@pytest.fixture
def in_double(monkeypatch):
    """The attacks in double precision from the pixels on; weights start from the same floats.
    Returns a list that gets every class-wise noise as it is made."""
    made, noise = [], em_classwise.Noise

    def kept(start):
        made.append(noise(start))
        return made[-1]

    monkeypatch.setattr(em_classwise, "Noise", kept)
    to_double(monkeypatch, em, makes=["on_device", "build_surrogate", "load_noise"])
    to_double(monkeypatch, em_classwise, makes=["on_device", "build_surrogate"], takes=["Noise"])
    return made


def poisoned_by(attack, clean: ImageSet, config, out) -> tuple[np.ndarray, list[dict]]:
    """The attack's images and its log."""
    with new_run(out) as run:
        result = attack.poison(clean, config, run)
        np.testing.assert_array_equal(result.labels, clean.labels)
        return np.array(result.images), run.folder.log.lines()


def change(attack, clean: ImageSet, config, out) -> np.ndarray:
    """What the attack did to the pixels, in grey levels, int (N, H, W, 3)."""
    return poisoned_by(attack, clean, config, out)[0].astype(int) - clean.images


def errors_of(log: list[dict]) -> list[float]:
    return [line["error"] for line in log if "error" in line]


def stop_of(log: list[dict]) -> dict:
    [stop] = [line for line in log if line["loop"] == "stop"]
    return stop


# --- the plain loops -------------------------------------------------------------------------


class PlainSurrogate:
    """The release's surrogate: SGD, momentum, weight decay and clipping as their formulas."""

    def __init__(self, clean: ImageSet, config, run, clip: bool = True) -> None:
        with run.initialisation("surrogate"):
            self.model = resnet18(clean.num_classes, config.width)
        self.model.double()
        self.config, self.clip = config, clip
        self.velocity = [torch.zeros_like(p) for p in self.model.parameters()]

    def learn(self, x: torch.Tensor, y: torch.Tensor) -> None:
        c, parameters = self.config, list(self.model.parameters())
        loss = F.cross_entropy(self.model.train()(x), y)
        gradients = torch.autograd.grad(loss, parameters)
        norm = sum((g**2).sum() for g in gradients).sqrt()
        scale = min(1.0, c.clip_norm / (norm.item() + 1e-6)) if self.clip else 1.0
        with torch.no_grad():
            for p, g, v in zip(parameters, gradients, self.velocity, strict=True):
                v.mul_(c.momentum).add_(scale * g + c.weight_decay * p)
                p.sub_(c.learning_rate * v)

    def descend(self, x, y, delta, steps: int, train_mode: bool = False) -> torch.Tensor:
        """T signed steps on the own label, as in section 1.1."""
        c = self.config
        self.model.train(train_mode)
        z = (x + delta).clamp(0, 1)
        for _ in range(steps):
            z.requires_grad_()
            [gradient] = torch.autograd.grad(F.cross_entropy(self.model(z), y), z)
            stepped = z.detach() - c.step_size * gradient.sign()
            delta = (stepped - x).clamp(-c.epsilon, c.epsilon)
            z = (x + delta).clamp(0, 1)
        return delta

    @torch.no_grad()
    def error(self, x, y) -> float:
        return (self.model.eval()(x).argmax(1) != y).double().mean().item()


def endless(rows: int, batch_size: int) -> Iterator[slice]:
    while True:
        for start in range(0, rows, batch_size):
            yield slice(start, start + batch_size)


MISTAKES = ["stream starts again", "training images clipped", "fresh start",
            "crafted in train mode", "no gradient clip", "noise in full precision"]


def plain_em(clean: ImageSet, config: em.Config, run, mistake: str = ""):
    """Section 1.1 over the whole set at once: (images, error after each round)."""
    x, y = doubles(clean)
    surrogate = PlainSurrogate(clean, config, run, clip=mistake != "no gradient clip")
    delta, errors = torch.zeros_like(x), []
    if config.random_start:
        drawn = torch.rand(256, *x.shape[1:], generator=run.stream(f"{run.job.method}/start"))
        delta = ((2 * drawn[: len(x)] - 1) * config.epsilon).half().double()
    stream = endless(len(x), config.batch_size)
    for _ in range(config.max_rounds):
        if mistake == "stream starts again":
            stream = endless(len(x), config.batch_size)
        for _ in range(config.train_steps):
            rows = next(stream)
            noised = x[rows] + delta[rows]
            surrogate.learn(noised.clamp(0, 1) if mistake == "training images clipped" else noised,
                            y[rows])
        if mistake == "fresh start":
            delta = torch.zeros_like(x)
        delta = surrogate.descend(x, y, delta, config.steps, mistake == "crafted in train mode")
        if mistake != "noise in full precision":
            delta = delta.half().double()       # as it is kept between rounds
        errors.append(surrogate.error(x + delta, y))
        if errors[-1] <= config.stop_error:
            break
    return to_pixels(x + delta), errors


def plain_means(delta, stepped, labels, epsilon) -> torch.Tensor:
    """Section 1.2: each class's mean over its images in the batch, clipped."""
    delta = delta.clone()
    for k in range(len(delta)):
        members = [stepped[i] for i in range(len(labels)) if labels[i] == k]
        if members:
            delta[k] = (sum(members) / len(members)).clamp(-epsilon, epsilon)
    return delta


def shuffled(rows: int, batch_size: int, run) -> Iterator[torch.Tensor]:
    """One permutation after the other, last incomplete batches dropped."""
    pass_ = 0
    while True:
        order = torch.randperm(rows, generator=run.stream("surrogate/batches", pass_))
        yield from (part for part in order.split(batch_size) if len(part) == batch_size)
        pass_ += 1


CLASSWISE_MISTAKES = ["part in index order", "one order for all rounds", "last batch kept",
                      "noise from the whole set", "a step of the mean", "crafted in train mode",
                      "training images clipped", "no gradient clip"]


def plain_em_classwise(clean: ImageSet, config: em_classwise.Config, run, mistake: str = ""):
    """Section 1.2: (noise of each class, error after each round)."""
    x, y = doubles(clean)
    part = em_classwise.stratified(clean.labels, config.share, run.rng("subset"))
    if mistake == "noise from the whole set":
        part = np.arange(len(x))
    surrogate = PlainSurrogate(clean, config, run, clip=mistake != "no gradient clip")
    delta, errors = torch.zeros(clean.num_classes, *x.shape[1:], dtype=torch.float64), []
    stream = shuffled(len(x), config.batch_size, run)

    def batches_of_part(name: str, round_: int) -> list[torch.Tensor]:
        order = run.rng(name, 0 if mistake == "one order for all rounds" else round_)
        rows = part if mistake == "part in index order" else order.permutation(part)
        return [batch for batch in torch.from_numpy(rows).split(config.batch_size)
                if len(batch) == config.batch_size or mistake == "last batch kept"]

    for round_ in range(config.max_rounds):
        for _ in range(config.train_steps):
            rows = next(stream)
            noised = x[rows] + delta[y[rows]]
            surrogate.learn(noised.clamp(0, 1) if mistake == "training images clipped" else noised,
                            y[rows])
        for rows in batches_of_part("part/update", round_):
            stepped = surrogate.descend(x[rows], y[rows], delta[y[rows]], 1,
                                        mistake == "crafted in train mode")
            means = plain_means(delta, stepped, y[rows], config.epsilon)
            if mistake == "a step of the mean":
                means = (delta + config.step_size * (means - delta).sign()).clamp(
                    -config.epsilon, config.epsilon)
            delta = means
        errors.append(np.mean([surrogate.error(x[rows] + delta[y[rows]], y[rows])
                               for rows in batches_of_part("part/test", round_)]))
        if errors[-1] <= config.stop_error:
            break
    return delta, errors


# --- sample-wise -----------------------------------------------------------------------------


def test_the_attack_is_the_notes_loop(tmp_path, small, in_double):
    """The same bytes; and each mistake that one could make gives others."""
    config = tiny(em)
    ours, log = poisoned_by(em, small, config, tmp_path / "ours")
    with new_run(tmp_path / "plain") as run:
        plain, errors = plain_em(small, config, run)
        np.testing.assert_array_equal(ours, plain)
        assert errors_of(log) == errors
        assert len(set(errors)) > 1
        for mistake in MISTAKES:
            assert (plain_em(small, config, run, mistake)[0] != ours).any(), mistake


def test_noise_may_start_uniform(tmp_path, small, in_double, monkeypatch):
    """As the release's runs at 16/255: the surrogate's first steps see it, and the first round goes
    on from it, whatever rows it is written by."""
    config = tiny(em, random_start=True)
    monkeypatch.setattr(noise_files, "rows_at_once", lambda shape: 11)
    ours, log = poisoned_by(em, small, config, tmp_path / "ours")
    with new_run(tmp_path / "plain") as run:
        plain, errors = plain_em(small, config, run)
        np.testing.assert_array_equal(ours, plain)
        assert errors_of(log) == errors
        assert (plain_em(small, tiny(em), run)[0] != ours).any()


def test_rows_a_pass_change_speed_alone(tmp_path, small, in_double, monkeypatch):
    config = tiny(em)
    whole, _ = poisoned_by(em, small, config, tmp_path / "whole")
    monkeypatch.setattr(crafting, "CRAFT_BATCH", {"cpu": (5, 5)})
    monkeypatch.setattr(imageset, "SLICE_ROWS", 11)
    parts, _ = poisoned_by(em, small, config, tmp_path / "parts")
    np.testing.assert_array_equal(whole, parts)


@each_form
def test_rounds_are_logged_by_the_methods_name(tmp_path, small, attack):
    name = attack.__name__.rpartition(".")[2]
    with new_run(tmp_path / "out", method=name) as run:
        attack.poison(small, tiny(attack), run)
        assert {line["loop"] for line in run.folder.log.lines() if "error" in line} == {name}


@pytest.fixture(scope="module")
def stopped(grey, tmp_path_factory):
    """The attack on an easy set until it stops by itself: (images, log, stderr)."""
    config = em.Config(width=8, batch_size=32, max_rounds=30)
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        images, log = poisoned_by(em, grey, config, tmp_path_factory.mktemp("stopped") / "out")
    return images, log, stderr.getvalue()


def test_rounds_end_when_the_surrogate_hardly_errs(stopped):
    _, log, stderr = stopped
    errors, stop = errors_of(log), stop_of(log)
    assert len(errors) < 30
    assert errors[-1] <= 0.01 < min([*errors[:-1], 1.0])
    assert (stop["reached"], stop["rounds"], stop["errors"]) == (True, len(errors), errors)
    assert [line["at"] for line in log if line["loop"] == "em"] == list(range(len(errors)))
    assert " ".join(f"{100 * (1 - error):.2f}" for error in errors) in stderr
    assert f"stopped after round {len(errors)}: error {errors[-1]:.2%} <= 1.00%" in stderr


def test_noise_at_the_stop_is_bounded_signed_and_mostly_saturated(grey, stopped):
    delta = stopped[0].astype(int) - grey.images
    assert delta.min() == -8
    assert delta.max() == 8
    assert (np.abs(delta) >= 0.8 * 8).mean() > 0.5


def test_noise_resembles_that_of_its_class(grey, stopped):
    delta = (stopped[0].astype(float) - grey.images).reshape(100, -1)
    correlation = np.corrcoef(delta - delta.mean(0))
    same = grey.labels[:, None] == grey.labels
    apart = ~np.eye(100, dtype=bool)
    assert correlation[same & apart].mean() > correlation[~same].mean() + 0.3


def test_minibatches_are_in_index_order_and_go_on_over_epochs(tmp_path, small):
    with new_run(tmp_path / "out") as run:
        order = em.IndexOrder(small, 16, 5, run)
        assert len(order) == 5
        stream = endless(42, 16)
        for epoch in range(4):
            expected = [next(stream) for _ in range(5)]
            for start in (0, 2, 5):
                found = list(order.epoch(epoch, start))
                assert [(rows.start, rows.stop) for *_, rows in found] == [
                    (rows.start, min(rows.stop, 42)) for rows in expected[start:]]
            for images, labels, rows in order.epoch(epoch):
                levels = (images * 255).permute(0, 2, 3, 1).round().numpy()
                np.testing.assert_array_equal(levels, small.images[rows])
                np.testing.assert_array_equal(labels, small.labels[rows])


@pytest.mark.parametrize(("rows", "batch_size", "expected"), [
    (33, 16, [16, 16, 16]),         # a rest of one image has no batch statistics
    (34, 16, [16, 16, 2]),
    (10, 512, [10, 10, 10]),
])
def test_the_rest_of_a_pass_is_a_minibatch_unless_it_is_one_image(tmp_path, small, rows,
                                                                  batch_size, expected):
    with new_run(tmp_path / "out") as run:
        order = em.IndexOrder(small.first(rows), batch_size, 3, run)
        assert [len(images) for images, *_ in order.epoch(0)] == expected


# --- class-wise ------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "train_steps"), [
    (16, 4),
    (3, 1),         # fewer than classes; so few images make more steps chaotic even in double
])
def test_the_classwise_attack_is_the_notes_loop(tmp_path, small, in_double, batch_size,
                                                train_steps):
    """The same noise to 1e-12, and another with each mistake that one could make. Means can lie on
    half a grey level, where float32 decides."""
    config = tiny(em_classwise, batch_size=batch_size, train_steps=train_steps)
    ours, log = poisoned_by(em_classwise, small, config, tmp_path / "ours")
    with new_run(tmp_path / "plain") as run:
        delta, errors = plain_em_classwise(small, config, run)
        for mistake in CLASSWISE_MISTAKES if batch_size == 16 else ():
            wrong, _ = plain_em_classwise(small, config, run, mistake)
            assert (wrong - delta).abs().max() > 0.01 / 255, mistake
    [noise] = in_double
    torch.testing.assert_close(noise.delta, delta, rtol=0, atol=1e-12)
    assert errors_of(log) == pytest.approx(errors)
    plain = to_pixels(doubles(small)[0] + delta[torch.from_numpy(small.labels)])
    apart = np.abs(ours.astype(int) - plain)
    assert apart.max() <= 1
    assert apart.mean() < 0.01


def test_a_class_shares_one_noise(tmp_path, grey):
    delta = change(em_classwise, grey, tiny(em_classwise), tmp_path / "out")
    noises = [delta[grey.labels == k] for k in range(4)]
    for noise in noises:                            # but for ties of rounding
        assert (noise.max(0) - noise.min(0)).max() <= 1
        assert (noise != np.median(noise, axis=0)).mean() < 0.01
        assert noise.any()
    assert len({np.median(noise, axis=0).tobytes() for noise in noises}) == 4


def test_a_class_noise_is_a_mean_of_steps():
    """Section 1.2: not a step of the mean, so two against one move it by a third of a step."""
    step = 0.8 / 255
    delta = torch.zeros(3, 3, 2, 2)
    stepped = torch.tensor([1.0, 1.0, -1.0, -1.0, -1.0]).mul(step).view(5, 1, 1, 1)
    em_classwise.update_means(delta, stepped.expand(5, 3, 2, 2), torch.tensor([2, 2, 2, 0, 0]),
                              8 / 255)
    for k, expected in enumerate([-step, 0, step / 3]):
        torch.testing.assert_close(delta[k], torch.full((3, 2, 2), float(expected)))


@pytest.mark.parametrize("size", [1, 4, 40])
def test_means_are_those_of_a_plain_loop(size):
    """Classes that do not occur keep their noise; means beyond epsilon are clipped."""
    generator = torch.Generator().manual_seed(size)
    delta = torch.randn(10, 3, 4, 4, generator=generator) / 100
    stepped = torch.randn(size, 3, 4, 4, generator=generator) / 10
    labels = torch.randint(10, (size,), generator=generator)
    expected = plain_means(delta, stepped, labels, 0.05)
    before = delta.clone()
    em_classwise.update_means(delta, stepped, labels, 0.05)
    torch.testing.assert_close(delta, expected, rtol=1e-5, atol=1e-7)
    absent = [k for k in range(10) if k not in labels]
    assert torch.equal(delta[absent], before[absent])


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1.0])
def test_the_part_is_a_share_of_every_class(share):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3, 7], [100, 1, 30, 7]))
    part = em_classwise.stratified(labels, share, np.random.default_rng(1))
    assert (np.diff(part) > 0).all()
    for k, count in ((0, 100), (1, 1), (3, 30), (7, 7)):
        assert (labels[part] == k).sum() == max(1, round(share * count))
    again = em_classwise.stratified(labels, share, np.random.default_rng(1))
    np.testing.assert_array_equal(part, again)
    if share in (0.2, 0.5):
        other = em_classwise.stratified(labels, share, np.random.default_rng(2))
        assert not np.array_equal(part, other)


@pytest.mark.parametrize(("rows", "batch_size", "expected"), [
    (47, 16, [16, 16]),
    (32, 16, [16, 16]),
    (5, 16, [5]),           # the release would make no noise at all
])
def test_the_parts_last_incomplete_batch_is_dropped(rows, batch_size, expected):
    part = np.arange(rows) * 3
    found = em_classwise.shuffled(part, batch_size, np.random.default_rng(0))
    assert [len(batch) for batch in found] == expected
    flat = np.concatenate(found)
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(part)
    assert (np.diff(flat) < 0).any()


def test_shuffled_passes_follow_each_other_over_rounds(tmp_path, small):
    with new_run(tmp_path / "out") as run:
        batches = Batches(small, 16, run, "surrogate")
        assert len(batches) == 2
        steps = em_classwise.Endless(batches, 5)
        assert len(steps) == 5
        stream = shuffled(42, 16, run)
        for epoch in range(3):
            expected = [small.labels[next(stream)] for _ in range(5)]
            for start in range(6):
                found = [labels.numpy() for _, labels in steps.epoch(epoch, start)]
                np.testing.assert_array_equal(np.array(found).reshape(-1, 16),
                                              np.array(expected[start:]).reshape(-1, 16))


# --- both ------------------------------------------------------------------------------------


@each_form
def test_a_cap_that_ends_the_rounds_is_told(tmp_path, attack, small):
    name = attack.__name__.removeprefix("poisons.")
    data = write_imageset(tmp_path / "data", small.images, small.labels, classes=5)
    keys = {**TINY, **OWN[attack]}
    outcome = run_command(poison_main, f"method={name}", f"data={data}", f"out={tmp_path / 'out'}",
                          *(f"{name}.{key}={value}" for key, value in keys.items()))
    assert outcome.status == 0, outcome.stderr
    log = log_of(outcome.path)
    stop = stop_of(log)
    assert (stop["reached"], stop["rounds"]) == (False, 2)
    assert stop["errors"] == errors_of(log)
    assert (f"stopped at the cap of 2 rounds with error {stop['errors'][-1]:.2%}: the stop at "
            "0.00% was not reached (max_rounds, stop_error)") in outcome.stderr


@each_form
def test_positive_only_drops_the_negative_half(tmp_path, attack, grey):
    signed = change(attack, grey, tiny(attack), tmp_path / "signed")
    positive = change(attack, grey, tiny(attack, positive_only=True), tmp_path / "positive")
    assert signed.min() < 0 < signed.max()
    np.testing.assert_array_equal(positive, np.maximum(signed, 0))


def test_floor_truncates_noise_and_keeps_the_whole_budget(tmp_path, grey):
    """The release's +7.2 becomes 7 and -7.2 becomes -8, but +8 stays 8."""
    rounded, floored = (
        change(em, grey, tiny(em, max_rounds=1, steps=12, rounding=rounding), tmp_path / rounding)
        for rounding in ("round", "floor"))
    assert (rounded == 8).mean() > 0.1
    assert (floored[rounded == 8] == 8).all()
    assert floored.min() == -8
    assert set(np.unique(rounded - floored)) == {0, 1}
    assert (floored < rounded).mean() > 0.1


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("levels", [4, 8, 16, 32])
def test_truncation_meets_whole_levels_exactly(levels, half):
    """+-epsilon on every grey level, as either form keeps it: no level more, none less."""
    config = em.Config(epsilon=levels / 255, rounding="floor")
    before = torch.arange(256)
    for level in (levels, -levels, 0):
        delta = torch.full((256,), level / 255)
        delta = delta.half().float() if half else delta
        after = quantize(before / 255 + minmin.as_published(delta, config), "floor")
        assert torch.equal(after.long(), (before + level).clamp(0, 255))


def test_defaults_are_those_of_the_notes():
    """Section 0.1, CIFAR-10; and what CIFAR-100 has otherwise."""
    for config in (em.Config(), em_classwise.Config()):
        assert (config.epsilon, config.step_size) == (8 / 255, 0.8 / 255)
        assert (config.train_steps, config.batch_size, config.stop_error) == (10, 512, 0.01)
        assert (config.learning_rate, config.momentum, config.weight_decay) == (0.1, 0.9, 5e-4)
        assert (config.clip_norm, config.width) == (5.0, 64)
    assert em.Config().steps == 20
    assert em_classwise.Config().share == 0.2
    for name, train_steps in (("em", 20), ("em_classwise", 10)):
        config = config_by(name, "data=cifar100")
        assert config.weight_decay == 5e-5
        assert config.train_steps == train_steps


@pytest.mark.parametrize(("key", "value"), [
    ("epsilon", 8), ("step_size", 0), ("train_steps", 0), ("batch_size", 1), ("momentum", 1.0),
    ("stop_error", 1.0), ("max_rounds", 0), ("clip_norm", 0.0)])
@each_form
def test_values_out_of_range_are_refused(attack, key, value):
    with pytest.raises(ConfigError) as caught:
        attack.Config(**{key: value})
    assert caught.value.key == key


# --- deaths ----------------------------------------------------------------------------------


def run_until(attack, clean, config, out, die_at: int | None = None):
    """The attack, dying at the k-th change on disk: (operations, images, log), or None if dead."""
    with operations(die_at) as seen:
        try:
            images, log = poisoned_by(attack, clean, config, out)
        except Death:
            return None
    return len(seen), images, [{k: v for k, v in line.items() if k != "seconds"} for line in log]


@pytest.mark.parametrize(("attack", "own"), [
    (em, {}), (em, {"random_start": True}), (em_classwise, {})])
def test_a_run_killed_anywhere_ends_with_the_same_bytes(tmp_path, monkeypatch, attack, own, small):
    """State after every step and every four images, so that rounds break in their middle."""
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(crafting, "CRAFT_BATCH", {"cpu": (4, 4)})
    monkeypatch.setattr(imageset, "SLICE_ROWS", 4)
    clean = small.first(12)
    config = tiny(attack, train_steps=2, batch_size=6, **own)
    total, images, log = run_until(attack, clean, config, tmp_path / "whole")
    halfway = 0
    for die_at in np.linspace(*((6, total, 9) if own else (8, total, 6))).astype(int):
        out = tmp_path / f"died{die_at}"
        assert run_until(attack, clean, config, out, die_at) is None
        for state in out.with_name(f"{out.name}.partial").glob("state/round*.pt"):
            halfway += 0 < len(torch.load(state)["slices"]) < 3
        _, again, same_log = run_until(attack, clean, config, out)
        np.testing.assert_array_equal(again, images, err_msg=f"died at operation {die_at}")
        assert same_log == log
    assert halfway or attack is em_classwise


@each_form
def test_no_death_after_the_stop_makes_it_learn_again(tmp_path, monkeypatch, attack, small):
    """On a GPU that would mix two noises: learning again there gives other bits."""
    config = tiny(attack, stop_error=0.99)

    def die(*arguments, **keys):
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(ImageSet, "map_rows", die)
        with pytest.raises(Death):
            poisoned_by(attack, small, config, tmp_path / "out")
    monkeypatch.setattr(attack, "train_step", die)
    images, log = poisoned_by(attack, small, config, tmp_path / "out")
    assert stop_of(log)["rounds"] == 1
    monkeypatch.undo()
    np.testing.assert_array_equal(images, poisoned_by(attack, small, config, tmp_path / "b")[0])
