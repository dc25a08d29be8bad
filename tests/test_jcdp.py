"""JCDP purification: against the released formulas retyped with autograd, and its limits."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import new_run, run_command, succeed

import purify
import train_ddpm
from core import files
from core.distance import build_lpips
from purifiers import diffusion, jcdp, walk

TRAIN = ["method=ddpm", "ddpm.train.width=32", "ddpm.train.batch_size=16", "ddpm.train.steps=4",
         "ddpm.train.multipliers=[1, 1]", "ddpm.train.blocks=1", "ddpm.train.attention=[]",
         "ddpm.train.sample_every=0", "ddpm.train.flip=false", "threads=1"]
APPLY = ["method=jcdp", "jcdp.t_star=4", "jcdp.passes=2", "jcdp.threshold=2", "jcdp.mode=mse",
         "jcdp.lpips_net=squeeze", "jcdp.lpips_resize=32", "threads=1", "--limit", "16"]
SCHEDULE = diffusion.Schedule()


@pytest.fixture(scope="module")
def prior(few_path, tmp_path_factory):
    return succeed(train_ddpm.main, *TRAIN, f"data={few_path}",
                   f"out={tmp_path_factory.mktemp('jcdp') / 'prior'}")


@pytest.fixture
def apply(prior, few_path, tmp_path):
    """Purify 16 images with these keys: the pixels."""

    def run(*keys):
        out = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
        return np.load(succeed(purify.main, *APPLY, f"data={few_path}", f"checkpoint={prior}",
                               f"out={out}", *keys) / "images.npy")

    return run


# --- guidance --------------------------------------------------------------------------------


def guide_of(config, perceptual=None):
    return jcdp.make_guide(SCHEDULE, config, perceptual)


def drawn(seed):
    """A `draw` that gives each kind of noise its own, the same for every call."""
    return lambda kind, t=0: torch.randn(
        4, 3, 32, 32, generator=torch.Generator().manual_seed(seed + len(kind) + t))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1
    return y + 0.1 * torch.randn(y.shape, generator=generator), y


@pytest.fixture(scope="module")
def squeeze():
    return build_lpips("squeeze", None, None, (32, 32))


@pytest.mark.parametrize(("mode", "by_pixels", "by_perception"), [
    ("switch", [19, 11], [10, 0]), ("joint", [19, 11, 10, 0], [19, 11, 10, 0]),
    ("mse", [19, 11, 10, 0], []), ("perceptual", [], [19, 11, 10, 0])])
def test_the_released_guidance(images, squeeze, mode, by_pixels, by_perception):
    """The code's batch means, through autograd: released(B) == per-image(1/B)."""
    x, y = images
    guide = guide_of(jcdp.Config(mode=mode, strength=1 / 4), squeeze)
    for t in (19, 11, 10, 0):
        jump, draw = SCHEDULE.jump(t, t - 1), drawn(7)
        abar = SCHEDULE.abar[t].item()
        target = math.sqrt(abar) * y + math.sqrt(1 - abar) * draw("target", t)
        scale = 70_000 * 3 * 255 / (2 * 8) * math.sqrt((1 - abar) / abar)
        sigma = SCHEDULE.betas[t].item() if t else SCHEDULE.posterior_variance[1].item()
        leaf = x.clone().requires_grad_()
        loss = torch.zeros(())
        if t in by_pixels:
            loss = loss + torch.nn.functional.mse_loss(leaf, target)
        if t in by_perception:
            loss = loss + squeeze(leaf, target).mean()
        expected = -sigma * scale * torch.autograd.grad(loss, leaf)[0]
        found = guide(x, y, jump, draw)
        assert expected.abs().max() > 1e-5
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-6)


def test_the_targets_noise(images):
    x, y = images
    jump, draw, abar = SCHEDULE.jump(15, 14), drawn(3), SCHEDULE.abar[15].item()
    k = diffusion.kappa(jump, 1.0, 3072)
    for choice, noise in (("fresh", draw("target", 15)), ("shared", draw("forward")), ("none", 0),
                          ("image", 0)):
        target = math.sqrt(abar) * y + math.sqrt(1 - abar) * noise
        if choice == "image":
            target = y                      # as the release's other path: not even scaled
        found = guide_of(jcdp.Config(target_noise=choice, strength=1))(x, y, jump, draw)
        torch.testing.assert_close(found, -k * (x - target))


