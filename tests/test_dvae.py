"""D-VAE against code yuyi-sd/D-VAE, retyped, and its stages bit for bit."""

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
    digest,
    log_of,
    new_run,
    patterned,
    run_command,
    succeed,
    write_imageset,
)
from safetensors.torch import load_file

import purify
import train_vae
from core import config as yaml_config
from core import streams
from core.checkpoint import Checkpoint
from core.errors import UserError
from core.imageset import ImageSet
from core.request import parse
from models.dvae import DVAE
from models.resnet import BasicBlock, make_stem
from poisons import __main__ as poisons
from purifiers import autoencoding, dvae
from scripts.tables.measure import read_log

YAML = CONFIGS / "purifiers" / "dvae.yaml"
TINY = ["dvae.train.width=8", "dvae.train.latent_channels=16", "dvae.train.epochs=2",
        "dvae.train.batch_size=64", "dvae.train.p_hat_start=1"]
DEFAULT = dvae.TrainConfig()


@pytest.fixture(scope="module")
def poisoned(few, tmp_path_factory):
    return patterned(few, tmp_path_factory.mktemp("dvae") / "poisoned")


@pytest.fixture(scope="module")
def checkpoint(poisoned):
    return succeed(train_vae.main, YAML, f"data={poisoned}", "seed=3", *TINY,
                   f"out={poisoned.parent / 'checkpoint'}")


def purified(poisoned, checkpoint, *arguments):
    return succeed(purify.main, YAML, f"data={poisoned}", f"checkpoint={checkpoint}", *arguments)


def test_a_checkpoint_of_a_smoke_test_is_said_to_be_one(poisoned, tmp_path):
    line = (YAML, f"data={poisoned}", "threads=1")
    made = succeed(train_vae.main, *line, "--smoke", f"out={tmp_path / 'smoke'}")
    for words, said in (((), True), (("--smoke",), False)):
        outcome = run_command(purify.main, *line, *words, f"checkpoint={made}",
                              f"out={tmp_path / str(said)}")
        assert outcome.status == 0, outcome.stderr
        assert ("smoke was trained with --smoke: " in outcome.stderr) == said


def images_of(path) -> np.ndarray:
    return np.load(path / "images.npy")


def load_stage(checkpoint, number: int) -> DVAE:
    model = DVAE(10, 8, 16, 16)
    model.load_state_dict(load_file(checkpoint / f"stage{number}.safetensors"))
    return model.eval()


