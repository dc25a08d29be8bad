"""Turn somebody else's DDPM into a checkpoint for AVATAR and JCDP.

    python scripts/import_ddpm.py FOLDER --data cifar10 --split train [--out DIR] [--size 32]
    python scripts/import_ddpm.py ckpt_80000.pth --data cifar10 --split test

FOLDER is in diffusers' form (config.json and diffusion_pytorch_model.safetensors, perhaps in
`unet/`); a .pth is ermongroup/ddim's list, whose EMA is taken, or a bare state dict. No pickle is
run. --data and --split say what it was trained on: they go into every record, so say it right.
"""

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from core import checkpoint, files
from core.command import command
from core.config import plain
from core.datasets import place
from core.errors import UserError
from core.run import Job, Run
from models.unet import UNet
from purifiers import ddpm

# diffusers' settings that make the network of Ho et al.
EXPECTED = {"in_channels": 3, "out_channels": 3, "downsample_padding": 0, "flip_sin_to_cos": False,
            "freq_shift": 1, "norm_eps": 1e-6, "norm_num_groups": 32, "attention_head_dim": None,
            "act_fn": "silu", "mid_block_scale_factor": 1, "center_input_sample": False,
            "time_embedding_type": "positional"}
# and its own defaults, where they are another network's
DEFAULTS = {"downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5,
            "attention_head_dim": 8}
# and its scheduler's that make Ho et al.'s; its defaults are these
SCHEDULE = {"beta_schedule": "linear", "prediction_type": "epsilon", "trained_betas": None,
            "rescale_betas_zero_snr": False}
NUMBERS = {"num_train_timesteps": "diffusion_steps", "beta_start": "beta_start",
           "beta_end": "beta_end"}
IMAGES = {("cifar10", "train"): 50_000, ("cifar10", "test"): 10_000, ("cifar100", "train"): 50_000,
          ("cifar100", "test"): 10_000, ("svhn", "train"): 73_257, ("svhn", "test"): 26_032}


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python scripts/import_ddpm.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--data", required=True, help="what it was trained on, such as cifar10")
    parser.add_argument("--split", required=True, help="train, test, or what you know")
    parser.add_argument("--images", type=int, help="how many; known for cifar10, cifar100, svhn")
    parser.add_argument("--size", type=int, help="side of its images (32)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(argv)

    images = arguments.images or IMAGES.get((arguments.data, arguments.split))
    if images is None:
        raise UserError(f"--images: how many images of {arguments.data} {arguments.split}?")
    source = arguments.source
    if source.is_dir():
        path, weights, size = from_diffusers(source)
        schedule = schedule_of(source)
    else:
        path, weights, size, schedule = source, from_ddim(source), None, {}
    if size and arguments.size and size != arguments.size:
        raise UserError(f"--size: {source}/config.json says {size}")
    size = size or arguments.size or 32
    config = replace(architecture(weights, size), **schedule)
    model = UNet(config.width, config.multipliers, config.blocks, config.attention, size)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{path}: not the network of Ho et al.: "
                        f"{str(error).splitlines()[-1].strip()}") from None
    digest = files.sha256(path)
    origin = {"source": place(source), "sha256": digest}
    shown = {key: value for key, value in plain(config).items() if key not in ddpm.PATHS}
    root = {"data": arguments.data, "split": arguments.split}
    job = Job("checkpoints", f"{arguments.data}-{arguments.split}-import", "ddpm", ddpm.VERSION,
              shown, 0, {"source": digest}, "import", root)
    with Run(job, out=arguments.out, settings={"method": "ddpm", **origin, **root}) as run:
        if not run.done:
            for part in ("model", "ema"):
                checkpoint.save_weights(model, run, part)
            run.finish({
                "kind": "checkpoint", "method": "ddpm", "config": shown, "seed": 0,
                "precision": "auto", "imported": origin, "lineage": [run.lineage_entry()],
                "trained_on": {
                    "name": arguments.data, "fingerprint": digest, "num_classes": None,
                    "shape": [images, size, size, 3], "root": root,
                    "lineage": []}})
    print(run.out)


# --- formats ---------------------------------------------------------------------------------


def from_diffusers(folder: Path) -> tuple[Path, dict[str, torch.Tensor], int | None]:
    """The weights file of a folder, its weights under the plain names, the side of its images."""
    from safetensors.torch import load_file

    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    path = unet / "diffusion_pytorch_model.safetensors"
    try:
        config = dict(json.loads((unet / "config.json").read_text()))
        weights = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: no such file; a diffusers folder holds "
                        "config.json and diffusion_pytorch_model.safetensors") from None
    except Exception:
        raise UserError(f"{unet}: config.json or {path.name} is damaged") from None
    for key, value in EXPECTED.items():
        found = config.get(key, DEFAULTS.get(key, value))
        if found != value:
            raise UserError(f"{unet}/config.json: {key} is {found}, but only the network of Ho et "
                            f"al. is known here, which has {value}")
    levels = len(config.get("block_out_channels", ()))
    renamed = {plain_name(name, levels): plain_shape(name, tensor)
               for name, tensor in weights.items()}
    return path, renamed, config.get("sample_size")


