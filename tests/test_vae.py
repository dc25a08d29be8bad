"""The plain VAE and the auto-encoder against code yuyi-sd/D-VAE, and by hand."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CONFIGS,
    as_floats,
    as_set,
    assert_almost_equal_levels,
    content,
    count,
    digest,
    new_run,
    patterned,
    run_command,
    succeed,
    write_imageset,
)
from safetensors.torch import load_file
from torch import nn

import purify
import train_vae
from core import streams
from core.errors import UserError
from core.imageset import ImageSet
from models.ae import AE
from models.dvae import DVAE, VAE
from purifiers import ae, dvae, vae

YAML = {name: CONFIGS / "purifiers" / f"{name}.yaml" for name in ("vae", "ae")}
TINY = {"vae": ["vae.train.width=8", "vae.train.latent_channels=16", "vae.train.epochs=2",
                "vae.train.batch_size=64"],
        "ae": ["ae.train.channels=8", "ae.train.epochs=2", "ae.train.batch_size=64"]}
BOTH = pytest.mark.parametrize("name", ["vae", "ae"])


@pytest.fixture(scope="module")
def poisoned(few, tmp_path_factory):
    return patterned(few, tmp_path_factory.mktemp("vae") / "poisoned")


@pytest.fixture(scope="module")
def checkpoints(poisoned):
    return {name: succeed(train_vae.main, YAML[name], f"data={poisoned}", "seed=3", *TINY[name],
                          f"out={poisoned.parent / name}") for name in YAML}


def purified(name, poisoned, checkpoints, *arguments):
    return succeed(purify.main, YAML[name], f"data={poisoned}", f"checkpoint={checkpoints[name]}",
                   *arguments)


def convolutions(module: nn.Module) -> list[tuple[int, int]]:
    """(in, out) channels of every convolution, in order."""
    return [(layer.in_channels, layer.out_channels) for layer in module.modules()
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]


# --- the networks ----------------------------------------------------------------------------


def test_vae_parameter_counts():
    model = VAE()
    assert count(model) == 666_307
    assert count(model.encoder) == 379_968
    assert count(model.decoder) == 187_395


def test_dvae_is_the_vae_plus_the_second_decoder_and_the_labels():
    torch.manual_seed(0)
    plain = VAE(8, 16, 16)
    torch.manual_seed(0)
    model = DVAE(10, 8, 16, 16)
    for key, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
    x, noise = torch.rand(3, 3, 16, 16), torch.randn(3, 16, 8, 8)
    with torch.no_grad():
        x_hat, _, mu, logvar = model.eval()(x, torch.arange(3), noise)
        for a, b in zip(plain.eval()(x, noise), (x_hat, mu, logvar), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("channels", "width", "half"), [
    (1, 1, 1), (2, 1, 1), (4, 2, 1), (12, 6, 3), (28, 14, 7), (128, 64, 32), (1024, 512, 256)])
def test_ae_widths_scale_with_the_bottleneck(channels, width, half):
    """MTL-UE: max(int(64 * d / 128), 1) and max(int(32 * d / 128), 1)."""
    assert width == max(int(64 * (channels / 128)), 1)
    assert half == max(int(32 * (channels / 128)), 1)
    with torch.device("meta"):
        model = AE(channels)
    assert convolutions(model.encoder) == [
        (3, width), *[(width, width)] * 4,
        (width, channels), (channels, channels), (width, channels),     # the last is the shortcut
        (channels, channels), (channels, channels)]
    assert convolutions(model.decoder) == [
        (channels, width), (width, width), (width, half), (half, 3)]


def test_ae_parameter_count_at_128_is_the_releases_used_part():
    """11,361,357 as released, less layer3, layer4 and the linear head of its ResNet-18."""
    unused = 11_173_962 - (379_968 + 2 * 128 * 128 * 9 + 2 * 256)
    assert count(AE(128)) == 11_361_357 - unused == 862_787


@pytest.mark.parametrize("channels", [1, 4, 128])
@pytest.mark.parametrize("shape", [(32, 32), (16, 20)])
def test_ae_shapes(channels, shape):
    torch.manual_seed(0)
    model, x = AE(channels), torch.rand(2, 3, *shape)
    h = model.encoder(x)
    assert h.shape == (2, channels, shape[0] // 2, shape[1] // 2)
    assert h.min() >= 0
    x_hat = model(x)
    assert x_hat.shape == x.shape
    assert x_hat.min() > 0
    assert x_hat.max() < 1
    F.mse_loss(x_hat, x).backward()


def blank(height: int, width: int) -> ImageSet:
    return as_set(np.zeros((4, height, width, 3), np.uint8), np.arange(4))


@pytest.mark.parametrize(("side", "latent"), [(16, 8), (32, 16), (224, 28)])
def test_a_vae_builds_for_every_size(tmp_path, side, latent):
    with new_run(tmp_path / "out") as run:
        config = vae.TrainConfig(width=8, latent_channels=6)
        model = vae.build_model(blank(side, side), config, run, "stage1")
    assert type(model) is VAE
    assert model.latent_shape == (6, latent, latent)


def test_sizes_that_cannot_be_restored_are_refused(tmp_path):
    with new_run(tmp_path / "out") as run:
        with pytest.raises(UserError, match="VAE takes square images"):
            vae.build_model(blank(16, 32), vae.TrainConfig(), run, "stage1")
        with pytest.raises(UserError, match="AE takes images with even sides, not 16x15"):
            ae.build_model(blank(16, 15), ae.TrainConfig(), run, "stage1")


# --- the losses ------------------------------------------------------------------------------


@pytest.mark.parametrize("kld", [0.2, 2.0, 60.0])
@pytest.mark.parametrize(("target", "weight"), [
    (0.1, 0.5), (0.5, 0.5), (0.99, 0.5), (1.0, 0.01), (3.0, 0.01)])
def test_the_vaes_loss_and_its_hinge(kld, target, weight):
    terms = {key: torch.tensor(value, requires_grad=True)
             for key, value in (("mse", 0.1), ("kld", kld))}
    loss = vae.total_loss(terms, vae.TrainConfig(kld_target=target))
    assert loss.item() == pytest.approx(0.1 + weight * max(kld, target), rel=1e-6)
    loss.backward()
    assert terms["mse"].grad.item() == 1
    assert terms["kld"].grad.item() == pytest.approx(weight if kld > target else 0)


def test_below_the_target_the_posterior_follows_the_mse_alone():
    """A target above any KLD: log-variance gets the gradient that plain MSE gives it."""
    grads = []
    for with_rate in (True, False):
        torch.manual_seed(0)
        model = VAE(8, 16, 16)
        terms = vae.stage_losses(model, torch.rand(4, 3, 16, 16), None, torch.randn(4, 16, 8, 8))
        loss = terms["mse"]
        if with_rate:
            loss = vae.total_loss(terms, vae.TrainConfig(kld_target=1e6))
        loss.backward()
        grads.append(model.to_logvar.weight.grad)
    assert torch.equal(*grads)
    assert grads[0].abs().max() > 0


def test_the_vaes_terms_are_their_formulas():
    torch.manual_seed(0)
    model = VAE(8, 16, 16)
    x, noise = torch.rand(6, 3, 16, 16), torch.randn(6, 16, 8, 8)
    found = vae.stage_losses(model, x, None, noise)
    x_hat, mu, logvar = (t.detach().double().numpy() for t in model(x, noise))
    kld = (-0.5 * (1 + logvar - mu**2 - np.exp(logvar))).sum(1).mean()
    assert found.keys() == {"mse", "kld"}
    assert found["mse"].item() == pytest.approx(((x_hat - x.numpy()) ** 2).mean(), rel=1e-4)
    assert found["kld"].item() == pytest.approx(kld, rel=1e-3)


# --- training --------------------------------------------------------------------------------


def test_defaults_are_the_published_constants():
    config = vae.TrainConfig()
    assert (config.epochs, config.batch_size, config.learning_rate) == (60, 128, 0.005)
    assert (config.clip_norm, config.kld_weight, config.kld_weight_low) == (5, 0.01, 0.5)
    assert (config.width, config.latent_channels) == (64, 256)
    for field in ("epochs", "batch_size", "learning_rate", "clip_norm", "kld_weight", "width"):
        assert getattr(dvae.TrainConfig(), field) == getattr(config, field)
    config = ae.TrainConfig()
    assert (config.epochs, config.batch_size, config.learning_rate) == (60, 128, 0.1)
    assert (config.momentum, config.weight_decay, config.clip_norm) == (0.9, 5e-4, 5)
    assert (config.channels, config.noise) == (128, 0.062)


def test_the_vaes_first_step_is_adams_retyped(tmp_path, few):
    """One epoch of one batch, all by hand: shuffling and noise streams, clip, and Adam's first
    step, which is the learning rate times the gradient's sign (but for eps)."""
    images = few.first(32)
    config = vae.TrainConfig(width=4, latent_channels=4, batch_size=32, epochs=1, clip_norm=0.01)
    with new_run(tmp_path / "out", seed=7) as run:
        trained = vae.train_stage(images, 1, "", config, run)
        [line] = run.folder.log.lines()
    with streams.initialisation(7, "stage1"):
        model = VAE(4, 4, 16)
    order = torch.randperm(32, generator=streams.generator(7, "stage1/batches", 0))
    x = as_floats(images.images)[order]
    noise = torch.randn(32, 8, 8, 4, generator=streams.generator(7, "stage1/noise", 0))
    noise = noise.permute(0, 3, 1, 2)
    mu, logvar = model.encode(x)
    x_hat = torch.sigmoid(model.decoder(model.post_conv(mu + torch.exp(logvar / 2) * noise)))
    kld = (-0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)).mean()
    loss = F.mse_loss(x_hat, x) + 0.01 * max(kld, 1.0)      # 1.14: above the target
    loss.backward()
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert line["mse"] == pytest.approx(F.mse_loss(x_hat, x).item(), rel=1e-5)
    assert line["kld"] == pytest.approx(kld.item(), rel=1e-4)
    gradient = model.to_mu.weight.grad
    clear = gradient.abs() > 0.02 * gradient.abs().max()    # far above eps
    step = (trained.to_mu.weight - model.to_mu.weight).detach()
    torch.testing.assert_close(step[clear], -0.005 * gradient.sign()[clear], rtol=0.02, atol=0)


