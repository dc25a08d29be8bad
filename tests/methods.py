"""Every method, found by name, and how a test runs it small, through its own command.

A trained purifier is two pieces of work: `half` is "train" for its training, "" for all else.
"""

import functools
import importlib
import json
from pathlib import Path

import numpy as np
import torch
from conftest import Outcome, run_command, succeed, write_imageset

import evaluate
import purify
import train_ddpm
import train_vae
from core import config
from core.methods import fact, list_methods, trained_as
from models.noise_unet import NoiseUNet
from poisons.__main__ import main as poison_main
from scripts.tables import plan

ROOMS = ("poisons", "purifiers", "learners")
MODULES = [(room, name) for room in ROOMS for name in list_methods(room)]
POISONS, PURIFIERS, LEARNERS = ([name for at, name in MODULES if at == room] for room in ROOMS)
APPLYING = {"poisons": "poison", "purifiers": "purify", "learners": "evaluate"}     # room: command
COMMANDS = {"poisons": poison_main, "purifiers": purify.main, "learners": evaluate.main}
STEPS = {"poison": poison_main, "train_vae": train_vae.main, "train_ddpm": train_ddpm.main,
         "purify": purify.main, "evaluate": evaluate.main}                          # of tables
# SMOKE's value -> one for sets of 40 rows
TINY = {"width": (8, 2), "batch_size": (64, 16), "sample_every": (4, 0)}


def make_missing(cells: list[plan.Cell]) -> None:
    """Make the artefacts of a table in this process: starting Python takes longest."""
    for artefact in plan.wanted(cells, {}):
        succeed(STEPS[artefact.step.command], *artefact.arguments)


def module_of(room: str, name: str):
    return importlib.import_module(f"{room}.{name}")


HALVES = [(*module, half) for module in MODULES for half in ("train", "")
          if not half or hasattr(module_of(*module), "TrainConfig")]


def smoke_values(room: str, name: str, half: str = "", *, tiny: bool = False) -> dict:
    """What SMOKE says for one half, by dotted key; `tiny`: for a set of 40 rows."""
    values = {}
    for key, value in module_of(room, name).SMOKE.items():
        if key.startswith("train.") == bool(half):
            key = key.removeprefix("train.")
            usual, tinier = TINY.get(key.rpartition(".")[2], (None, None))
            values[key] = tinier if tiny and value == usual else value
    return values


def words(name: str, half: str, values: dict) -> list[str]:
    """Dotted keys and their values as key=value arguments."""
    prefix = f"{name}.{half}." if half else f"{name}."
    return [f"{prefix}{key}={typed(json.dumps(value))}" for key, value in values.items()]


@functools.cache
def typed(value: str) -> str:
    """A JSON value as it is typed behind key=; there are thousands."""
    return config.dump(json.loads(value)).strip().removesuffix("...").strip()


def smoke_keys(room: str, name: str, half: str = "", *, tiny: bool = False) -> list[str]:
    return words(name, half, smoke_values(room, name, half, tiny=tiny))


def config_of(room: str, name: str, half: str, values: dict):
    """The Config or TrainConfig that these values, by dotted key, give."""
    tree = config.read([], words("it", "", values)).value.get("it", config.Node({}, "none"))
    module = module_of(room, name)
    return config.build(module.TrainConfig if half else module.Config, tree, "")


def smoke_config(room: str, name: str, *, tiny: bool = False):
    return config_of(room, name, "", smoke_values(room, name, tiny=tiny))


# --- running one -----------------------------------------------------------------------------


def line_of(room: str, name: str, half: str, clean: Path, *, tiny: bool = False):
    """The main that runs a method small on a set, and its arguments without `out=`."""
    main = training_of(name) if half else COMMANDS[room]
    arguments = [f"method={name}", f"data={clean}", *smoke_keys(room, name, half, tiny=tiny)]
    if room == "purifiers" and not half:
        arguments += checkpoint_of(name, clean, tiny=tiny)
    if room == "learners" and tiny:
        arguments.append(f"test={clean}")
    if room == "learners":
        arguments += clean_keys(name, clean)
    if not half:
        arguments += path_keys(room, name, clean, tiny=tiny)
    return main, arguments


def run_small(room: str, name: str, half: str, clean: Path, out: Path, *arguments: str) -> Outcome:
    """Run a method on a set of a few rows."""
    main, line = line_of(room, name, half, clean, tiny=True)
    return run_command(main, *line, *arguments, f"out={out}")


def poisoned_by(name: str, clean: Path, out: Path, *arguments) -> Path:
    main, line = line_of("poisons", name, "", clean, tiny=True)
    return succeed(main, *line, *arguments, f"out={out}")


def purified_by(name: str, clean: Path, out: Path, *arguments) -> Path:
    main, line = line_of("purifiers", name, "", clean, tiny=True)
    return succeed(main, *line, *arguments, f"out={out}")


def path_keys(room: str, name: str, clean: Path, *, tiny: bool = False) -> list[str]:
    """For a poison that must read something: a set with its p_hat, which reuse takes, or for DC the
    weights of a generator."""
    paths = needed_paths(room, name)
    if room != "poisons" or not paths:
        return []
    if name == "dc":
        return [f"{name}.{key}={generator_beside(clean)}" for key in paths]
    source = clean.parent / "with-p-hat"
    if not source.exists():
        main, line = line_of("purifiers", "dvae", "", clean, tiny=tiny)
        succeed(main, *line, "dvae.save_perturbation=true", f"out={source}")
    return [f"{name}.{key}={source}" for key in paths]


def generator_beside(clean: Path) -> Path:
    """Weights of a U-Net as DC's release keeps them, made once."""
    path = clean.parent / "generator.pth"
    if not path.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            weights = NoiseUNet().state_dict()
        weights["conv_last.1.weight"] *= 50         # of a fresh one little is left in eval mode
        torch.save(weights, path)
    return path


def needed_paths(room: str, name: str) -> list[str]:
    """The keys of a method's PATHS that may not be null (one of its training may)."""
    usual = module_of(room, name).Config()
    return [key for key in fact(module_of(room, name), "PATHS")
            if getattr(usual, key, None) is not None]


def clean_keys(name: str, clean: Path) -> list[str]:
    """`clean=...` for a learner of clean labelled images: the last ten rows as a set of their own.
    """
    if not fact(module_of("learners", name), "NEEDS_CLEAN"):
        return []
    path = clean.parent / "beside"
    if not path.exists():
        images, labels = (np.load(clean / f"{part}.npy") for part in ("images", "labels"))
        classes = len(json.loads((clean / "meta.json").read_text())["classes"])
        write_imageset(path, images[-10:], labels[-10:], classes, root={"data": "beside"})
    return [f"clean={path}"]


def trainer_of(name: str) -> str | None:
    """The purifier whose checkpoint this one applies; None if it is not trained."""
    return trained_as(module_of("purifiers", name))


def training_of(name: str):
    """The main that trains this purifier."""
    mains = {"train_vae": train_vae.main, "train_ddpm": train_ddpm.main}
    return mains[fact(module_of("purifiers", name), "TRAINED_BY")]


def checkpoint_of(name: str, clean: Path, *, tiny: bool = False) -> list[str]:
    """`checkpoint=...` for a trained purifier (made once, with seed 0), nothing for another."""
    trainer = trainer_of(name)
    if trainer is None:
        return []
    path = clean.parent / trainer
    if not path.exists():
        main, line = line_of("purifiers", trainer, "train", clean, tiny=tiny)
        succeed(main, *line, f"out={path}")
    return [f"checkpoint={path}"]
