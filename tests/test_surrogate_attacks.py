"""TAP, HYPO, SEP and PIL: each retyped for one image or checked by what it is for, with the network
that the attack itself trained."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, content, new_run, process, run_command, succeed

from core import config as configs
from core.imageset import ImageSet
from core.streams import generator
from models.resnet import resnet18
from poisons import hypo, pil, sep, tap
from poisons.__main__ import main as poison_main
from poisons.crafting import shift_and_flip
from poisons.pgd import FrozenSurrogate, gradient_of, pgd
from poisons.surrogates import train_surrogate

LEARNT = ["surrogate.width=8", "surrogate.epochs=10", "surrogate.batch_size=32",
          "surrogate.schedule=onecycle", "surrogate.milestones=[]", "surrogate.crop_padding=0",
          "surrogate.flip=false"]
LEARNT_FIELDS = {"width": 8, "epochs": 10, "batch_size": 32, "schedule": "onecycle",
                 "milestones": (), "crop_padding": 0, "flip": False}


def make(name: str, few_path, *keys: str, preset: str = ""):
    words = [f"{name}.{key}" for key in keys]
    first = str(ROOT / "configs" / "poisons" / f"{preset}.yaml") if preset else f"method={name}"
    out = succeed(poison_main, first, f"data={few_path}", *words, "threads=1")
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return np.load(out / "images.npy"), log


def surrogate_of(clean: ImageSet, tmp_path, module, **fields):
    """The network that an attack with these keys trains, trained once more."""
    with new_run(tmp_path / "surrogate") as run:
        return train_surrogate(clean, dataclasses.replace(module.Surrogate(), **fields), run)


@torch.no_grad()
def cross_entropy(model, images: np.ndarray, labels: np.ndarray) -> float:
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2) / 255
    return F.cross_entropy(model(x), torch.from_numpy(np.array(labels))).item()


def share(log: list[dict]) -> float:
    return next(line["share"] for line in log if line["loop"] == "surrogate" and "share" in line)


# --- TAP -------------------------------------------------------------------------------------


def test_tap_reaches_its_target(few_path, few):
    """The surrogate predicts (y + 1) mod K for nearly all images, digits though they are."""
    images, log = make("tap", few_path, *LEARNT, "surrogate.epochs=20", "steps=40", "restarts=2",
                       "epsilon=160/255", "step_size=8/255", "shift=0.5", "flip=false")
    assert share(log) > 0.95
    assert np.abs(images.astype(int) - few.images).max() == 160
    [restarts] = [line for line in log if line["loop"] == "restarts"]
    assert restarts["best"] == int(np.argmin(restarts["losses"]))
    assert restarts["losses"][0] != restarts["losses"][1]


def test_untargeted_tap_leaves_the_own_class(few_path):
    _, log = make("tap", few_path, *LEARNT, "steps=10", "restarts=1", "epsilon=64/255",
                  "step_size=8/255", "shift=1", "targeted=false")
    assert share(log) < 0.05


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
    assert config.shift * 2 / 31 == pytest.approx(0.258, abs=1e-3)      # the notes' affine +-0.258


# --- HYPO ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hypo_helps_the_surrogate(few_path, few, norm, tmp_path):
    """Its loss on the images falls, with the network that it trained, trained here again."""
    epsilon = "24/255" if norm == "linf" else "1.5"
    images, log = make("hypo", few_path, "surrogate.architecture=resnet18", *LEARNT, "steps=10",
                       f"norm={norm}", f"epsilon={epsilon}")
    assert share(log) > 0.97
    model = surrogate_of(few, tmp_path, hypo, architecture="resnet18", **LEARNT_FIELDS)
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


def test_hypos_first_variant_goes_to_the_next_class(few_path):
    _, log = make("hypo", few_path, "surrogate.architecture=resnet18", *LEARNT, "steps=20",
                  "variant=p1", "epsilon=128/255")
    assert share(log) > 0.9


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
    _, log = make("sep", few_path, *LEARNT, "steps=10", "epsilon=128/255", "step_size=16/255",
                  "checkpoints=3")
    assert share(log) > 0.4             # of the last of three, the first of which knows little


def test_sep_averages_its_checkpoints(tmp_path, monkeypatch):
    """One step from the image against the sign of the summed gradients of plain networks; and one
    of fa against squared distances to the class means."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    from core.imageset import from_arrays

    clean = from_arrays(random.integers(20, 236, (40, 16, 16, 3), dtype=np.uint8),
                        np.arange(40) % 4, name="x", classes=list("abcd"), root={}, test=None)
    networks = [resnet18(4, 4).eval() for _ in range(3)]
    x = torch.from_numpy(clean.images).permute(0, 3, 1, 2) / 255
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


