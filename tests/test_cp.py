"""CP against code kaiwenzha/contrastive-poisoning: the whole attack typed again as a plain loop,
with its own SGD, rates and order, and the dense gradient of all noise.

The learners' losses and the views are those of core, which have tests of their own; so both sides
compute the same float32 numbers and must give the same bytes.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from attacks import config_by, poisoned_by, random_set, tensors
from conftest import ROOT, as_floats, new_run, run_command, succeed, write_imageset
from methods import PURIFIERS, line_of
from torch import nn

from core.errors import ConfigError, UserError
from core.imageset import ImageSet
from core.pgd import gradient_of, pgd
from core.views import apply, draw
from models.contrastive import SplitNorm
from poisons import contrast, cp
from poisons.__main__ import main as poison_main
from poisons.noise import LIFT, Noise

TINY = {"width": 2, "learning_rate": 0.5, "batch_size": 16, "queue": 32, "epochs": 2,
        "train_steps": 3, "noise_batches": 1, "steps": 2, "epsilon": 32 / 255, "step_size": 8 / 255}
SAMPLEWISE = {"kind": "samplewise", "noise_batches": None, "train_steps": None}


@pytest.fixture(scope="module")
def small() -> ImageSet:
    """40 images of 8x8 in four classes, a third of their values black or white; batches of 16
    leave 8."""
    return random_set(40, -120, 376)


# --- the plain loop --------------------------------------------------------------------------


def plain_cp(clean: ImageSet, config: cp.Config, run, start: torch.Tensor, mistake: str = ""
             ) -> np.ndarray:
    """From noise `start` of each class or row."""
    x, y = tensors(clean)
    index = y if config.kind == "classwise" else torch.arange(len(x))
    method, delta = contrast.build(clean, config, run), start.clone()
    trained = [p for part in method.trained() for p in part.parameters()]
    velocity = [torch.zeros_like(p) for p in trained]
    whole = len(x) // config.batch_size
    train_steps = config.train_steps or whole
    noise_batches = config.noise_batches or whole
    peak = config.learning_rate
    scale = {"simclr": 7.142857142857143 / 4, "moco": 2.857142857142857, "byol": 1.0}[
        config.algorithm]
    if mistake == "loss not scaled":
        scale = 1.0
    seen = {"train": 0, "noise": 0}

    def order(name: str, pass_: int) -> torch.Tensor:
        return torch.randperm(len(x), generator=run.stream(f"{name}/batches", pass_))

    def loss_of(noised, name: str, step: int, **options) -> torch.Tensor:
        if mistake != "images not clipped":
            noised = noised.clamp(0, 1)
        if mistake == "no views while the noise moves" and name == "noise":
            return method(noised, noised, **options)
        if mistake == "the same views for every step" and name == "noise":
            step = step // config.steps * config.steps
        views = [apply(noised, draw(config.views, len(noised), (8, 8), run.stream(
            f"{name}/view{1 if mistake == 'both views alike' else which}", step)))
            for which in (1, 2)]
        return method(*views, **options)

    epochs = config.last_epoch or config.epochs
    for epoch in range(config.epochs if mistake == "noise of the last epoch" else epochs):
        e = epoch if mistake == "rate of the epoch before" else epoch + 1
        span = epochs if mistake == "cosine ends with the noise" else config.epochs
        rate = peak / 1000 + (peak - peak / 1000) * (1 + math.cos(math.pi * e / span)) / 2
        if mistake == "warm-up":
            rate = 0.01 + (rate - 0.01) * e / 10
        method.train()
        for i in range(train_steps):
            number = i if mistake == "a pass begins with the epoch" else seen["train"]
            name = number // whole if mistake != "a pass begins with the epoch" else epoch
            rows = order("surrogate", name).split(16)[number % whole]
            loss = scale * loss_of(x[rows] + delta[index[rows]], "surrogate", seen["train"])
            seen["train"] += 1
            gradients = torch.autograd.grad(loss, trained)
            with torch.no_grad():
                for p, g, v in zip(trained, gradients, velocity, strict=True):
                    v.mul_(0.0 if mistake == "no momentum" else 0.9).add_(g.add(p, alpha=1e-4))
                    p.add_(v, alpha=-rate)
        if mistake != "batch norm by the batch while the noise moves":
            method.eval()
        which = "surrogate" if mistake == "noise moves in the surrogate's order" else "noise"
        batches = order(which, epoch).split(16)[:noise_batches]
        if mistake == "the rest of a pass too":
            batches = order("noise", epoch).split(16)
        for rows in batches:
            for _ in range(config.steps):
                delta.requires_grad_()
                loss = loss_of(x[rows] + delta[index[rows]], "noise", seen["noise"],
                               move=mistake != "target and queue stand while the noise moves"
                               and config.update_in_noise_steps,
                               dual=mistake != "no gradient through the keys"
                               and (config.algorithm == "moco" or config.dual_branch == "paper"))
                [gradient] = torch.autograd.grad(loss, delta)
                seen["noise"] += 1
                sign = -1 if mistake == "ascent" else 1
                with torch.no_grad():
                    delta = delta - sign * config.step_size * gradient.sign()
                    delta = delta.clamp(-config.epsilon, config.epsilon)
    made = (x + delta[index]).permute(0, 2, 3, 1) + 2**-16
    if mistake == "rounded to the nearest level":
        return (made.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    return (made.clamp(0, 1) * 255).floor().numpy().astype(np.uint8)


MISTAKES = ["ascent", "no views while the noise moves",
            "the same views for every step", "both views alike", "rate of the epoch before",
            "warm-up", "no momentum", "batch norm by the batch while the noise moves",
            "noise moves in the surrogate's order", "images not clipped",
            "rounded to the nearest level"]
OWN = {"classwise": ["a pass begins with the epoch"],
       "samplewise": ["noise of the last epoch", "cosine ends with the noise",
                      "the rest of a pass too"]}
OF = {"simclr": ["loss not scaled"],
      "moco": ["loss not scaled",
               "target and queue stand while the noise moves",
               "no gradient through the keys"],
      "byol": ["target and queue stand while the noise moves"]}


@pytest.mark.parametrize(("algorithm", "changes"), [
    ("simclr", {}), ("moco", SAMPLEWISE | {"last_epoch": 1}),
    ("byol", SAMPLEWISE | {"last_epoch": 1, "dual_branch": "paper"})],
    ids=["simclr-classwise", "moco-samplewise", "byol-samplewise"])
def test_the_attack_is_the_releases_loop(tmp_path, small, algorithm, changes):
    """The same bytes; and each mistake that one could make gives others."""
    config = cp.Config(algorithm=algorithm, **{**TINY, **changes})
    ours = poisoned_by(cp, small, config, tmp_path / "ours", "cp")
    with new_run(tmp_path / "plain", method="cp") as run:
        start = cp.first_noise(small, config, run)
        np.testing.assert_array_equal(ours, plain_cp(small, config, run, start))
        general = MISTAKES if algorithm == "simclr" else []
        kind = [] if algorithm == "byol" else OWN[config.kind]      # moco's loop is the same
        for mistake in general + kind + OF[algorithm]:
            assert (plain_cp(small, config, run, start, mistake) != ours).any(), mistake


@pytest.mark.parametrize(("change", "other"), [
    ({"dual_branch": "released"}, {"dual_branch": "paper"}),
    ({"update_in_noise_steps": False}, {"update_in_noise_steps": True})])
def test_switches_of_the_target_network_are_the_loops(tmp_path, small, change, other):
    """With a momentum at which the target moves: at 0.999 no byte would tell."""
    of_all = {**TINY, **SAMPLEWISE, "epochs": 1, "algorithm": "byol", "target_momentum": 0.5}
    config = cp.Config(**of_all, **change)
    ours = poisoned_by(cp, small, config, tmp_path / "ours", "cp")
    with new_run(tmp_path / "plain", method="cp") as run:
        start = cp.first_noise(small, config, run)
        np.testing.assert_array_equal(ours, plain_cp(small, config, run, start))
        different = plain_cp(small, cp.Config(**of_all, **other), run, start)
    assert (different != ours).any()


def test_temperatures_and_momenta_are_the_releases_where_none_is_set(tmp_path, small):
    def built(**options):
        return contrast.build(small, cp.Config(width=2, batch_size=16, queue=32, **options), run)

    with new_run(tmp_path / "out", method="cp") as run:
        assert built(algorithm="simclr").temperature == 0.5
        moco, byol = built(algorithm="moco"), built(algorithm="byol")
        assert (moco.temperature, moco.momentum) == (0.2, 0.99)
        assert byol.momentum == pytest.approx(0.999**2)         # twice a step
        for name in ("simclr", "moco"):
            assert built(algorithm=name, temperature=0.7).temperature == 0.7
        assert built(algorithm="moco", target_momentum=0.0).momentum == 0


@pytest.mark.parametrize(("algorithm", "views"), [("simclr", 2), ("moco", 1), ("byol", 1)])
def test_norms_of_shares_are_everywhere_and_know_their_views(tmp_path, small, algorithm, views):
    """In both networks and in BYOL's heads; SimCLR's two views of an image are one pass."""
    config = cp.Config(algorithm=algorithm, **{**TINY, "norm_images": 4})
    with new_run(tmp_path / "out", method="cp") as run:
        method = contrast.build(small, config, run)
    norms = [part for part in method.modules() if isinstance(part, SplitNorm)]
    bare = [part for part in method.modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(norms) == len(bare) >= 20
    assert {(norm.images, norm.views) for norm in norms} == {(4, views)}


# --- facts -----------------------------------------------------------------------------------


def test_rates_are_cps_without_a_warm_up():
    config = cp.Config()
    rates = {epoch: contrast.rate_of(epoch - 1, config) for epoch in (1, 10, 500, 1000)}
    assert rates == pytest.approx({1: 0.499999, 10: 0.499877, 500: 0.25025, 1000: 0.0005},
                                  abs=1e-6)
    assert [contrast.rate_of(0, cp.Config(algorithm=name, epochs=10**9))
            for name in ("moco", "byol")] == pytest.approx([0.3, 1.0])
    assert [contrast.scale_of(cp.Config(algorithm=name)) for name in ("simclr", "moco", "byol")] \
        == pytest.approx([1.785714, 2.857143, 1.0], abs=1e-6)
    assert contrast.first_rate(cp.Config(batch_size=64)) == 0.0625      # by the batch
    assert contrast.first_rate(cp.Config(batch_size=64, learning_rate=0.1)) == 0.1


@pytest.fixture(scope="module")
def classwise(few, tmp_path_factory):
    """A class-wise poison of 80 digits, and the clean set."""
    place = tmp_path_factory.mktemp("cp")
    clean = write_imageset(place / "clean", few.images[:80], few.labels[:80])
    return clean, succeed(poison_main, "method=cp", f"data={clean}", "cp.width=2",
                          "cp.batch_size=16", "cp.epochs=2", "cp.train_steps=2",
                          "cp.noise_batches=2", f"out={place / 'poisoned'}")


def change(clean, out) -> np.ndarray:
    before, after = (np.load(path / "images.npy").astype(int) for path in (clean, out))
    return after - before


def test_noise_is_in_its_budget_and_one_a_class(classwise):
    """Constant within a class, but where an image was clipped; in whole levels rounded down."""
    clean, out = classwise
    noise, labels = np.load(out / "noise.npy"), np.load(clean / "labels.npy")
    assert (noise.dtype, noise.shape) == (np.float32, (10, 3, 16, 16))
    assert np.abs(noise).max() <= np.float32(8 / 255)
    images, delta = np.load(clean / "images.npy").astype(int), change(clean, out)
    assert np.abs(delta).max() <= 9
    exact = (noise.astype(float) + LIFT).transpose(0, 2, 3, 1)[labels] * 255
    sure = np.abs(exact - np.rint(exact)) > 1e-3        # of a whole level by float32's last bits
    assert sure.mean() > 0.95
    made = np.clip(images + np.floor(exact).astype(int), 0, 255)
    np.testing.assert_array_equal((images + delta)[sure], made[sure])


def test_samplewise_noise_starts_from_the_noise_of_its_class(classwise, tmp_path):
    clean, out = classwise
    config = cp.Config(kind="samplewise", start=str(out))
    images = ImageSet.load(clean)
    with new_run(tmp_path / "run", method="cp") as run:
        start = cp.first_noise(images, config, run)
        np.testing.assert_array_equal(start, np.load(out / "noise.npy")[images.labels])
        uniform = cp.first_noise(images, cp.Config(kind="samplewise"), run)
    assert start.shape == uniform.shape
    assert uniform.abs().max() <= 8 / 255
    assert uniform.std() == pytest.approx(8 / 255 / math.sqrt(3), rel=0.01)
    made = succeed(poison_main, str(ROOT / "configs/poisons/cp.yaml"), "preset=samplewise",
                   f"data={clean}", f"cp.start={out}", "cp.width=2", "cp.batch_size=16",
                   "cp.epochs=2", "cp.last_epoch=1", "cp.epsilon=8/255",
                   f"out={tmp_path / 'samplewise'}")
    step = json.loads((made / "meta.json").read_text())["lineage"][0]
    assert step["inputs"]["start"] == json.loads((out / "meta.json").read_text())["fingerprint"]
    assert not (made / "noise.npy").exists()
    assert np.abs(change(clean, made)).max() <= 9


def test_signed_descent_lowers_the_loss_and_leaves_other_rows(tmp_path, small):
    """On a fixed batch with fixed views; noise of images outside of the batch is bit for bit as it
    was."""
    config = cp.Config(**{**TINY, "kind": "samplewise", "noise_batches": 1, "epochs": 1,
                          "train_steps": 1})
    with new_run(tmp_path / "out", method="cp") as run:
        start = cp.first_noise(small, config, run)
        noise = Noise(start.clone())
        contrast.craft(small, noise, config, run)
        moved = set(next(rows for trains, rows in contrast.Passes(40, config, run).epoch(0)
                         if not trains).tolist())
        for row in range(40):
            assert torch.equal(noise.delta[row], start[row]) == (row not in moved)

        method = contrast.build(small, config, run).eval()
        x = as_floats(small.images[:16])
        drawn = [draw(config.views, 16, (8, 8), run.stream("fixed", which)) for which in (1, 2)]

        def loss(delta, step):
            noised = (x + delta).clamp(0, 1)
            return method(*(apply(noised, one) for one in drawn))

        before = start[:16]
        after = pgd(torch.zeros_like(x), before, gradient_of(loss), epsilon=32 / 255,
                    step_size=0.5 / 255, steps=8, clip="none")
        with torch.no_grad():
            assert loss(after, 0) < loss(before, 0) - 0.01


# --- values and mistakes ---------------------------------------------------------------------


def test_presets_are_the_releases():
    def config(*words: str) -> cp.Config:
        return config_by("cp", *words)

    assert config() == cp.Config()
    sample = config("preset=samplewise")
    assert (sample.epochs, sample.last_epoch, sample.steps) == (200, 160, 5)
    assert (sample.train_steps, sample.noise_batches) == (None, None)
    moco, byol = config("preset=samplewise_moco"), config("preset=samplewise_byol")
    assert (moco.algorithm, moco.last_epoch, moco.steps) == ("moco", None, 5)
    assert (byol.algorithm, byol.last_epoch, byol.steps) == ("byol", None, 1)
    assert byol.step_size == pytest.approx(0.02 * 8 / 255)
    assert config("data=cifar100").mean == (0.5071, 0.4867, 0.4408)


def test_what_cannot_be_is_one_sentence(classwise, tmp_path, small):
    clean, out = classwise
    with pytest.raises(ConfigError, match="leave it out"):
        cp.Config(start="x")
    with pytest.raises(ConfigError, match="4000 keys is not filled by whole batches of 512"):
        cp.Config(algorithm="moco", queue=4000)
    for algorithm, key, value in (
            ("simclr", "target_momentum", 0.5), ("simclr", "update_in_noise_steps", False),
            ("simclr", "dual_branch", "paper"), ("moco", "dual_branch", "paper")):
        with pytest.raises(ConfigError, match=f"changes nothing with {algorithm}: ") as caught:
            cp.Config(algorithm=algorithm, **{key: value})
        assert caught.value.key == key
    with new_run(tmp_path / "run") as run:
        with pytest.raises(UserError, match="the set has 40 rows, too few for a batch of 512"):
            cp.poison(small, cp.Config(width=2), run)
        with pytest.raises(UserError, match="and without fraction="):
            cp.class_noise(clean, small)
        with pytest.raises(UserError, match=r"noise.npy is \(10, 3, 16, 16\), but the clean"):
            cp.class_noise(out, small)
    found = run_command(poison_main, "method=cp", f"data={clean}", "cp.kind=samplewise",
                        "cp.start=nowhere")
    assert found.error == "cp.start: nowhere: no such folder"


@pytest.mark.slow
@pytest.mark.parametrize("name", PURIFIERS)
def test_every_purifier_takes_such_a_set(classwise, tmp_path, name):
    """Also the noise that lies beside the images is no matter to it."""
    _, out = classwise
    source = tmp_path / "set" / "poisoned"
    source.parent.mkdir()
    shutil.copytree(out, source)
    main, line = line_of("purifiers", name, "", source, tiny=True)
    made = succeed(main, *line, f"out={tmp_path / 'purified'}")
    meta = json.loads((made / "meta.json").read_text())
    assert meta["lineage"][0]["method"] == "cp"
    assert np.load(made / "images.npy").shape == (80, 16, 16, 3)
    np.testing.assert_array_equal(np.load(made / "labels.npy"), np.load(out / "labels.npy"))
