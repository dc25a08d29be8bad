"""scripts/import_ddpm.py: other people's checkpoints, and what it refuses."""

import inspect
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import run_command, succeed
from safetensors.torch import load_file, save_file
from test_unet import theirs

import purify
from core.imageset import ImageSet
from models.unet import UNet
from scripts.exchange import import_ddpm

diffusers = pytest.importorskip("diffusers")
DDIMScheduler, DDPMScheduler = diffusers.DDIMScheduler, diffusers.DDPMScheduler
PNDMScheduler, UNet2DModel = diffusers.PNDMScheduler, diffusers.UNet2DModel
SAYS = ["--data", "cifar10", "--split", "test"]


def refused(source, *words):
    outcome = run_command(import_ddpm.main, source, *(words or SAYS), "--out", "imported")
    assert outcome.status == 1
    return outcome.error


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A diffusers folder of a small network for 16x16 images."""
    torch.manual_seed(0)
    model, path = theirs(32, 16, 3), tmp_path_factory.mktemp("saved")
    model.save_config(path / "unet")
    save_file(model.state_dict(), path / "unet" / "diffusion_pytorch_model.safetensors")
    return path


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to change."""
    return shutil.copytree(saved, tmp_path / "diffusers")


def test_a_diffusers_folder_purifies(folder, few_path):
    out = succeed(import_ddpm.main, folder, *SAYS, "--out", "imported")
    meta = json.loads((out / "meta.json").read_text())
    assert meta["trained_on"]["shape"] == [10_000, 16, 16, 3]
    assert meta["trained_on"]["root"] == {"data": "cifar10", "split": "test"}
    purified = succeed(purify.main, "method=ddpm", "ddpm.t_star=2", f"data={few_path}",
                       f"checkpoint={out}", "--limit", "8")
    [step] = json.loads((purified / "meta.json").read_text())["lineage"]
    assert step["trained_on"]["name"] == "cifar10"
    assert (np.load(purified / "images.npy") != np.load(few_path / "images.npy")[:8]).any()


def test_the_scheduler_is_read(folder):
    DDPMScheduler(num_train_timesteps=500, beta_end=0.03).save_config(folder / "scheduler")
    out = succeed(import_ddpm.main, folder, *SAYS, "--out", "imported")
    config = json.loads((out / "meta.json").read_text())["config"]
    assert config["diffusion_steps"] == 500
    assert (config["beta_start"], config["beta_end"]) == (1e-4, 0.03)
    assert not {"steps", "learning_rate"} & config.keys()       # nobody knows
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_config(folder / "scheduler")
    assert "beta_schedule is squaredcos_cap_v2, but only linear" in refused(folder)
    DDPMScheduler(prediction_type="v_prediction").save_config(folder / "scheduler")
    assert "prediction_type is v_prediction, but only epsilon" in refused(folder)