def never_settled(model: torch.nn.Module) -> torch.nn.Module:
    """As after a few steps: batch norms with an average variance far below that of the images."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(1e-4)
    return model.eval()


@pytest.mark.parametrize("outputs", [["subtract"], ["reconstruct"], ["subtract", "both"]])
def test_pixels_that_are_not_finite_are_never_written(few, tmp_path, outputs):
    """Not where a later stage would read them as black, either."""
    torch.manual_seed(0)
    broken, whole = never_settled(DVAE(10, 8, 16, 16)), DVAE(10, 8, 16, 16).eval()
    stages = [(broken if number == 1 else whole, number, output)
              for number, output in enumerate(outputs, 1)]
    with new_run(tmp_path / "out") as run, pytest.raises(UserError) as caught:
        few.map_rows(dvae.purify_rows(few, stages, "sample", "round", run), run)
    assert str(caught.value) == (
        "row 0: the network gives pixels that are not finite; it was trained for too few steps "
        "(averages of its batch norm settle in 50), or at too high a rate: train longer, or lower "
        "it")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found_in_its_row(bad):
    values = torch.zeros(4, 3, 2, 2)
    assert autoencoding.finite(values, slice(8, 12)) is values
    autoencoding.finite(values + 3e38, slice(8, 12))        # though their sum overflows
    values[2, 1, 0, 1] = bad
    with pytest.raises(UserError, match=r"^row 10: "):
        autoencoding.finite(values, slice(8, 12))


# --- the loss --------------------------------------------------------------------------------


def terms(**values) -> dict[str, torch.Tensor]:
    given = {"mse": 0.0, "mse_sum": 0.0, "kld": 0.0, "p_hat_power": 0.0, **values}
    return {key: torch.tensor(value, requires_grad=True) for key, value in given.items()}


@pytest.mark.parametrize("epoch", [0, 10, 11, 59])
@pytest.mark.parametrize("kld", [0.2, 2.0, 60.0])
@pytest.mark.parametrize("power", [0.001, 0.002, 0.3])
@pytest.mark.parametrize("target", [0.5, 1.0, 3.0])
def test_the_loss_is_the_released_one(epoch, kld, power, target):
    expected = 0.1 + 0.25 + (0.01 if target > 0.99 else 0.5) * max(kld, target)
    if epoch > 10:
        expected += max(power, 0.002)
    found = dvae.total_loss(terms(mse=0.1, mse_sum=0.25, kld=kld, p_hat_power=power), target,
                            dvae.hinged(epoch, DEFAULT), DEFAULT)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("target", "weight"), [(1.0, 0.01), (3.0, 0.01), (0.5, 0.5), (0.99, 0.5)])
def test_the_weight_of_the_kld(target, weight):
    above, below = terms(kld=target + 1), terms(kld=target * 0.9)
    for values in (above, below):
        dvae.total_loss(values, target, False, DEFAULT).backward()
    assert above["kld"].grad.item() == pytest.approx(weight)
    assert below["kld"].grad.item() == 0


@pytest.mark.parametrize(("epoch", "power", "gradient"), [
    (10, 0.5, None), (11, 0.5, 1.0), (11, 0.0019, 0.0), (59, 0.0021, 1.0), (0, 0.5, None)])
def test_the_hinge_on_p_hat(epoch, power, gradient):
    values = terms(p_hat_power=power)
    dvae.total_loss(values, 1.0, dvae.hinged(epoch, DEFAULT), DEFAULT).backward()
    grad = values["p_hat_power"].grad
    assert grad == gradient if gradient is None else grad.item() == gradient


def test_layers_are_initialised_from_the_first_to_the_last():
    """Another order would give other networks, and other bytes, from the same seed."""
    torch.manual_seed(0)
    network = DVAE(10, width=2, latent_channels=4, image_size=16)
    torch.manual_seed(0)
    stem, block = make_stem("cifar", 2), BasicBlock(2, 2)
    torch.testing.assert_close(network.encoder[0][0].weight, stem[0].weight, rtol=0, atol=0)
    torch.testing.assert_close(network.encoder[1].conv1.weight, block.conv1.weight, rtol=0, atol=0)


def test_the_terms_are_their_formulas():
    torch.manual_seed(0)
    model = DVAE(10, 8, 16, 16)
    x, y = torch.rand(6, 3, 16, 16), torch.arange(6)
    noise = torch.randn(6, 16, 8, 8)
    found = dvae.stage_losses(model, x, y, noise)
    x_hat, p_hat, mu, logvar = (t.detach().double().numpy() for t in model(x, y, noise))
    x = x.double().numpy()
    kld = np.mean([0.5 * sum(mu[b, c, i, j] ** 2 + math.exp(logvar[b, c, i, j]) - 1
                             - logvar[b, c, i, j] for c in range(16))
                   for b in range(6) for i in range(8) for j in range(8)])
    assert found["mse"].item() == pytest.approx(((x_hat - x) ** 2).mean(), rel=1e-4)
    assert found["mse_sum"].item() == pytest.approx(
        ((np.clip(x_hat + p_hat, 0, 1) - x) ** 2).mean(), rel=1e-4)
    assert found["p_hat_power"].item() == pytest.approx((p_hat**2).mean(), rel=1e-4)
    assert found["kld"].item() == pytest.approx(kld, rel=1e-3)


def test_nothing_is_detached_and_absent_classes_get_no_gradient():
    torch.manual_seed(0)
    model = DVAE(10, 8, 16, 16)
    found = dvae.stage_losses(model, torch.rand(6, 3, 16, 16), torch.tensor([1, 1, 4, 4, 7, 7]),
                              torch.randn(6, 16, 8, 8))
    found["mse_sum"].backward()
    for name, part in model.named_children():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters()), name
    rows = model.class_embedding.weight.grad.abs().sum(1)
    assert torch.nonzero(rows).flatten().tolist() == [1, 4, 7]


def test_defaults_are_the_published_constants():
    assert [(s.kld_target, s.output) for s in DEFAULT.stages] == [(1.0, "subtract"), (3.0, "both")]
    assert (DEFAULT.epochs, DEFAULT.batch_size, DEFAULT.learning_rate) == (60, 128, 0.005)
    assert (DEFAULT.clip_norm, DEFAULT.width, DEFAULT.latent_channels) == (5.0, 64, 256)
    assert DEFAULT.spatial_embedding


# --- training --------------------------------------------------------------------------------


@pytest.fixture
def spy(monkeypatch):
    """The optimizer's groups as they were at each real step of Adam."""
    steps = []
    original = torch.optim.Adam.step

    def step(self, *args, **kwargs):
        [group] = self.param_groups
        norm = torch.cat([p.grad.flatten() for p in group["params"] if p.grad is not None]).norm()
        steps.append({**{k: v for k, v in group.items() if k != "params"}, "norm": norm.item()})
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    return steps


