"""Turn somebody else's DDPM into a checkpoint for AVATAR and JCDP.

    python scripts/import_ddpm.py FOLDER --data cifar10 --split train [--out DIR] [--size 32]
    python scripts/import_ddpm.py ckpt_80000.pth --data cifar10 --split test

FOLDER is in diffusers' form (config.json and diffusion_pytorch_model.safetensors, perhaps in
`unet/`); a .pth is ermongroup/ddim's list, whose EMA is taken, or a bare state dict, which a
.safetensors is too, under the same names. Half precision is kept. No pickle is run. --data and
--split say what it was trained on: they go into every record, so say it right.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import torch

from core import checkpoint, files, reading, torchfile
from core.command import Parser, command, positive
from core.config import as_path, plain, read_number
from core.errors import ConfigError, UserError
from core.job import Job
from core.names import printable
from core.outlines import SIZES
from core.remembered import place
from core.run import Run
from models.unet import UNet
from purifiers import ddpm
from purifiers.prior import NETWORK_AND_NOISE, TrainConfig

# Every key of diffusers' UNet2DModel (0.42): what it must be for the network of Ho et al., ...
EXPECTED = {"_class_name": ("UNet2DModel",), "in_channels": (3,), "out_channels": (3,),
            "center_input_sample": (False,), "time_embedding_type": ("positional",),
            "freq_shift": (1,), "flip_sin_to_cos": (False,),
            "mid_block_type": ("UNetMidBlock2D",), "mid_block_scale_factor": (1,),
            "downsample_padding": (0,), "downsample_type": ("conv",), "upsample_type": ("conv",),
            "act_fn": ("silu", "swish"), "attention_head_dim": (None,), "norm_num_groups": (32,),
            "attn_norm_num_groups": (None, 32), "norm_eps": (1e-6,),
            "resnet_time_scale_shift": ("default",), "add_attention": (True,),
            "class_embed_type": (None,), "num_class_embeds": (None,)}
# ... its own defaults, where they are another network's, ...
DEFAULTS = {"downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "norm_eps": 1e-5,
            "attention_head_dim": 8}
# ... those that the weights must agree with (`said_by`), and those that change nothing here
# (dropout when purifying; EMAModel's)
FROM_WEIGHTS = ("block_out_channels", "layers_per_block", "down_block_types", "up_block_types",
                "time_embedding_dim")
WRITTEN = {"_diffusers_version", "_name_or_path", "_commit_hash", "_use_default_values"}
HARMLESS = {"sample_size", "dropout", "num_train_timesteps", *WRITTEN, "decay", "min_decay",
            "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"}
# The scheduler's keys that make Ho et al.'s noise; their defaults are these in each of the classes
SCHEDULE = {"_class_name": ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"),
            "beta_schedule": ("linear",), "prediction_type": ("epsilon",), "trained_betas": (None,),
            "rescale_betas_zero_snr": (False,)}
NUMBERS = {"num_train_timesteps": "diffusion_steps", "beta_start": "beta_start",
           "beta_end": "beta_end"}
# and those of its sampling, which AVATAR and JCDP choose themselves
SAMPLING = {"variance_type", "clip_sample", "clip_sample_range", "thresholding",
            "dynamic_thresholding_ratio", "sample_max_value", "timestep_spacing", "steps_offset",
            "set_alpha_to_one", "skip_prk_steps", *WRITTEN}
# what is told of a training, of which nothing else is known
KNOWN = {*NETWORK_AND_NOISE, "t_train_max"}
MOST_STEPS = 100_000            # of a schedule; Ho et al. have 1,000
MOST_CONFIG = 1 << 20           # bytes of a config.json; diffusers' have a thousand
WRAPPERS = {"module", "_orig_mod"}      # DataParallel's, EMA's and torch.compile's part of a name
COUNTED = ("cifar10", "cifar100", "svhn")       # data sets whose number of images is known


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/import_ddpm.py", __doc__)
    parser.add_argument("source", type=as_path)
    parser.add_argument("--data", required=True, help="what it was trained on, such as cifar10")
    parser.add_argument("--split", required=True, help="train, test, or what you know")
    parser.add_argument("--images", type=positive,
                        help="how many; known for cifar10, cifar100, svhn")
    parser.add_argument("--size", type=positive, help="side of its images (32)")
    parser.add_argument("--t-train-max", type=positive, metavar="N",
                        help="it was trained on the first N steps of its schedule only")
    parser.add_argument("--out", type=as_path)
    parser.add_argument("--force", action="store_true",
                        help="move other work in the way aside (finished) or drop it (unfinished)")
    arguments = parser.parse_args(argv)

    images = arguments.images
    if images is None and arguments.data in COUNTED and arguments.split in ("train", "test"):
        images = SIZES[arguments.data][1 + (arguments.split == "test")]
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
    if arguments.t_train_max:
        schedule["t_train_max"] = arguments.t_train_max
        checked("--t-train-max", **schedule)
    config = replace(architecture(weights, size), **schedule)
    model = network(config, size, weights, path)
    digest = files.sha256(path)
    origin = {"source": place(source), "sha256": digest}
    shown = {key: value for key, value in plain(config).items() if key in KNOWN}
    root = {"data": arguments.data, "split": arguments.split}
    job = Job("checkpoints", f"{arguments.data}-{arguments.split}-import", "ddpm", ddpm.VERSION,
              shown, 0, {"source": digest}, "import", root)
    with Run(job, out=arguments.out, settings={"method": "ddpm", **origin, **root},
             force=arguments.force, wait=True, option="--out") as run:
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
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    path = unet / "diffusion_pytorch_model.safetensors"
    for file in (unet / "config.json", path):
        if not file.is_file():
            raise UserError(f"{file}: no such file; a diffusers folder holds config.json and "
                            f"{path.name}")
    config = read_config(unet / "config.json")
    check_keys(config, unet / "config.json", EXPECTED, {*FROM_WEIGHTS, *HARMLESS}, DEFAULTS)
    weights = unwrapped(reading.safetensors(path), path)
    levels = len({name.split(".")[1] for name in weights if name.startswith("down_blocks.")})
    renamed = {plain_name(name, levels): plain_shape(name, tensor)
               for name, tensor in weights.items()}
    for key, value in said_by(renamed).items():
        if config.get(key) is not None and config[key] != value:
            raise UserError(f"{unet}/config.json: {key} is {said(config[key])}, but by its weights "
                            f"{said(value)}")
    return path, renamed, side_of(config.get("sample_size"), unet / "config.json")


def read_config(path: Path) -> dict:
    """The keys of a small JSON file."""
    text = reading.text(path, MOST_CONFIG)
    try:
        found = reading.parse_json(text)
    except ValueError:
        raise UserError(f"{path} is damaged: not readable JSON") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no keys")
    return found


def check_keys(config: dict, path: Path, expected: dict[str, tuple], harmless: set[str],
               defaults: dict | None = None) -> None:
    """Refuse a config that would make another network or another noise, or may: a key that no one
    knows."""
    for key, values in expected.items():
        found = config.get(key, (defaults or {}).get(key, values[0]))
        if found not in values:
            raise UserError(f"{path}: {key} is {said(found)}, but only "
                            f"{' or '.join(map(said, values))} is known here")
    for key in config:
        if key not in expected and key not in harmless:
            raise UserError(f"{path}: the key {said(key)} is not known here and could make "
                            "another network; take it out if it changes nothing")


def said(value: object) -> str:
    """A config's value for people: it may be long."""
    return printable(value)[:60]