def test_a_ddim_list_gives_its_ema(tmp_path):
    """[model with `module.`, optimiser, epoch, step, EMA]; a list without an EMA its model; a bare
    state dict itself."""
    torch.manual_seed(0)
    model, ema = UNet(32).state_dict(), UNet(32).state_dict()
    prefixed = {f"module.{name}": tensor for name, tensor in model.items()}
    for content, expected in (([prefixed, {"state": {}}, 3, 400, ema], ema),
                              ([prefixed, {"state": {}}, 3, 400], model), (ema, ema)):
        torch.save(content, tmp_path / "ckpt.pth")
        out = succeed(import_ddpm.main, tmp_path / "ckpt.pth", *SAYS, "--out",
                      f"imported{len(list(tmp_path.iterdir()))}")
        found = load_file(out / "ema.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


class Malicious:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return open, ("ran", "w")


def test_a_pickle_is_refused(tmp_path):
    torch.save([{"conv_in.weight": torch.zeros(1)}, Malicious()], tmp_path / "bad.pth")
    assert "nothing else is read, for it would have to be run" in refused(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_damaged_and_foreign_files(tmp_path, folder):
    (tmp_path / "junk.pth").write_bytes(b"junk")
    assert "not a torch file of plain tensors" in refused(tmp_path / "junk.pth")
    assert refused(tmp_path / "none.pth") == f"{tmp_path}/none.pth: no such file"
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    assert "conv_in and down.* are missing" in refused(tmp_path / "other.pth")
    torch.save({key: value for key, value in UNet(32).state_dict().items()
                if not key.startswith("mid")}, tmp_path / "part.pth")
    assert "not the network of Ho et al." in refused(tmp_path / "part.pth")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "not a readable .safetensors file" in refused(folder)


def edit(path, **keys):
    """Change a JSON file; None takes a key out."""
    config = {**json.loads(path.read_text()), **keys}
    path.write_text(json.dumps({key: value for key, value in config.items()
                                if value is not None or key not in keys}))


@pytest.mark.parametrize(("key", "value"), [
    ("downsample_padding", 1), ("flip_sin_to_cos", True), ("norm_eps", 1e-5),
    ("attention_head_dim", 8), ("act_fn", "gelu"), ("freq_shift", None),
    ("attn_norm_num_groups", 8), ("norm_num_groups", 16), ("add_attention", False),
    ("class_embed_type", "identity"), ("num_class_embeds", 10), ("mid_block_scale_factor", 2),
    ("resnet_time_scale_shift", "scale_shift"), ("downsample_type", "resnet"),
    ("upsample_type", "resnet"), ("time_embedding_type", "learned"), ("time_embedding_dim", 64),
    ("center_input_sample", True), ("_class_name", "UNet2DConditionModel"), ("in_channels", 1),
    ("layers_per_block", 3), ("block_out_channels", [32, 64, 96]),
    ("up_block_types", ["UpBlock2D"] * 3), ("down_block_types", "DownBlock2D"),
    # odd types, and what a terminal would obey
    ("norm_eps", "1e-6"), ("norm_eps", [1e-6]), ("act_fn", {"name": "silu"}),
    ("block_out_channels", 32), ("act_fn", "silu\x1b[2J"), ("sample_size", [16, 32]),
    ("sample_size", "large"), ("sample_size", True), ("sample_size", 15.5), ("sample_size", {}),
    ("sample_size", float("nan")), ("sample_size", 0)])
def test_another_config_is_refused(folder, key, value):
    """Also a key that is absent, where the library's default is another network."""
    edit(folder / "unet" / "config.json", **{key: value})
    error = refused(folder)
    assert f"config.json: {key} is " in error
    assert "\x1b" not in error


def test_a_key_of_another_day_is_refused(folder):
    """A key that may make another network, until someone says that it does not."""
    edit(folder / "unet" / "config.json", rotary_attention=False)
    assert "config.json: the key rotary_attention is not known here" in refused(folder)
    edit(folder / "unet" / "config.json", rotary_attention=None)
    DDPMScheduler().save_config(folder / "scheduler")
    edit(folder / "scheduler" / "scheduler_config.json", shift=3.0)
    assert "scheduler_config.json: the key shift is not known here" in refused(folder)


def test_every_key_of_diffusers_is_known():
    """What this version has, with its defaults: a key that a later one adds fails here."""
    known = {*import_ddpm.EXPECTED, *import_ddpm.FROM_WEIGHTS, *import_ddpm.HARMLESS}
    for key, parameter in defaults_of(UNet2DModel):
        assert key in known, key
        if key in import_ddpm.EXPECTED:
            assert import_ddpm.DEFAULTS.get(key, import_ddpm.EXPECTED[key][0]) == parameter, key
    known = {*import_ddpm.SCHEDULE, *import_ddpm.NUMBERS, *import_ddpm.SAMPLING}
    for kind in (DDPMScheduler, DDIMScheduler, PNDMScheduler):
        found = dict(defaults_of(kind))
        assert found.keys() <= known
        assert (found["num_train_timesteps"], found["beta_start"], found["beta_end"]) == (
            1000, 1e-4, 0.02)
        assert all(found[key] in values for key, values in import_ddpm.SCHEDULE.items()
                   if key in found)
    assert import_ddpm.SCHEDULE["_class_name"] == ("DDPMScheduler", "DDIMScheduler",
                                                   "PNDMScheduler")


def defaults_of(kind):
    return [(key, parameter.default) for key, parameter
            in inspect.signature(kind.__init__).parameters.items() if key != "self"]


@pytest.mark.parametrize("keys", [
    {"sample_size": [16, 16]}, {"sample_size": "16"}, {"sample_size": ["16", 16.0]},
    {"act_fn": "swish"}, {"attn_norm_num_groups": 32}, {"dropout": 0.3},
    {"time_embedding_dim": 128}, {"decay": 0.9999, "optimization_step": 7}])
def test_the_same_network_in_other_words(folder, keys):
    edit(folder / "unet" / "config.json", **keys)
    assert import_ddpm.from_diffusers(folder)[2] == 16


@pytest.mark.parametrize(("key", "value"), [
    ("num_train_timesteps", "many"), ("num_train_timesteps", 10.5), ("num_train_timesteps", 1e9),
    ("num_train_timesteps", True), ("beta_start", [0.1]), ("beta_end", float("nan")),
    ("beta_schedule", ["linear"]), ("_class_name", "FlowMatchEulerDiscreteScheduler")])
def test_another_schedule_is_refused(folder, key, value):
    DDPMScheduler().save_config(folder / "scheduler")
    edit(folder / "scheduler" / "scheduler_config.json", **{key: value})
    assert f"scheduler_config.json: {key} is " in refused(folder)


def test_a_schedule_out_of_range_names_its_key(folder):
    DDPMScheduler(beta_start=2.0).save_config(folder / "scheduler")
    assert "scheduler_config.json: beta_start: 2 is out of range" in refused(folder)


@pytest.mark.parametrize("text", ["[]", "{", "[[\"act_fn\", 1]]", "3", "\"x\"", "[" * 100_000,
                                  "{\"a\": " + "[" * 200_000, " " * (1 << 21)])
def test_a_config_that_is_none(folder, text):
    DDPMScheduler().save_config(folder / "scheduler")
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "unet" / "config.json"):
        path.write_text(text)
        assert str(path) in refused(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.",
                                    "_orig_mod.module.", "module.module._orig_mod."])