def test_guidance_moves_towards_the_poisoned_image(apply, few_path):
    """The prior is next to untrained: without guidance it walks away."""
    original = np.load(few_path / "images.npy")[:16].astype(float)
    errors = [np.abs(apply(f"jcdp.strength={strength}", "jcdp.t_star=20", "jcdp.passes=1")
                     - original).mean() for strength in (0, 0.3, 3)]
    assert errors[0] > errors[1] > errors[2]


# --- equal runs ------------------------------------------------------------------------------


def test_no_strength_is_plain_diffusion(apply, prior, few_path, tmp_path):
    plain = np.load(succeed(purify.main, "method=ddpm", "ddpm.t_star=4", "ddpm.passes=2",
                            f"data={few_path}", f"checkpoint={prior}", "threads=1", "--limit", "16",
                            f"out={tmp_path / 'plain'}") / "images.npy")
    np.testing.assert_array_equal(apply("jcdp.strength=0"), plain)
    np.testing.assert_array_equal(apply("jcdp.mode=none"), plain)
    assert (apply("jcdp.strength=1") != plain).any()


@pytest.mark.parametrize("mode", ["switch", "joint", "perceptual"])
def test_every_mode_purifies(apply, mode):
    """And one mode is not another."""
    found = apply(f"jcdp.mode={mode}")
    assert found.shape == (16, 16, 16, 3)
    assert (found != apply("jcdp.mode=mse")).any()


def test_the_released_preset():
    from conftest import CONFIGS

    from core.request import parse

    config = parse([f"{CONFIGS}/purifiers/jcdp.yaml", "preset=released"], "", "purify").config
    assert (config.passes, config.t_star, config.start, config.threshold) == (4, 20, 20, 11)
    assert config.strength == 1 / 500
    assert config.visited() == list(range(19, -1, -1))
    assert (config.rounding, config.target_noise, config.mode) == ("floor", "fresh", "switch")


def test_the_default_is_the_papers_four_times_twenty():
    config = jcdp.Config()
    assert len(config.visited()) * config.passes == 80
    assert config.start == 19
    assert len(jcdp.Config(sampler="subsampled").visited()) * config.passes == 20


# --- mistakes --------------------------------------------------------------------------------


def refused(prior, few_path, *keys):
    outcome = run_command(purify.main, *APPLY, f"data={few_path}", f"checkpoint={prior}", *keys)
    assert outcome.status == 1
    return outcome.error


def test_a_strength_that_overshoots(prior, few_path):
    """kappa < 1: at 16x16 it is 4 times that of 32x32."""
    largest = 1 / diffusion.kappa(SCHEDULE.jump(3, 2), 1.0, 768)
    error = refused(prior, few_path, "jcdp.strength=1000")
    assert error.startswith("jcdp.strength: 1000 overshoots (kappa ")
    assert f"must be below {largest:.3g}" in error


def test_images_too_small_for_lpips(prior, few_path):
    error = refused(prior, few_path, "jcdp.mode=joint", "jcdp.lpips_resize=null")
    assert error == ("lpips_net: squeeze takes images of at least 17 pixels, not 16: set "
                     "lpips_resize to 17 or more")


def test_a_trunk_that_cannot_be_downloaded(prior, few_path, monkeypatch, tmp_path):
    import torchvision.models

    def offline(name):
        def fail(**_):
            raise OSError("no route")
        return SimpleNamespace(DEFAULT=SimpleNamespace(get_state_dict=fail))

    monkeypatch.setattr(torchvision.models, "get_model_weights", offline)
    keys = ("jcdp.mode=joint", "jcdp.lpips_net=alex")
    error = refused(prior, few_path, *keys)
    for words in ("needs https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
                  "checkpoints", "lpips_weights=", "lpips_net=squeeze"):
        assert words in error
    (tmp_path / "w.pth").write_bytes(b"junk")
    assert "is not a torch file" in refused(prior, few_path, *keys,
                                            f"jcdp.lpips_weights={tmp_path / 'w.pth'}")
    torch.save({"other": torch.zeros(1)}, tmp_path / "v.pth")
    assert "does not hold torchvision's alexnet weights" in refused(
        prior, few_path, *keys, f"jcdp.lpips_weights={tmp_path / 'v.pth'}")