def number_in(value: object) -> float | int | None:
    """The number that a config's value is, or that its text says."""
    if isinstance(value, str):
        return read_number(value)
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if plain and abs(value) < math.inf else None


def side_of(value: object, path: Path) -> int | None:
    """The side of the images by `sample_size`: a number, its text, or a pair of equal ones."""
    if value is None:
        return None
    pair = value if isinstance(value, list) and len(value) == 2 else [value]
    sides = {number_in(side) for side in pair}
    side = sides.pop()
    if sides or side is None or side < 1 or side % 1:
        raise UserError(f"{path}: sample_size is {said(value)}, but the images of this network "
                        "are squares")
    return int(side)


def schedule_of(folder: Path) -> dict[str, float]:
    """The keys of TrainConfig that scheduler_config.json holds; without one, Ho et al.'s."""
    places = (folder / "scheduler_config.json", folder / "scheduler" / "scheduler_config.json")
    path = next((path for path in places if path.exists()), None)
    if path is None:
        return {}
    config = read_config(path)
    check_keys(config, path, SCHEDULE, {*NUMBERS, *SAMPLING})
    found = {}
    for theirs, ours in NUMBERS.items():
        if theirs in config:
            value = number_in(config[theirs])
            if value is None or (ours == "diffusion_steps" and (
                    value % 1 or not 2 <= value <= MOST_STEPS)):
                raise UserError(f"{path}: {theirs} is {said(config[theirs])}, which is no number "
                                "of a schedule")
            found[ours] = int(value) if ours == "diffusion_steps" else float(value)
    found["t_train_max"] = found.get("diffusion_steps", TrainConfig.t_train_max)
    checked(path, **found)
    return found