def test_the_vaes_optimiser_is_adam_with_its_usual_constants(tmp_path, few, monkeypatch):
    """Which a first step does not tell."""
    seen, made = {}, torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *arguments, **keys:
                        seen.setdefault("adam", made(*arguments, **keys)))
    config = vae.TrainConfig(width=4, latent_channels=4, batch_size=32, epochs=1)
    with new_run(tmp_path / "out") as run:
        vae.train_stage(few.first(32), 1, "", config, run)
    [group] = seen["adam"].param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0)


def test_the_aes_steps_are_sgds_retyped(tmp_path, few):
    """Two epochs of one batch: noise on the input only, clip, momentum, decay, cosine."""
    images = few.first(32)
    config = ae.TrainConfig(channels=4, batch_size=32, epochs=2, clip_norm=0.05)
    with new_run(tmp_path / "out", seed=7) as run:
        trained = ae.train_stage(images, 1, "", config, run)
    with streams.initialisation(7, "stage1"):
        model = AE(4)
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    model.train()
    for epoch, rate in enumerate((0.1, 0.05)):
        order = torch.randperm(32, generator=streams.generator(7, "stage1/batches", epoch))
        x = as_floats(images.images)[order]
        noise = torch.randn(32, 16, 16, 3, generator=streams.generator(7, "stage1/noise", epoch))
        loss = ((model(x + 0.062 * noise.permute(0, 3, 1, 2)) - x) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        assert norm > 0.05
        with torch.no_grad():
            for p, g, v in zip(model.parameters(), gradients, velocity, strict=True):
                v.mul_(0.9).add_(g * (0.05 / norm) + 5e-4 * p)
                p.sub_(rate * v)
    for found, expected in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_training_lowers_the_loss_and_holds_the_kld_at_its_target(tmp_path, few):
    """The KLD falls from about 64 and rides at 1.0 to 1.25 times the target."""
    config = vae.TrainConfig(width=8, latent_channels=16, batch_size=32, epochs=15)
    with new_run(tmp_path / "out") as run:
        vae.train_stage(few, 1, "", config, run)
        first, *_, last = run.folder.log.lines()
    assert last["mse"] < first["mse"] / 2
    assert last["loss"] < first["loss"]
    assert 0.9 < last["kld"] < 1.4


def test_the_ae_learns_to_reconstruct(tmp_path, few):
    config = ae.TrainConfig(channels=16, batch_size=32, epochs=15)
    with new_run(tmp_path / "out") as run:
        ae.train_stage(few, 1, "", config, run)
        first, *_, last = run.folder.log.lines()
    assert last["mse"] < first["mse"] / 2


@BOTH
def test_the_same_seed_gives_the_same_weights_and_another_others(name, poisoned, checkpoints):
    again, other = (succeed(train_vae.main, YAML[name], f"data={poisoned}", f"seed={seed}",
                            *TINY[name]) for seed in (3, 4))
    assert content(again) == content(checkpoints[name])
    assert list(content(again)) == ["stage1.safetensors"]
    assert content(other) != content(again)


@BOTH
def test_labels_play_no_part(name, tmp_path, poisoned, checkpoints):
    swapped = write_imageset(tmp_path / "swapped", np.load(poisoned / "images.npy"),
                             (np.load(poisoned / "labels.npy") + 1) % 10)
    again = succeed(train_vae.main, YAML[name], f"data={swapped}", "seed=3", *TINY[name])
    assert content(again) == content(checkpoints[name])
    ours, theirs = (purified(name, path, checkpoints) for path in (poisoned, swapped))
    assert digest(ours / "images.npy") == digest(theirs / "images.npy")


# --- purification ----------------------------------------------------------------------------


def floats_of(path) -> torch.Tensor:
    return as_floats(np.load(path / "images.npy"))


def assert_images_are(path, floats: torch.Tensor, rounding=np.rint) -> None:
    assert_almost_equal_levels(np.load(path / "images.npy"), floats.permute(0, 2, 3, 1).numpy(),
                               rounding)


@pytest.mark.parametrize("latent", ["sample", "mean"])
def test_vae_purification_is_its_reconstruction_by_hand(poisoned, checkpoints, latent):
    model = VAE(8, 16, 16)
    model.load_state_dict(load_file(checkpoints["vae"] / "stage1.safetensors"))
    with torch.no_grad():
        z, logvar = model.eval().encode(floats_of(poisoned))
        if latent == "sample":      # the checkpoint's seed; 256 rows a block, (h, w, channels) each
            noise = torch.cat([torch.randn(256, 8, 8, 16, generator=streams.generator(
                3, "stage1/reconstruct", block)) for block in range(2)])[:320]
            z = z + torch.exp(0.5 * logvar) * noise.permute(0, 3, 1, 2)
        expected = torch.sigmoid(model.decoder(model.post_conv(z)))
    arguments = [] if latent == "sample" else ["vae.latent=mean"]
    out = purified("vae", poisoned, checkpoints, *arguments)
    assert_images_are(out, expected)
    assert not np.array_equal(np.load(out / "images.npy"), np.load(poisoned / "images.npy"))


def test_ae_purification_is_its_reconstruction_by_hand(poisoned, checkpoints):
    model = AE(8)
    model.load_state_dict(load_file(checkpoints["ae"] / "stage1.safetensors"))
    with torch.no_grad():
        expected = torch.sigmoid(model.eval().decoder(model.encoder(floats_of(poisoned))))
    assert_images_are(purified("ae", poisoned, checkpoints), expected)
    floored = purified("ae", poisoned, checkpoints, "ae.rounding=floor")
    assert_images_are(floored, expected, np.floor)


def test_mean_latents_are_bit_identical_and_samples_follow_the_seed(poisoned, checkpoints):
    means, samples = ([digest(purified("vae", poisoned, checkpoints, f"vae.latent={latent}",
                                       f"seed={seed}") / "images.npy") for seed in (3, 4)]
                      for latent in ("mean", "sample"))
    assert means[0] == means[1]
    assert len({*means, *samples}) == 3


@BOTH
def test_a_row_does_not_depend_on_how_many_follow(name, poisoned, checkpoints):
    whole = np.load(purified(name, poisoned, checkpoints) / "images.npy").astype(int)
    part = np.load(purified(name, poisoned, checkpoints, "--limit", 100) / "images.npy")
    assert np.abs(part - whole[:100]).max() <= 1
    assert (part != whole[:100]).mean() < 1e-3


@BOTH
def test_a_checkpoint_of_another_method_is_refused(name, poisoned, checkpoints):
    other = {"vae": "ae", "ae": "vae"}[name]
    outcome = run_command(purify.main, YAML[name], f"data={poisoned}",
                          f"checkpoint={checkpoints[other]}")
    assert outcome.status == 1
    assert f"is a checkpoint of '{other}', not of '{name}'" in outcome.error


@BOTH
def test_a_checkpoint_has_one_stage(name, checkpoints):
    meta = json.loads((checkpoints[name] / "meta.json").read_text())
    assert meta["method"] == name
    assert meta["stage_sets"] == []
    assert set(content(checkpoints[name])) == {"stage1.safetensors"}


@pytest.mark.parametrize(("argument", "words"), [
    ("vae.train.kld_target=-1", "vae.train.kld_target: -1"),
    ("vae.train.width=1", "vae.train.width: 1"),
    ("vae.train.stages=2", "unknown key 'vae.train.stages'"),
    ("ae.train.channels=0", "ae.train.channels: 0"),
    ("ae.train.noise=-0.1", "ae.train.noise: -0.1")])
def test_impossible_settings_are_refused(poisoned, argument, words):
    outcome = run_command(train_vae.main, YAML[argument.split(".")[0]], f"data={poisoned}",
                          argument)
    assert outcome.status == 1
    assert words in outcome.error