def test_the_optimiser_is_adam_with_a_cosine_stepped_once_an_epoch(tmp_path, poisoned, spy):
    """Section 12.4: 0.005, 0.004665 (e = 10), 0.0025 (e = 30), 3.43e-6 (e = 59)."""
    images = ImageSet.load(poisoned).first(64)
    config = dvae.TrainConfig(width=4, latent_channels=4, batch_size=32)
    with new_run(tmp_path / "out") as run:
        dvae.train_stage(images, 1, config.stages[0], config, run)
    assert len(spy) == 120
    rates = [step["lr"] for step in spy]
    expected = [0.0025 * (1 + math.cos(math.pi * (i // 2) / 60)) for i in range(120)]
    assert rates == pytest.approx(expected, rel=1e-9)
    for epoch, value in ((0, 0.005), (10, 0.004665), (30, 0.0025), (59, 3.43e-6)):
        assert rates[2 * epoch] == pytest.approx(value, rel=2e-3)
    for step in spy:
        assert step["betas"] == (0.9, 0.999)
        assert step["weight_decay"] == 0
        assert step["norm"] <= 5 * (1 + 1e-4)


def test_the_gradient_is_clipped(tmp_path, poisoned, spy):
    images = ImageSet.load(poisoned).first(64)
    config = dvae.TrainConfig(width=4, latent_channels=4, batch_size=32, epochs=2, clip_norm=1e-3)
    with new_run(tmp_path / "out") as run:
        dvae.train_stage(images, 1, config.stages[0], config, run)
    assert [step["norm"] for step in spy] == pytest.approx([1e-3] * 4, rel=1e-2)


def test_the_log_tells_when_the_p_hat_hinge_comes_in(checkpoint):
    """TINY starts it in epoch 1: loss = sum of the terms, read from the log."""
    stage1 = [line for line in log_of(checkpoint) if line["loop"] == "stage1"]
    assert [line["at"] for line in stage1] == [0, 1]
    for epoch, line in enumerate(stage1):
        rest = line["loss"] - line["mse"] - line["mse_sum"] - 0.01 * line["kld"]
        assert rest == pytest.approx(line["p_hat_power"] if epoch else 0, abs=2e-4)


def test_each_stage_starts_from_new_weights(tmp_path, poisoned):
    """At a rate of 1e-12 a stage ends where it began: at its own fresh initialisation."""
    out = succeed(train_vae.main, YAML, f"data={poisoned}", "seed=5", *TINY, "dvae.train.epochs=1",
                  "dvae.train.learning_rate=1e-12")
    for number in (1, 2):
        with streams.initialisation(5, f"stage{number}"):
            fresh = DVAE(10, 8, 16, 16)
        stored = load_file(out / f"stage{number}.safetensors")
        for name, parameter in fresh.named_parameters():
            torch.testing.assert_close(stored[name], parameter.detach(), atol=1e-8, rtol=0)
    first, second = (load_file(out / f"stage{n}.safetensors") for n in (1, 2))
    assert not torch.allclose(first["post_conv.weight"], second["post_conv.weight"], atol=0.01)


def test_stage_2_is_trained_on_the_images_of_stage_1(tmp_path, poisoned, checkpoint):
    x1 = images_of(purified(poisoned, checkpoint, "dvae.stages=1"))
    labels = np.load(poisoned / "labels.npy")
    data = as_set(x1, labels)
    config = yaml_config.rebuild(dvae.TrainConfig, Checkpoint.load(checkpoint).meta["config"], "x")
    with new_run(tmp_path / "again", seed=3) as run:
        again = dvae.train_stage(data, 2, config.stages[1], config, run)
        stored = load_file(checkpoint / "stage2.safetensors")
        for name, tensor in again.state_dict().items():
            assert torch.equal(tensor.contiguous(), stored[name]), name


def test_the_same_seed_gives_the_same_weights_and_another_others(poisoned, checkpoint):
    again, other = (succeed(train_vae.main, YAML, f"data={poisoned}", f"seed={seed}", *TINY)
                    for seed in (3, 4))
    assert content(again) == content(checkpoint)
    assert len(content(again)) == 2
    assert not set(content(other).values()) & set(content(again).values())


def test_a_checkpoint_says_what_it_was_trained_on(poisoned, checkpoint):
    meta = json.loads((checkpoint / "meta.json").read_text())
    assert (meta["kind"], meta["method"], meta["seed"]) == ("checkpoint", "dvae", 3)
    assert meta["trained_on"]["fingerprint"] == ImageSet.load(poisoned).fingerprint
    assert meta["trained_on"]["shape"] == [320, 16, 16, 3]
    assert meta["digests"] == content(checkpoint)
    assert len(meta["stage_sets"]) == 1
    ends = {line["loop"]: line["seconds"] for line in read_log(checkpoint) if "seconds" in line}
    assert len(ends) == 2
    assert meta["trained_on"]["seconds"] > sum(ends.values()) - 0.01 > 0    # and the sweep between
    assert meta["trained_on"]["config"] == meta["config"]       # which records tell too
    assert meta["trained_on"]["seed"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("target", [1.0, 3.0])
def test_the_kld_settles_at_its_target(tmp_path, digits, target):
    """It rides at 1.0 to 1.25 times the target."""
    config = dvae.TrainConfig(width=8, latent_channels=16, batch_size=64, epochs=12, p_hat_start=4)
    with new_run(tmp_path / "out") as run:
        dvae.train_stage(digits, 1, dvae.Stage(target, "subtract"), config, run)
        last = run.folder.log.lines()[-1]
    assert 0.95 < last["kld"] / target < 1.3


# --- purification ----------------------------------------------------------------------------


def plain_stage(model, number, images, labels, output, seed=None) -> np.ndarray:
    """One stage, image by image; `seed` None takes the mean latent. Returns floats (N, H, W, 3)."""
    drawn = {}
    if seed is not None:        # the documented habit: 256 rows a block, (h, w, channels) each
        for step in ("subtract", "reconstruct"):
            blocks = [torch.randn(256, 8, 8, 16, generator=streams.generator(
                seed, f"stage{number}/{step}", block)) for block in range(-(-len(images) // 256))]
            drawn[step] = torch.cat(blocks).permute(0, 3, 1, 2)
    rows = []
    with torch.no_grad():
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            x = as_floats(image[None])
            for step in {"both": ("subtract", "reconstruct")}.get(output, (output,)):
                mu, logvar = model.encode(x)
                if seed is not None:
                    mu = mu + torch.exp(0.5 * logvar) * drawn[step][i : i + 1]
                z = model.post_conv(mu)
                if step == "subtract":
                    x = torch.clip(x - model.perturbation(z, torch.tensor([label])), 0, 1)
                else:
                    x = torch.sigmoid(model.decoder(z))
            rows.append(x[0].permute(1, 2, 0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("latent", ["sample", "mean"])
def test_both_stages_are_the_notes_pseudocode(poisoned, checkpoint, latent):
    x0, labels = images_of(poisoned), np.load(poisoned / "labels.npy")
    seed = 3 if latent == "sample" else None
    x1 = images_of(purified(poisoned, checkpoint, "dvae.stages=1", f"dvae.latent={latent}"))
    assert_almost_equal_levels(
        x1, plain_stage(load_stage(checkpoint, 1), 1, x0, labels, "subtract", seed))
    x3 = images_of(purified(poisoned, checkpoint, f"dvae.latent={latent}"))
    assert_almost_equal_levels(
        x3, plain_stage(load_stage(checkpoint, 2), 2, x1, labels, "both", seed))
    assert not np.array_equal(x1, x0)


@pytest.mark.parametrize("output", ["subtract", "reconstruct"])
def test_the_last_stage_can_put_out_either_half(poisoned, checkpoint, output):
    x1 = images_of(purified(poisoned, checkpoint, "dvae.stages=1"))
    found = images_of(purified(poisoned, checkpoint, f"dvae.output={output}"))
    assert_almost_equal_levels(found, plain_stage(
        load_stage(checkpoint, 2), 2, x1, np.load(poisoned / "labels.npy"), output, 3))


def test_purify_repeats_the_trainings_own_set_bit_for_bit(poisoned, checkpoint):
    out = purified(poisoned, checkpoint, "dvae.stages=1")
    assert [digest(out / "images.npy")] == Checkpoint.load(checkpoint).meta["stage_sets"]


def test_three_stages_repeat_bit_for_bit_too(tmp_path, poisoned):
    stages = "[{kld_target: 1, output: subtract}, {kld_target: 2, output: both}, " \
             "{kld_target: 3, output: reconstruct}]"
    ckpt = succeed(train_vae.main, YAML, f"data={poisoned}", *TINY, "dvae.train.epochs=1",
                   f"dvae.train.stages={stages}", "dvae.train.rounding=floor")
    expected = Checkpoint.load(ckpt).meta["stage_sets"]
    found = [digest(purified(poisoned, ckpt, f"dvae.stages={n}") / "images.npy") for n in (1, 2)]
    assert found == expected


def test_mean_latents_repeat_and_samples_follow_the_seed(tmp_path, poisoned, checkpoint):
    def result(name, *arguments):
        return digest(purified(poisoned, checkpoint, f"out={tmp_path / name}", *arguments)
                      / "images.npy")

    means = {result(f"m{seed}", "dvae.latent=mean", f"seed={seed}") for seed in (3, 4, 5)}
    assert len(means) == 1
    samples = {result(f"s{seed}", f"seed={seed}") for seed in (3, 4, 5)}
    assert len(samples) == 3
    assert not means & samples
    assert result("default") in samples         # the checkpoint's seed, 3
    assert result("default2") == result("s3b", "seed=3")


def test_floor_truncates(poisoned, checkpoint):
    rounded = images_of(purified(poisoned, checkpoint, "dvae.stages=1"))
    floored = images_of(purified(poisoned, checkpoint, "dvae.stages=1", "dvae.rounding=floor"))
    difference = rounded.astype(int) - floored
    assert difference.min() == 0
    assert difference.max() == 1
    inside = (rounded > 0) & (rounded < 255)
    assert 0.4 < difference[inside].mean() < 0.6


def test_saved_perturbations_explain_the_images(poisoned, checkpoint):
    plain = purified(poisoned, checkpoint)
    out = purified(poisoned, checkpoint, "dvae.save_perturbation=true")
    assert digest(out / "images.npy") == digest(plain / "images.npy")
    p_hats = [np.load(out / f"p_hat{number}.npy") for number in (1, 2)]
    for p_hat in p_hats:
        assert p_hat.dtype == np.float16
        assert p_hat.shape == (320, 16, 16, 3)
    assert {"p_hat1.npy", "p_hat2.npy"} <= json.loads(
        (out / "meta.json").read_text())["digests"].keys()
    expected = np.clip(images_of(poisoned) / 255 - p_hats[0].astype(float), 0, 1) * 255
    x1 = images_of(purified(poisoned, checkpoint, "dvae.stages=1"))
    assert np.abs(x1 - expected).max() < 0.5 + 255 * np.abs(p_hats[0]).max() * 2**-11
    x1_out = purified(poisoned, checkpoint, "dvae.stages=1", "dvae.save_perturbation=true")
    assert not (x1_out / "p_hat2.npy").exists()
    np.testing.assert_array_equal(np.load(x1_out / "p_hat1.npy"), p_hats[0])


def test_a_perturbation_is_reused_on_images_of_its_shape(poisoned, checkpoint, few, tmp_path):
    """Added to the clean rows; of a set that kept none, or of others, one sentence."""
    plain = purified(poisoned, checkpoint)
    kept = purified(poisoned, checkpoint, "dvae.save_perturbation=true")
    clean = write_imageset(tmp_path / "clean", few.images, few.labels)
    line = ["method=reuse", f"data={clean}"]
    out = succeed(poisons.main, *line, f"reuse.source={kept}", "reuse.stage=1")
    expected = few.images / 255 + np.load(kept / "p_hat1.npy").astype(float)
    assert_almost_equal_levels(images_of(out), np.clip(expected, 0, 1))
    assert "p_hat1.npy: no such file; purify with dvae.save_perturbation=true" in run_command(
        poisons.main, *line, f"reuse.source={plain}", "reuse.stage=1").error
    assert "is (320, 16, 16, 3), but the clean images are (100, 16, 16, 3)" in run_command(
        poisons.main, *line, f"reuse.source={kept}", "reuse.stage=1", "--limit", 100).error


@pytest.mark.parametrize("rows", [1, 100, 256, 300])
def test_a_limit_gives_the_first_rows(poisoned, checkpoint, rows):
    whole = images_of(purified(poisoned, checkpoint))
    part = images_of(purified(poisoned, checkpoint, "--limit", rows))
    assert len(part) == rows
    difference = np.abs(part.astype(int) - whole[:rows])
    assert difference.max() <= 1        # another batch size: at most one grey level
    assert (difference > 0).mean() < 1e-3


def test_labels_decide_what_is_subtracted(tmp_path, poisoned, checkpoint):
    labels = np.load(poisoned / "labels.npy")
    swapped = write_imageset(tmp_path / "swapped", images_of(poisoned), (labels + 1) % 10)
    ours, theirs = (images_of(purified(path, checkpoint, "dvae.stages=1"))
                    for path in (poisoned, swapped))
    assert (ours != theirs).mean() > 0.05


def test_a_perturbation_that_no_stage_takes_off_cannot_be_saved(poisoned, checkpoint):
    outcome = run_command(
        purify.main, YAML, f"data={poisoned}", f"checkpoint={checkpoint}", "dvae.stages=1",
        "dvae.output=reconstruct", "dvae.save_perturbation=true", "--limit", "4")
    assert outcome.error.startswith("dvae.save_perturbation: no stage that is applied takes p_hat")


def test_impossible_requests_are_refused(poisoned, checkpoint):
    for argument, words in [("dvae.stages=3", "has only 2 stages"),
                            ("dvae.stages=0", "dvae.stages: 0 is out of range"),
                            ("dvae.output=x", "is not one of subtract, reconstruct, both"),
                            ("dvae.latent=median", "is not one of sample, mean")]:
        outcome = run_command(purify.main, YAML, f"data={poisoned}", f"checkpoint={checkpoint}",
                              argument)
        assert outcome.status == 1
        assert words in outcome.error


# --- networks for other sizes ----------------------------------------------------------------


def blank(side: int, width: int | None = None, classes: int = 10) -> ImageSet:
    return as_set(np.zeros((4, side, width or side, 3), np.uint8), np.arange(4), classes)


@pytest.mark.parametrize(("side", "latent"), [(16, 8), (32, 16), (64, 32), (96, 12), (224, 28)])
def test_a_network_builds_for_every_size(tmp_path, side, latent):
    """224x224 is variant B of section 4: the ImageNet stem, a latent of 28x28."""
    config = dvae.TrainConfig(width=16, latent_channels=6)
    with new_run(tmp_path / "out") as run:
        model = dvae.build_model(blank(side), config, run, "stage1")
    assert model.latent_shape == (6, latent, latent)
    x = torch.rand(2, 3, side, side)
    x_hat, p_hat, mu, _ = model(x, torch.tensor([0, 1]), torch.randn(2, 6, latent, latent))
    assert x_hat.shape == p_hat.shape == x.shape
    assert mu.shape == (2, 6, latent, latent)
    F.mse_loss(x_hat + p_hat, x).backward()


@pytest.mark.parametrize(("classes", "spatial", "count"), [
    (10, True, 1_181_382), (100, True, 4_130_502), (10, False, 854_982)])
def test_parameter_counts_at_32_pixels(tmp_path, classes, spatial, count):
    config = dvae.TrainConfig(spatial_embedding=spatial)
    with new_run(tmp_path / "out") as run:
        model = dvae.build_model(blank(32, classes=classes), config, run, "stage1")
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_imagenet100_has_the_network_as_configured(tmp_path):
    """trunk=layer4 keeps the CIFAR stem at 224 pixels; preset=stem7 takes the small network."""
    for arguments, channels in (((), 512), (("preset=stem7",), 128)):
        found = parse([str(YAML), "like=imagenet100", *arguments], "", "train_vae").train_config
        assert (found.epochs, found.batch_size, found.learning_rate) == (20, 128, 5e-3)
        assert not found.spatial_embedding
        with new_run(tmp_path / str(channels)) as run:
            model = dvae.build_model(blank(224, classes=100), found, run, "stage1")
        assert model.latent_shape == (256, 28, 28)
        assert model.class_embedding.weight.shape == (100, channels)
    found = parse([str(YAML.with_name("vae.yaml")), "like=pets"], "", "train_vae").train_config
    assert (found.epochs, found.trunk) == (20, "layer3")


def test_a_deep_trunk_needs_the_cifar_stem():
    with pytest.raises(UserError, match="layer4 goes with stem=cifar"):
        dvae.TrainConfig(stem="imagenet", trunk="layer4")


@pytest.mark.parametrize("latent", ["sample", "mean"])
def test_rows_do_not_depend_on_how_many_pass_at_once(tmp_path, monkeypatch, latent):
    """Of large images fewer do (rows_a_pass), in the middle of a block of noise."""
    assert [autoencoding.rows_a_pass(side * side) for side in (16, 32, 96, 97, 224, 3000)] == \
        [256, 256, 256, 128, 32, 1]
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    several = as_set(images, np.arange(40) % 10)
    config, found = dvae.TrainConfig(width=8, latent_channels=4), []
    for batch in (256, 8):
        monkeypatch.setattr(autoencoding, "rows_a_pass", lambda pixels, batch=batch: batch)
        with new_run(tmp_path / f"out{batch}") as run:
            model = dvae.build_model(several, config, run, "stage1").eval()
            rows = dvae.purify_rows(several, [(model, 1, "both")], latent, "round", run)
            found.append(rows(torch.from_numpy(images).float() / 255, slice(0, 40)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("side", "width"), [(15, None), (16, 32), (100, None)])
def test_sizes_that_cannot_be_restored_are_refused(tmp_path, side, width):
    with new_run(tmp_path / "out") as run, pytest.raises(UserError, match="takes square images"):
        dvae.build_model(blank(side, width), DEFAULT, run, "stage1")