def schedule_of(folder: Path) -> dict[str, float]:
    """The keys of TrainConfig that scheduler_config.json holds; without one, Ho et al.'s."""
    places = (folder / "scheduler_config.json", folder / "scheduler" / "scheduler_config.json")
    path = next((path for path in places if path.exists()), None)
    if path is None:
        return {}
    try:
        config = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged") from None
    for key, value in SCHEDULE.items():
        if config.get(key, value) != value:
            raise UserError(f"{path}: {key} is {config[key]}, but only {value} is known here")
    found = {ours: config[theirs] for theirs, ours in NUMBERS.items() if theirs in config}
    return {**found, "t_train_max": found.get("diffusion_steps", ddpm.TrainConfig.t_train_max)}


# pattern in diffusers' names -> in the plain ones (JCDP notes, section 9.1); up blocks count from
# the deepest level
RENAMED = (
    (r"^time_embedding\.linear_(\d)", lambda m, n: f"temb.dense.{int(m[1]) - 1}"),
    (r"^conv_norm_out", lambda m, n: "norm_out"),
    (r"^down_blocks\.(\d+)", lambda m, n: f"down.{m[1]}"),
    (r"^up_blocks\.(\d+)", lambda m, n: f"up.{n - 1 - int(m[1])}"),
    (r"^mid_block\.resnets\.(\d)", lambda m, n: f"mid.block_{int(m[1]) + 1}"),
    (r"^mid_block\.attentions\.0", lambda m, n: "mid.attn_1"),
    (r"\.resnets\.", lambda m, n: ".block."),
    (r"\.attentions\.", lambda m, n: ".attn."),
    (r"\.(down|up)samplers\.0\.conv", lambda m, n: f".{m[1]}sample.conv"),
    (r"\.time_emb_proj", lambda m, n: ".temb_proj"),
    (r"\.conv_shortcut", lambda m, n: ".nin_shortcut"),
    (r"\.group_norm", lambda m, n: ".norm"),
    (r"\.(to_q|query)\b", lambda m, n: ".q"),
    (r"\.(to_k|key)\b", lambda m, n: ".k"),
    (r"\.(to_v|value)\b", lambda m, n: ".v"),
    (r"\.(to_out\.0|proj_attn)\b", lambda m, n: ".proj_out"),
)


def plain_name(name: str, levels: int) -> str:
    for pattern, new in RENAMED:
        name = re.sub(pattern, lambda match, new=new: new(match, levels), name)
    return name


def plain_shape(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Attention is linear layers there and 1x1 convolutions here."""
    attends = "attentions" in name and name.endswith("weight") and tensor.ndim == 2
    return tensor[:, :, None, None] if attends else tensor


def from_ddim(path: Path) -> dict[str, torch.Tensor]:
    """The EMA of a list [model, optimiser, epoch, step, ema], its model where there is no EMA, or a
    bare state dict."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file or folder") from None
    except Exception:
        raise UserError(f"{path}: not plain weights: it is damaged, or needs a pickle that could "
                        "run code, which is refused") from None
    if isinstance(found, (list, tuple)):
        found = next((part for part in (*found[-1:], *found[:1]) if is_state_dict(part)), None)
    if not is_state_dict(found):
        raise UserError(f"{path}: neither ddim's list nor a state dict")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def is_state_dict(value) -> bool:
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in value.items())


def architecture(weights: dict[str, torch.Tensor], size: int) -> ddpm.TrainConfig:
    """Width, multipliers, blocks and attention as the names and shapes tell them."""
    try:
        width = weights["conv_in.weight"].shape[0]
        levels = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("down."))
        multipliers = tuple(weights[f"down.{level}.block.0.conv1.weight"].shape[0] // width
                            for level in range(levels))
        blocks = 1 + max(int(name.split(".")[3]) for name in weights
                         if name.startswith("down.0.block."))
    except (KeyError, ValueError, IndexError):
        raise UserError("these are not the weights of Ho et al.'s network: conv_in and down.* are "
                        "missing") from None
    attention = tuple(size >> level for level in range(levels)
                      if f"down.{level}.attn.0.q.weight" in weights)
    return ddpm.TrainConfig(width=width, multipliers=multipliers, blocks=blocks,
                            attention=attention, sample_every=0)


if __name__ == "__main__":
    sys.exit(main())
