"""Every key of every method does something: another value gives other bytes, or is refused.

What is tried follows from the key's type and value; TRIED has what must be chosen by hand. A key
that several methods have from one class is tried in the first of them, with `-m slow` in all. But
a learner that extends another's Config is tried with its own keys and with INHERITED alone.
"""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union

import numpy as np
import pytest
from conftest import ROOT, digest, log_of, write_imageset
from methods import HALVES, config_of, module_of, run_small, smoke_values, words

from core import config
from core.errors import UserError

ROWS = 40                       # in batches of 16: one that is not whole is left
pytestmark = pytest.mark.usefixtures("short_refit")
RESNET = {"architecture": "resnet18", "width": 2}
MEAN_STD = {"mean": [0.5, 0.5, 0.5], "std": [1.0, 1.0, 1.0]}
SQUEEZE = {"lpips_weights": str(ROOT / "core/weights/squeezenet1_1.npz")}
LPIPS = {"penalties": "psnr+ssim+lpips", "min_psnr": 0.0, "min_ssim": 0.0, "max_lpips": 0.0,
         "lpips_net": "squeeze", "lpips_resize": 17, "spatial": False}

# A key as it is typed, or its end -> values to try (None: by its type), and keys beside it that it
# acts together with.
TRIED: dict[str, tuple[list | None, dict[str, Any]]] = {
    "architecture": (["two_linear"], {"architecture": "linear"}),
    "width": ([3], RESNET),
    "stem": (["imagenet"], RESNET),
    "pretrained.stem": (["cifar"], RESNET),
    "pretrained.freeze": (["body"], {"architecture": "two_linear"}),
    "train.width": ([3], {}),
    "train.stem": (["imagenet"], {}),
    "milestones": ([[1]], {"schedule": "multistep", "epochs": 2, "milestones": [2]}),
    "gamma": ([0.5], {"schedule": "multistep", "epochs": 2, "milestones": [1]}),
    "schedule": (None, {"epochs": 3, "milestones": [1]}),
    **dict.fromkeys(("cp.schedule", "tue.schedule"), (None, {})),
    "mean": ([[0.1, 0.2, 0.3]], MEAN_STD),
    "std": ([[0.2, 0.5, 0.9]], MEAN_STD),
    "clip_norm": ([1e-3], {}),
    "epsilon": ([1 / 255], {}),                 # a few small steps reach no further
    "stop_error": ([0.99], {}),
    "decay_every": ([1], {}),
    "warmup_epochs": ([3], {}),
    "shuffle_block": ([2], {}),
    "pil.surrogate.shuffle_block": ([2], {"shuffle": True}),    # by default: no
    "tap.surrogate.optimizer": (["adam"], {"nesterov": False}),
    "views": ([{"grey": 1}], {"crop_padding": 0, "flip": False}),
    "neighbours": ([1, 40], {}),
    "views.size": ([4], {}),
    "views.scale": ([[0.1, 0.2]], {}),
    "views.ratio": ([[1.0, 1.1]], {}),
    "views.resize": ([1.25], {"scale": None}),
    "views.blur": ([1.0], {}),
    "views.blur_sigma": ([[1.0, 1.5]], {"blur": 1.0}),
    "views.blur_kernel": ([5], {"blur": 1.0, "blur_kernel": 3}),
    "probe.milestones": ([[1]], {}),
    "probe.gamma": ([0.5], {"milestones": [1]}),
    "adversarial.norm": (["l2"], {"epsilon": 0.5}),
    "ar.finder": (["released"], {"coefficients": "find"}),
    "ar.norm": (["linf"], {"radius": 0.2}),
    "uc.width": ([3], {}),
    "gue.width": ([3], {}),
    "cp.learning_rate": ([0.01], {}),           # others are the default of null
    "tue.learning_rate": ([0.01], {}),
    "temperature": ([0.1], {}),
    "last_epoch": ([1], {}),
    "cp.start": (["nowhere"], {"kind": "samplewise"}),      # refused: there is none
    "dual_branch": (["paper"], {"algorithm": "byol"}),
    **{f"{name}.{key}": ([value], {"algorithm": "moco"}) for name in ("cp", "tue")
       for key, value in (("queue", 16), ("target_momentum", 0.0),
                          ("update_in_noise_steps", False))},
    "dune.epsilon": ([1 / 255], {"step_size": 2 / 255}),
    "dune.penalties": (["none"], {"min_psnr": 40.0}),
    "sep.surrogate.warmup_epochs": (      # theirs climbs by itself
        [3], {"schedule": "multistep", "milestones": [2]}),
    "dune.surrogate.warmup_epochs": ([3], {"schedule": "multistep", "milestones": [2]}),
    # on a network that colours hardly move
    "dune.min_ssim": ([1.0], {"min_psnr": 0.0, "surrogate.architecture": "resnet18",
                              "surrogate.width": 2}),
    "dune.max_lpips": ([1.0], {**LPIPS, "swarm.start": 0.3}),
    "dune.swarm.images": ([1], {}),
    "dune.swarm.pull_own": ([0.9], {"iterations": 9}),
    "dune.lpips_net": (["alex"], {**LPIPS, **SQUEEZE}),     # refused, as jcdp's
    "dune.lpips_weights": (["nowhere"], LPIPS),
    "dune.lpips_resize": ([19], LPIPS),
    "norm_images": ([4], RESNET),
    "noise_batch": ([16], {}),
    "random_signs.rounding": (["floor"], {"epsilon": 8.5 / 255}),   # whole levels round alike
    "mi_ue.rounding": (["round"], {"step_size": 1.6 / 255}),    # SMOKE's steps are whole levels
    "mi_ue.temperature": ([1.0], {}),           # half or twice of it: the same signs
    "cuda.kernel": ([5], {}),
    "blur.shape": (["mean"], {}),
    "blur.kernel": ([5], {"shape": "mean"}),
    "blur.sigma": ([1.0], {}),                  # half or twice what is published changes nothing
    "median.kernel": ([5], {}),
    "bilateral.diameter": ([5], {}),
    "hypo.norm": (["l2"], {"epsilon": 0.5}),
    "ueraser.form": (["cheap"], RESNET),        # a linear network's hardest copies are the same
    "sep.inner_steps": ([3], {"loss": "fa_vr"}),
    "kld_weight_low": ([0.1], {"kld_target": 0.0}),
    "dvae.train.kld_weight_low": ([0.1], {"stages": [{"kld_target": 0.0, "output": "both"}]}),
    "dvae.train.p_hat_floor": ([100.0], {}),
    "ddpm.train.width": ([64], {}),
    "ddpm.train.warmup_steps": ([3], {}),
    "ddpm.train.ema_decay": ([0.0], {}),        # a higher one is a later matter: ema_start
    "ddpm.train.sample_every": ([2], {}),
    "ddpm.train.multipliers": ([[1, 2]], {}),
    "ddpm.train.attention": ([[8]], {}),
    "ddpm.train.crop": ([4], {}),
    "evaluations": ([1], {"sampler": "subsampled"}),
    "start_index": ([2], {}),                   # t_star of SMOKE: all else is refused
    "reweighted_head.c": ([1e-3], {"refit": "frozen"}),
    "patience": ([1], {"epochs": 4, "learning_rate": 1.0}),     # soon worse than before
    "jcdp.lpips_net": (["alex"], SQUEEZE),      # refused: these are another network's weights
    "chain.links.0.keys": ([["gray.none=1"]], {}),          # refused: gray has no keys
    "chain.links.1.keys": ([["jpeg.quality=90"]], {}),
}
# Methods that learn from a network's features alone: a linear one's are the pixels.
OF_FEATURES = {"mi_ue", "uc"}
# Of what a learner has from another's Config: these show that its config reaches the loop.
INHERITED = {"epochs", "learning_rate"}
# Keys of which every other value is refused, for a method that has no use for them.
REFUSED = {"sep.surrogate.steps", "dune.surrogate.steps", "surrogate.test_every"}
# Keys on which no byte has to depend, and why.
INERT = {
    **dict.fromkeys(("ddpm.fit", "ddpm.overlap", "jcdp.fit", "jcdp.overlap"),
                    "for a prior of another size than the images (tests/test_fit.py)"),
    "probe.data": "a set that nobody changed is the clean one: test_pretraining.py has another",
    "ddpm.batch_size": "how many images pass the network at once: speed, and rounding at most",
    "jcdp.batch_size": "how many images pass the network at once: speed, and rounding at most",
}