def test_variance_reduction_equals_a_plain_loop(tmp_path):
    torch.manual_seed(0)
    weights = torch.randn(3, 2, 3, 4, 4)
    gradients = [lambda x, _, w=w: (x - 0.5) * w for w in weights]
    images = torch.rand(2, 3, 4, 4)
    config = sep.Config(inner_steps=5, epsilon=8 / 255, step_size=2 / 255)
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


def test_the_checkpoints_are_equally_spaced(few_path):
    assert sep.spaced(120, 30) == list(range(3, 120, 4))
    assert sep.spaced(10, 3) == [2, 6, 9]
    outcome = run_command(poison_main, "method=sep", f"data={few_path}", "sep.checkpoints=9",
                          "sep.surrogate.epochs=8")
    assert outcome.status == 1
    assert "sep.checkpoints: 9 do not fit the surrogate's 8 epochs" in outcome.stderr


# --- PIL -------------------------------------------------------------------------------------


def test_pils_noise_is_what_the_line_sees(few_path, few, tmp_path):
    """Its loss falls, retyped for a plain matrix, and the noise alone is recognised."""
    images, _ = make("pil", few_path, "surrogate.learning_rate=0.05", "epsilon=32/255",
                     "step_size=3/255")
    with new_run(tmp_path / "again", config={}) as run:
        poisoned = pil.poison(few, pil.Config(
            epsilon=32 / 255, step_size=3 / 255,
            surrogate=dataclasses.replace(pil.Surrogate(), learning_rate=0.05)), run)
        np.testing.assert_array_equal(np.array(poisoned.images), images)
        state = run.load_state("surrogate")["objects"]["model"]
    weight, bias = state["linear.weight"].double(), state["linear.bias"].double()

    def loss(delta: np.ndarray) -> float:
        flat = torch.from_numpy(delta.transpose(0, 3, 1, 2).reshape(len(delta), -1))
        image = torch.from_numpy((few.images / 255.0).transpose(0, 3, 1, 2).reshape(len(delta), -1))
        labels = torch.from_numpy(np.array(few.labels))
        kl = -(F.log_softmax((image - flat) @ weight.T + bias, 1).mean(1)) - math.log(10)
        return float((0.9 * F.cross_entropy(flat @ weight.T + bias, labels, reduction="none")
                      + 0.1 * kl).mean())

    delta = (few.images / 255.0) - images / 255.0       # published: x - delta
    noise = np.random.default_rng(0).uniform(-32 / 255, 32 / 255, delta.shape)
    assert loss(delta) < 0.8 * loss(noise)


# --- several processes -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["em", "em_classwise", "rem", "sem", "tap", "hypo", "sep", "pil"])
def test_processes_share_the_crafting(few_path, tmp_path, name):
    """Two processes: the bytes of one."""
    line = ["-m", "poisons", f"method={name}", f"data={few_path}", "--smoke", "threads=1"]
    both = process(*line, f"out={tmp_path / 'both'}", ranks=2)
    alone = process(*line, f"out={tmp_path / 'alone'}")
    for run in (both, alone):
        _, stderr = run.communicate(timeout=180)
        assert run.returncode == 0, stderr
    assert content(tmp_path / "both") == content(tmp_path / "alone")


# --- presets ---------------------------------------------------------------------------------


def test_presets_change_what_they_say():
    def of(preset: str, module, name: str):
        tree = configs.read([ROOT / "configs" / "poisons" / f"{preset}.yaml"])
        return configs.build(module.Config, tree.value[name], name)

    assert of("sep_fa", sep, "sep") == dataclasses.replace(sep.Config(), loss="fa")
    assert of("sep_fa_vr", sep, "sep") == dataclasses.replace(sep.Config(), loss="fa_vr",
                                                              checkpoints=15)
    assert of("tap_svhn", tap, "tap") == dataclasses.replace(tap.Config(), flip=False)
    assert of("hypo", hypo, "hypo").surrogate.architecture == "vgg16"


def test_targets_are_the_attacks_own(few_path):
    """The poisoned set has the labels of its base."""
    out = succeed(poison_main, "method=tap", f"data={few_path}", "--smoke", "threads=1")
    np.testing.assert_array_equal(np.load(out / "labels.npy"), np.load(few_path / "labels.npy"))