# pattern in diffusers' names -> in the plain ones (diffusers' UNet2DModel); up blocks count from
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
    found = (reading.safetensors if path.suffix == ".safetensors" else torchfile.load)(path)
    if isinstance(found, (list, tuple)):
        found = next((part for part in (*found[-1:], *found[:1]) if is_state_dict(part)), None)
    if not is_state_dict(found):
        raise UserError(f"{path}: neither ddim's list nor a state dict")
    return unwrapped(found, path)


def is_state_dict(value) -> bool:
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in value.items())


def unwrapped(weights: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The weights under the names they have without what wrapped the model, in whatever order, or
    parts of it (torch.compile). Raises UserError unless each is finite and stored whole."""
    found = {}
    for name, tensor in weights.items():
        plain = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if plain == "n_averaged":           # AveragedModel's count
            continue
        if plain in found:
            raise UserError(f"{path}: two tensors are {said(plain)}, with and without a wrapper")
        whole = tensor.layout == torch.strided and not tensor.is_quantized \
            and tensor.is_floating_point() \
            and tensor.nbytes <= tensor.untyped_storage().nbytes()
        if not whole or not torch.isfinite(tensor.detach().float().sum()):
            raise UserError(f"{path}: {said(name)} holds no weights: numbers that are not finite, "
                            "no floats, or less than its shape says")
        kept = tensor if tensor.dtype in checkpoint.HALVES else tensor.float()
        found[plain] = kept.detach().contiguous()
    return found


def architecture(weights: dict[str, torch.Tensor], size: int) -> TrainConfig:
    """Width, multipliers, blocks and attention as the names and shapes tell them."""
    try:
        width = len(weights["conv_in.weight"])
        levels = count(weights, r"down\.(\d+)\.block\.0\.conv1\.weight")
        multipliers = tuple(len(weights[f"down.{level}.block.0.conv1.weight"]) // max(width, 1)
                            for level in range(levels))
        blocks = count(weights, r"down\.0\.block\.(\d+)\.conv1\.weight")
    except (KeyError, TypeError):
        levels = blocks = 0
    if not levels or not blocks:
        raise UserError("these are not the weights of Ho et al.'s network: conv_in and down.* are "
                        "missing")
    if size % 2 ** (levels - 1):
        raise UserError(f"--size: {size} is no multiple of {2 ** (levels - 1)}, as a network of "
                        f"{levels} levels needs")
    attention = tuple(size >> level for level in range(levels)
                      if f"down.{level}.attn.0.q.weight" in weights)
    return checked("its weights", width=width, multipliers=multipliers, blocks=blocks,
                   attention=attention)


def count(weights: dict[str, torch.Tensor], pattern: str) -> int:
    """How many numbers the names hold in this place."""
    return len({match[1] for match in (re.fullmatch(pattern, name) for name in weights) if match})


def checked(where: object, **keys: object) -> TrainConfig:
    try:
        return TrainConfig(**keys)
    except ConfigError as error:
        raise UserError(f"{where}: {error.key}: {error}") from None


def said_by(weights: dict[str, torch.Tensor]) -> dict[str, object]:
    """UNet2DModel's keys (`FROM_WEIGHTS`) of the network that the weights are."""
    config = architecture(weights, 1 << 16)         # a side that any number of levels divides
    attends = [1 << 16 >> level in config.attention for level in range(len(config.multipliers))]
    blocks = [("Attn" if attention else "") + "{}Block2D" for attention in attends]
    return {"block_out_channels": [config.width * factor for factor in config.multipliers],
            "layers_per_block": config.blocks, "time_embedding_dim": 4 * config.width,
            "down_block_types": [block.format("Down") for block in blocks],
            "up_block_types": [block.format("Up") for block in reversed(blocks)]}


def network(config: TrainConfig, size: int, weights: dict[str, torch.Tensor], path: Path
            ) -> UNet:
    """The network with these weights. Nothing of its size is made before they fit: shapes are
    what a file claims."""
    try:
        with torch.device("meta"):
            model = UNet(config.width, config.multipliers, config.blocks, config.attention, size)
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path}: not the network of Ho et al.: "
                        f"{str(error).splitlines()[-1].strip()[:300]}") from None
    return model
