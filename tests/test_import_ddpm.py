"""scripts/import_ddpm.py: other people's checkpoints, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from conftest import run_command, succeed
from safetensors.torch import load_file, save_file
from test_unet import theirs

import purify
from models.unet import UNet
from scripts import import_ddpm

SAYS = ["--data", "cifar10", "--split", "test"]


def refused(source, *words):
    outcome = run_command(import_ddpm.main, source, *(words or SAYS), "--out", "imported")
    assert outcome.status == 1
    return outcome.error


@pytest.fixture
def folder(tmp_path):
    """A diffusers folder of a small network for 16x16 images."""
    torch.manual_seed(0)
    model = theirs(32, 16, 3)
    model.save_config(tmp_path / "diffusers" / "unet")
    save_file(model.state_dict(),
              tmp_path / "diffusers" / "unet" / "diffusion_pytorch_model.safetensors")
    return tmp_path / "diffusers"


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
    from diffusers import DDPMScheduler

    DDPMScheduler(num_train_timesteps=500, beta_end=0.03).save_config(folder / "scheduler")
    out = succeed(import_ddpm.main, folder, *SAYS, "--out", "imported")
    config = json.loads((out / "meta.json").read_text())["config"]
    assert config["diffusion_steps"] == 500
    assert (config["beta_start"], config["beta_end"]) == (1e-4, 0.03)
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
    assert "could run code, which is refused" in refused(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


def test_damaged_and_foreign_files(tmp_path, folder):
    (tmp_path / "junk.pth").write_bytes(b"junk")
    assert "not plain weights" in refused(tmp_path / "junk.pth")
    assert refused(tmp_path / "none.pth") == f"{tmp_path}/none.pth: no such file or folder"
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    assert "conv_in and down.* are missing" in refused(tmp_path / "other.pth")
    torch.save({key: value for key, value in UNet(32).state_dict().items()
                if not key.startswith("mid")}, tmp_path / "part.pth")
    assert "not the network of Ho et al." in refused(tmp_path / "part.pth")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "is damaged" in refused(folder)


@pytest.mark.parametrize(("key", "value"), [
    ("downsample_padding", 1), ("flip_sin_to_cos", True), ("norm_eps", 1e-5),
    ("attention_head_dim", 8), ("act_fn", "gelu"), ("freq_shift", None)])
def test_another_config_is_refused(folder, key, value):
    """Also a key that is absent, where the library's default is another network."""
    path = folder / "unet" / "config.json"
    config = json.loads(path.read_text())
    config[key] = value
    if value is None:
        del config[key]
    path.write_text(json.dumps(config))
    assert f"config.json: {key} is " in refused(folder)


def test_what_it_was_trained_on_must_be_said(folder):
    assert refused(folder, "--data", "mine", "--split", "train") == (
        "--images: how many images of mine train?")
    assert "config.json says 16" in refused(folder, *SAYS, "--size", "32")
