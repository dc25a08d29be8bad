"""From YAMLs and key=value words to settings and configs: what a line asks for, before it runs.

Files are merged from left to right as their `for:` and `presets:` say for the data set
(core.variants), another learner's protocol and the words that are typed go over them, and each key
is built by the dataclass that has it. Every mistake is a UserError that names its key, or its
file and line.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from core import config, manual, variants
from core.commands import COMMANDS, Command
from core.config import TYPED, Place
from core.datasets import DataSettings, root_of
from core.device import DeviceSettings
from core.errors import UserError
from core.methods import fact, find_method, is_method
from core.ranges import Count, Keys, Range, Share

SMOKE_ROWS = 320
# Embedded, and large enough for every method: what --smoke reads unless data= is typed.
SMOKE_DATA = {"data": "digits", "size": "32", "split": "train", "test": "null", "classes": "[]",
              "class_fraction": "1.0"}
CHOOSING = ("data", "like", "preset", "protocol")   # keys that pick what is read of YAMLs
Seed = Annotated[int, Range(at_least=0, below=2**32)]


@dataclass(frozen=True)
class Settings(Keys):
    """Keys at the top level that every command takes, beside data and device settings."""

    method: str                     # which module of poisons/, purifiers/ or learners/
    # one of the YAML's `presets:`; without those, a name for the work
    preset: str = ""
    out: Place | None = None        # folder to make; null: runs/<kind>/<name>-<fingerprint>
    seed: Seed | None = None        # of every random choice; null: 0, or the checkpoint's
    checkpoint: Place | None = None     # purify.py: a folder made by train_vae.py or train_ddpm.py
    # evaluate.py: another learner's YAML, whose keys go over those that this one shares with it
    protocol: Place | None = None
    # evaluate.py: clean labelled images for a learner that needs some, named as `data` is; null:
    # the data set behind the images
    clean: Place | None = None
    # evaluate.py: which rows of it, as `split`; OP's release: 5,000 training images
    clean_split: str = "last:5000"
    # evaluate.py: keep the trained weights beside the record, as network.safetensors
    keep_network: bool = False
    fraction: Share = 1.0           # python -m poisons: share of the images that are poisoned
    # python -m poisons: poison all and take a part, or that part alone
    craft_on: Literal["all", "part"] = "all"
    limit: Count | None = None      # --limit: only the first so many rows
    smoke: bool = False             # --smoke: end to end in seconds


# --- which values of the YAMLs ---------------------------------------------------------------


def read_variant(yamls: list[str], overrides: list[str], smoke: bool, data_set: str | None,
                 command: Command) -> tuple[config.Node, str, str | None]:
    """The YAMLs as their `for:` and `presets:` say for this data set, under `protocol` and what is
    typed; a note where they have no values of their own for it; and that data set."""
    try:
        tree = config.read(yamls)
    except UserError as error:
        raise UserError(f"{error}{variants.new_form(yamls)}") from None
    words = [word for word in overrides if word.partition("=")[0] in CHOOSING]
    typed = config.read([], words).value
    named = {key: config.build(Place | None if key == "protocol" else str | None, node, key)
             for key, node in {**tree.value, **typed}.items() if key in CHOOSING}
    if smoke and "data" not in typed:
        data_set = SMOKE_DATA["data"]
    preset = named.get("preset")
    picked = preset if "preset" in typed or "presets" in tree.value else None
    sets = variants.meant_for(tree, picked)
    like = named.get("like")
    if like is not None and sets and like not in sets:
        raise UserError(f"like: {yamls[-1]} has no values for '{like}'"
                        + config.suggest(like, sets, "it has some for"))
    data_set = like or data_set or root_of(named.get("data"))
    note = ""
    if sets and data_set not in sets:
        note = (f"{yamls[-1]} has no values of its own for {data_set or 'these images'}; those for "
                f"{sets[0]} are used (like=NAME takes those for {', '.join(sets)})")
    tree = variants.choose(tree, picked, data_set)
    protocol = named.get("protocol") if "protocol" in command.own_keys else None
    protocol = protocol and manual.yaml_of(command.room, protocol, "protocol")
    stem = yamls and config.as_path(yamls[0]).stem
    if protocol is not None:
        tree, replaced = under_protocol(tree, protocol, data_set, command)
        if replaced and picked:
            raise UserError(f"preset: {picked} is keys of {yamls[-1]}, all of which protocol= "
                            "replaces: leave one of the two out, and type what is to be changed")
        stem = None if replaced else stem
    for word in overrides:
        config.apply(tree, word)
    if yamls and (picked or not preset or protocol):
        parts = [stem, picked, protocol and Path(protocol).stem]
        tree.value["preset"] = config.Node("_".join(part for part in parts if part), TYPED)
    return tree, note, data_set


def under_protocol(tree: config.Node, path: str, data_set: str | None, command: Command
                   ) -> tuple[config.Node, bool]:
    """A learner's YAML with the protocol of another's, and whether both are of one method, so that
    the other's is all of it: all keys of that method, which the learner's goes on from, whether
    its YAML writes them or leaves them at their defaults. What else that YAML says (`split:
    first:40000`) goes over too."""
    try:
        other = variants.choose(config.read([path]), None, data_set).value
    except UserError as error:
        raise UserError(f"protocol: {error}{variants.new_form([path])}") from None
    names, modules = [], []
    for found, where in ((tree.value, "protocol"), (other, f"protocol: {path}")):
        if "method" not in found:
            raise UserError(f"{where}: a learner's YAML with a `method:` is needed")
        names.append(config.build(str, found["method"], "method"))
        modules.append(find_method(command.room, names[-1], found["method"].origin))
    own, its = modules
    if not issubclass(own.Config, its.Config):
        standard = find_method(command.room, "standard", "protocol")
        raise UserError(f"protocol: {path} is of {names[1]}, which {names[0]} does not go on from; "
                        + ("name one of standard's, such as configs/learners/cpu12.yaml"
                           if issubclass(own.Config, standard.Config) else
                           f"{names[0]} has a schedule of its own: leave protocol= out, and type "
                           f"what is to be changed ({names[0]}.epochs=...)"))
    section = other.pop(names[1], config.Node({}, path))
    values = config.plain(config.build(its.Config, section, names[1]))
    for key in ("method", "data", "preset"):
        other.pop(key, None)
    over = config.parse(config.dump({names[0]: values}), path)
    return config.merge(tree, config.Node(other | over.value, path)), own is its


# --- the method's section -------------------------------------------------------------------


def known_keys(module: ModuleType, method: str) -> list[str]:
    """Dotted names of a method's keys, those of its training last."""
    halves = {method: module.Config, f"{method}.train": getattr(module, "TrainConfig", None)}
    return [f"{prefix}.{field.name}" for prefix, half in halves.items() if half
            for field in dataclasses.fields(half)]