# Choices that come to the same in so small a form, and why.
SAME = {
    "ar.coefficients": ({"find", "auto"}, "auto finds them where none are published"),
    "sampler": ({"subsampled", "ancestral"}, "every step is visited"),
    "rounding": ({"wrap", "floor"}, "nothing leaves [0, 1]"),
    "jcdp.target_noise": ({"image", "none"}, "at these steps abar is 1 but for some 1e-4"),
}


def as_tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else ()


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, type]]:
    """(dotted key, type, value, class that it is from) of everything that can be set in a Config.
    """
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        own, key = getattr(value, field.name), f"{prefix}{field.name}"
        parts = {f"{key}.": own} if dataclasses.is_dataclass(own) else {
            f"{key}.{i}.": item for i, item in enumerate(as_tuple(own))
            if dataclasses.is_dataclass(item)}
        if not parts:
            yield key, hints[field.name], own, next(
                kind for kind in reversed(type(value).__mro__)
                if field.name in vars(kind).get("__annotations__", ()))
        for dotted, part in parts.items():
            yield from leaves(part, dotted)


def others(kind: Any, value: Any) -> list:
    """Other values of this type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        inner = next(a for a in arguments if a is not type(None))
        return others(inner, {int: 0, float: 0.0}.get(inner)) if value is None \
            else [*others(inner, value), None]
    if origin is Literal:
        return [choice for choice in arguments if choice != value]
    if kind is bool:
        return [not value]
    if kind is int:
        return [value + 1, value - 1, 2 * value]
    if kind is float:
        return [2 * value, value / 2, 0.5, 0.0]
    if kind is config.Place:
        return ["nowhere"]
    raise AssertionError(f"no values of {kind} to try: add some to TRIED")


def found_in(table: Any, name: str, half: str, key: str) -> str | None:
    """The entry that a table has for a key: as it is typed, or for its end."""
    words = [name, *filter(None, [half]), *key.split(".")]
    forms = [".".join(words[start:]) for start in range(len(words))]
    return next((form for form in forms if form in table), None)


def usual_values(room: str, name: str, half: str) -> dict:
    """The smallest form of a method: its network is linear where that can be had. Lists of sections
    are written out, so that keys reach into them."""
    values = smoke_values(room, name, half, tiny=True)
    usual = config_of(room, name, half, values)
    lists = {field.name: config.plain(getattr(usual, field.name))
             for field in dataclasses.fields(usual)
             if dataclasses.is_dataclass(next(iter(as_tuple(getattr(usual, field.name))), None))}
    linear = {key: "linear" for key, *_ in leaves(usual)
              if key.endswith("architecture") and name not in OF_FEATURES}
    return values | lists | linear


def own_keys(room: str, name: str) -> set[str] | None:
    """Of a learner that extends another's Config: the keys that are new, or have another default.
    None for any other method."""
    mine, *parents = module_of(room, name).Config.__mro__
    parent = next((kind for kind in parents if hasattr(sys.modules[kind.__module__], "VERSION")),
                  None)
    if room != "learners" or parent is None:
        return None
    known = {field.name: field.default for field in dataclasses.fields(parent)}
    return {field.name for field in dataclasses.fields(mine)
            if field.name not in known or field.default != known[field.name]}


def cases() -> Iterator[tuple[tuple[str, str, str, str], Any]]:
    """(room, method, half, key) of every key to try, and what it has in common with the same key of
    other methods."""
    for room, name, half in HALVES:
        own = own_keys(room, name)
        config = config_of(room, name, half, usual_values(room, name, half))
        for key, *_, owner in leaves(config):
            case, last = (room, name, half, key), key.rpartition(".")[2]
            if own is None:
                yield case, (owner, last)
            elif key.partition(".")[0] in own | INHERITED:
                yield case, case


KEYS = dict(cases())
FIRST = {origin: case for case, origin in reversed(KEYS.items())
         if not found_in(REFUSED, *case[1:])}


@pytest.fixture(scope="module")
def sets(digits, tmp_path_factory) -> dict[str | None, Path]:
    """What a method gets: digits of 8x8 pixels, or of 16x16 where its patch is of 8 or more; two
    classes for AR, which has to look for processes then, and colour for what takes it away."""
    place, labels = tmp_path_factory.mktemp("keys"), digits.labels[:ROWS]
    images = digits.images[:ROWS, ::2, ::2]
    large = write_imageset(place / "16x16" / "clean", digits.images[:ROWS], labels)
    two = write_imageset(place / "two" / "clean", images, labels % 2, 2)
    red = write_imageset(place / "red" / "clean", images // np.uint8([1, 2, 4]), labels)
    return {None: write_imageset(place / "8x8" / "clean", images, labels),
            "ar": two, "lsp": large, "cutout": large,
            **dict.fromkeys(("advcl_reduced", "byol", "corrupted", "moco", "simclr"), red)}


MADE: dict[str, tuple[Path | None, Any]] = {}


def make(room: str, name: str, half: str, values: dict, clean: Path, out: Path
         ) -> tuple[Path | None, Any]:
    """The folder of what these values give, and its digests: of arrays, weights and pictures, of
    learning what was measured. If the method refuses them: None and its message."""
    outcome = run_small(room, name, half, clean, out, *words(name, half, values))
    if outcome.status:
        assert outcome.error, outcome.stderr
        return None, outcome.error
    if room == "learners":
        return out, log_of(out)
    return out, {path.name: digest(path) for path in out.iterdir()
                 if path.suffix in (".npy", ".safetensors", ".png")}


def purified_with(name: str, checkpoint: Path, clean: Path) -> str:
    """What the images become with a checkpoint: some keys of a training act there alone."""
    outcome = run_small("purifiers", name, "", clean,
                        checkpoint.with_name(f"{checkpoint.name}-purified"),
                        f"checkpoint={checkpoint}")
    assert outcome.status == 0, outcome.stderr
    return digest(outcome.path / "images.npy")


@pytest.mark.parametrize(("room", "name", "half", "key"), [
    pytest.param(*case, id="-".join(filter(None, case)),
                 marks=[] if case in FIRST.values() else pytest.mark.slow) for case in KEYS])
def test_a_key_does_something(room, name, half, key, sets, tmp_path):
    clean = sets.get(name, sets[None])
    if reason := INERT.get(found_in(INERT, name, half, key)):
        pytest.skip(reason)
    tried, together = TRIED.get(found_in(TRIED, name, half, key), (None, {}))
    prefix = key.removesuffix(key.rpartition(".")[2])
    values = usual_values(room, name, half) | {
        f"{prefix}{other}": value for other, value in together.items()}
    [(kind, value)] = [(kind, value) for found, kind, value, _
                       in leaves(config_of(room, name, half, values)) if found == key]
    case = json.dumps([room, name, half, values])
    if case not in MADE:
        MADE[case] = make(room, name, half, values, clean, clean.parent / f"usual{len(MADE)}")
    folder, usual = MADE[case]
    assert folder, usual

    allowed, seen, acts = [], [(value, folder, usual)], False
    choices = typing.get_origin(kind) is Literal            # each of them does something else
    same, _ = SAME.get(found_in(SAME, name, half, key), (set(), ""))
    for number, other in enumerate(others(kind, value) if tried is None else tried):
        changed = values | {key: other}
        try:
            config_of(room, name, half, changed)
        except UserError:
            continue
        allowed.append(other)
        out, found = make(room, name, half, changed, clean, tmp_path / f"{number}")
        alike = [known for known, at, its in seen if its == found and not (
            half and purified_with(name, out, clean) != purified_with(name, at, clean))]
        acts = acts or not alike
        if acts and not choices:
            break
        for known in alike if choices else ():
            assert {known, other} <= same, f"{name}.{key}: {other} and {known} give the same bytes"
        seen.append((other, out, found))
    assert acts or not allowed, f"{name}.{key}: {value} and {allowed} give the same bytes"
    assert bool(allowed) != bool(found_in(REFUSED, name, half, key)), f"{name}.{key}: see REFUSED"


def test_a_learner_is_tried_with_what_it_adds_to_anothers():
    """And with nothing less: smoothing is standard with a key of its own."""
    tried = {name: {key for room, at, _, key in KEYS if (room, at) == ("learners", name)}
             for name in ("smoothing", "standard")}
    assert tried["smoothing"] == INHERITED | {"label_smoothing"}
    assert tried["standard"] > INHERITED | {"width", "batch_size"}
    assert all(FIRST[KEYS[case]] == case for case in KEYS if case[1] == "smoothing")


def test_the_tables_name_keys():
    """So that they cannot outlive what they speak of."""
    used = {found_in(table, *case[1:]) for case in KEYS for table in (TRIED, REFUSED, INERT, SAME)}
    assert {*TRIED, *REFUSED, *INERT, *SAME} <= used