def test_what_wrapped_a_model_is_taken_off(tmp_path, folder, prefix):
    torch.manual_seed(0)
    plain = UNet(32).state_dict()
    torch.save({"n_averaged": torch.tensor(3), **{prefix + name: tensor
                                                  for name, tensor in plain.items()}},
               tmp_path / "ckpt.pth")
    found = import_ddpm.from_ddim(tmp_path / "ckpt.pth")
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    _, expected, _ = import_ddpm.from_diffusers(folder)
    save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path)
    _, found, _ = import_ddpm.from_diffusers(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_parts_that_were_compiled(tmp_path):
    """torch.compile of a block leaves its word in the middle of a name."""
    plain = UNet(32).state_dict()
    torch.save({name.replace("down.0.", "down.0._orig_mod."): tensor
                for name, tensor in plain.items()}, tmp_path / "ckpt.pth")
    assert import_ddpm.from_ddim(tmp_path / "ckpt.pth").keys() == plain.keys()
    torch.save({**plain, "module.conv_in.bias": plain["conv_in.bias"]}, tmp_path / "twice.pth")
    assert "two tensors are conv_in.bias" in refused(tmp_path / "twice.pth")


def test_weights_that_are_none(tmp_path):
    """Not finite, whole numbers, or a shape larger than what is stored."""
    plain = UNet(32).state_dict()
    for name, tensor in (("nan", torch.full((32,), torch.nan)), ("whole", torch.ones(32).int()),
                         ("claims", torch.zeros(1).expand(1 << 20))):
        torch.save({**plain, "conv_in.bias": tensor}, tmp_path / f"{name}.pth")
        assert "conv_in.bias holds no weights" in refused(tmp_path / f"{name}.pth")
    torch.save({"conv_in.weight": torch.zeros(1 << 20, 0),
                "down.0.block.0.conv1.weight": torch.zeros(1 << 20, 0),
                "down.0.block.999999999.conv1.weight": torch.zeros(1)}, tmp_path / "wide.pth")
    assert "not the network of Ho et al." in refused(tmp_path / "wide.pth")    # and no terabytes
    torch.save({**plain, "conv_in.weight": torch.zeros(30, 3, 3, 3)}, tmp_path / "odd.pth")
    assert "its weights: width: 30 is out of range" in refused(tmp_path / "odd.pth")


def test_half_precision_is_kept_and_computes_in_single(tmp_path, few_path):
    """The same images as with each of its weights written out in fp32."""
    torch.manual_seed(0)
    model = UNet(32, (1, 2, 2), 2, (16,), 16)
    half = {name: tensor.half() for name, tensor in model.state_dict().items()}
    single = {name: tensor.float() for name, tensor in half.items()}
    purified = []
    for name, weights in (("half", half), ("single", single)):
        torch.save(weights, tmp_path / f"{name}.pth")
        out = succeed(import_ddpm.main, tmp_path / f"{name}.pth", *SAYS, "--size", "16",
                      "--out", name)
        kept = load_file(out / "ema.safetensors")
        assert all(torch.equal(kept[key], weights[key]) for key in weights)
        assert {tensor.dtype for tensor in kept.values()} == {weights["conv_in.bias"].dtype}
        done = succeed(purify.main, "method=ddpm", "ddpm.t_star=2", f"data={few_path}",
                       f"checkpoint={out}", "threads=1", "--limit", "2", f"out={name}-purified")
        purified.append(ImageSet.load(done).images)
    assert np.array_equal(*purified)
    assert len(np.unique(purified[0])) > 2


def test_safetensors_under_the_plain_names(tmp_path):
    torch.manual_seed(0)
    weights = {name: tensor.half() for name, tensor in UNet(32).state_dict().items()}
    save_file(weights, tmp_path / "prior.safetensors")
    line = [tmp_path / "prior.safetensors", *SAYS, "--t-train-max"]
    out = succeed(import_ddpm.main, *line, 150, "--out", "imported")
    found = load_file(out / "ema.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in found)
    assert json.loads((out / "meta.json").read_text())["config"]["t_train_max"] == 150
    outcome = run_command(purify.main, "method=ddpm", "ddpm.t_star=151", "data=digits", "size=32",
                          f"checkpoint={out}", "--limit", "1")
    assert "was trained on the first 150 only" in outcome.error
    assert refused(*line[:1], *SAYS, "--t-train-max", 1001).startswith(
        "--t-train-max: t_train_max: 1001 is out of range")


def test_what_it_was_trained_on_must_be_said(folder):
    assert refused(folder, "--data", "mine", "--split", "train") == (
        "--images: how many images of mine train?")
    assert "config.json says 16" in refused(folder, *SAYS, "--size", "32")
    for key in ("--images", "--size", "--t-train-max"):
        outcome = run_command(import_ddpm.main, folder, *SAYS, key, 0)
        assert outcome.status == 2
        assert f"argument {key}: must be at least 1" in outcome.stderr


@pytest.mark.parametrize(("words", "images"), [
    (("mine", "train", "--images", 70), 70), (("cifar10", "test", "--images", 70), 70),
    (("svhn", "train"), 73_257), (("svhn", "test"), 26_032), (("cifar100", "train"), 50_000)])
def test_how_many_images_it_was_trained_on(folder, words, images):
    """What is said, else what the data set has."""
    data, split, *said = words
    out = succeed(import_ddpm.main, folder, "--data", data, "--split", split, *said, "--out", "out")
    trained_on = json.loads((out / "meta.json").read_text())["trained_on"]
    assert trained_on["shape"] == [images, 16, 16, 3]
    assert trained_on["root"] == {"data": data, "split": split}
    assert refused(folder, "--data", "cifar10", "--split", "half").startswith("--images: how many")


def test_a_folder_that_lacks_a_file_and_a_list_that_is_none(folder, tmp_path):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert refused(folder, *SAYS).endswith("diffusion_pytorch_model.safetensors: no such file; a "
                                           "diffusers folder holds config.json and "
                                           "diffusion_pytorch_model.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "neither ddim's list nor a state dict" in refused(tmp_path / "list.pth", *SAYS)


def test_a_side_that_the_levels_do_not_divide(tmp_path):
    torch.save(UNet(32).state_dict(), tmp_path / "ckpt.pth")
    assert refused(tmp_path / "ckpt.pth", *SAYS, "--size", "36").startswith(
        "--size: 36 is no multiple of 8")