def check_section(module: ModuleType, section: config.Node, method: str, command: Command
                  ) -> None:
    """Raise UserError for an unknown key, and for one that is typed to the wrong command: training
    reads `train:` alone, and applying what was trained reads the rest."""
    trained, trains = hasattr(module, "TrainConfig"), command.trains
    known = known_keys(module, method)
    for key, node in section.value.items() if isinstance(section.value, dict) else ():
        name = f"{method}.{key}"
        if name not in known and not (trained and key == "train"):
            raise UserError(f"{node.origin}: unknown key '{name}'{config.suggest(key, known)}")
        if trained and trains != (key == "train"):
            for given in given_keys(node, name):
                owner = COMMANDS["purify" if trains else fact(module, "TRAINED_BY")]
                raise UserError(f"{TYPED}: {given}: {command.line} takes none; it is a key of "
                                f"{owner.line}")


def given_keys(node: config.Node, name: str) -> Iterator[str]:
    """Dotted names of the values at or below a node that came as key=value."""
    if isinstance(node.value, str) or (node.origin == TYPED and isinstance(node.value, list)):
        if node.origin == TYPED:
            yield name
        return
    items = node.value.items() if isinstance(node.value, dict) else enumerate(node.value)
    for key, item in items:
        yield from given_keys(item, f"{name}.{key}")


def build_section(module: ModuleType, section: config.Node, method: str) -> tuple[Any, Any]:
    """The method's Config, and the TrainConfig from `train:` inside its section if it has one."""
    train_config = None
    if hasattr(module, "TrainConfig") and isinstance(section.value, dict):
        train = section.value.pop("train", config.Node({}, section.origin))
        train_config = config.build(module.TrainConfig, train, f"{method}.train")
    return config.build(module.Config, section, method), train_config


# --- the top level ---------------------------------------------------------------------------


def build_settings(tree: config.Node, method: str, module: ModuleType):
    """Split the top level among the three settings; an unknown key names the nearest of all."""
    groups = (Settings, DataSettings, DeviceSettings)
    fields = {field.name: group for group in groups for field in dataclasses.fields(group)}
    known, room = [*fields, method, *known_keys(module, method)], module.__name__.split(".")[0]
    for key, node in tree.value.items():
        if key not in fields and is_method(room, key):
            raise UserError(f"{node.origin}: unknown key '{key}': that is another method's, and "
                            f"this line runs {method}" + (
                                "; protocol= puts a learner under another's schedule"
                                if room == "learners" else ""))
        if key not in fields:
            raise UserError(f"{node.origin}: unknown key '{key}'{config.suggest(key, known)}")
    built = []
    for group in groups:
        part = {key: node for key, node in tree.value.items() if fields[key] is group}
        built.append(config.build(group, config.Node(part, tree.origin), ""))
    return tuple(built)


# --- --smoke ---------------------------------------------------------------------------------


def smoke_settings(tree: config.Node) -> None:
    """A smoke test's top level: few rows, no compiling, and data that need no download (a YAML
    that itself says `smoke: true`, such as a run's config.yaml, keeps its own)."""
    for key, text in (("limit", str(SMOKE_ROWS)), ("compile", "false")):
        tree.value.setdefault(key, config.Node(text, "--smoke"))
    given = {key for key, node in tree.value.items() if node.origin == TYPED}
    if "smoke" in given and "data" not in given:
        tree.value |= {key: config.parse(text, "--smoke") for key, text in SMOKE_DATA.items()
                       if key not in given}


def smoke_node(module: ModuleType) -> config.Node:
    """A module's SMOKE overrides as nodes; dotted keys reach into `train`."""
    tree = config.Node({}, "--smoke")
    for key, value in module.SMOKE.items():
        config.apply(tree, f"{key}={value}")
    return tree