def test_a_checkpoint_of_another_size_or_damaged(prior, few_path, tmp_path):
    import shutil

    big = succeed(train_ddpm.main, *TRAIN, "data=digits", "size=32", "--limit", "64")
    assert refused(big, few_path) == (f"{big} was trained on 32x32 images, but the set has 16x16 "
                                      "images")
    broken = shutil.copytree(prior, tmp_path / "broken")
    data = bytearray((broken / "ema.safetensors").read_bytes())
    data[-5] ^= 1
    (broken / "ema.safetensors").write_bytes(data)
    assert "does not match its SHA-256" in refused(broken, few_path)
    (broken / "ema.safetensors").write_bytes(data[:100])
    assert "does not match its SHA-256" in refused(broken, few_path)
    meta = json.loads((broken / "meta.json").read_text())
    meta["method"] = "dvae"
    files.write_sealed(broken / "meta.json", meta)
    assert "is a checkpoint of 'dvae', not of 'ddpm'" in refused(broken, few_path)


def test_passes_share_no_noise(few, tmp_path):
    with new_run(tmp_path / "run") as run:
        like, rows = torch.zeros(300, 3, 4, 4), slice(100, 400)
        one = walk.draw_noise(like, rows, run, 0, "sample", 3)
        assert one.shape == (300, 3, 4, 4)
        part = walk.draw_noise(like[:20], slice(250, 270), run, 0, "sample", 3)
        torch.testing.assert_close(part, one[150:170], rtol=0, atol=0)
        for other in ((1, "sample", 3), (0, "sample", 2), (0, "target", 3)):
            assert (walk.draw_noise(like, rows, run, *other) != one).all(0).any()


def test_every_pass_is_held_to_the_poisoned_image(tmp_path):
    """Not to what the pass before it left; and it begins from that."""
    held, begun = [], []

    def guide(x, y, jump, draw):
        held.append(y.clone())
        return torch.full_like(x, 0.01)

    def network(x, t):
        if t.item() == 2:
            begun.append(x.clone())
        return torch.zeros_like(x)

    poisoned = torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    y = poisoned.permute(0, 3, 1, 2) * 2 - 1
    with new_run(tmp_path / "run") as run:
        config = jcdp.Config(t_star=3, passes=3)
        walk.walker(network, SCHEDULE, guide, config, run)(poisoned, slice(0, 4))
        one = walk.walker(network, SCHEDULE, guide, dataclasses.replace(config, passes=1), run)
        left = one(poisoned, slice(0, 4)).permute(0, 3, 1, 2) * 2 - 1
        second = SCHEDULE.noised(left, 2, walk.draw_noise(left, slice(0, 4), run, 1, "forward"))
    assert len(held) == 9 + 3
    for target in held:
        torch.testing.assert_close(target, y, rtol=0, atol=1e-6)
    torch.testing.assert_close(begun[1], second, rtol=0, atol=1e-5)


def test_long_perceptual_steps_are_noted(prior, few_path):
    """Sigma s_t of the paper's 20 steps is 46.95 at most below the threshold, of 5 of them 103.4
    (t = 7 to 3): more than was seen to work."""
    for sampler, expected in (("ancestral", 46.95), ("subsampled", 103.4)):
        config = jcdp.Config(sampler=sampler, strength=1.0)
        steps = diffusion.jumps(SCHEDULE, config.visited())
        assert max(diffusion.pull(jump, 1.0) for jump in steps
                   if config.terms(jump.t)[1]) == pytest.approx(expected, rel=1e-3)
    keys = ["method=jcdp", "jcdp.t_star=20", "jcdp.passes=1", "jcdp.lpips_net=squeeze",
            "jcdp.lpips_resize=32", "jcdp.sampler=subsampled", "threads=1", "--limit", "8",
            f"data={few_path}", f"checkpoint={prior}"]
    assert "overshoots" not in run_command(purify.main, *keys, "jcdp.strength=0.4").stderr
    loud = run_command(purify.main, *keys, "jcdp.strength=0.8")
    assert loud.status == 0
    assert "0.8 probably overshoots in the perceptual steps; below 0.48 it" in loud.stderr
