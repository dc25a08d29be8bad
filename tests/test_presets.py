"""Every preset on every data set that its YAML has values for: that their keys hold together.

A preset goes over the section of a data set, so one that was written for CIFAR-10 can meet a budget
or a length that is not CIFAR-10's.
"""

import pytest
from conftest import CONFIGS
from methods import APPLYING

from core import config, variants
from core.methods import find_method
from core.request import parse
from learners import standard

PAGES = [(room, path) for room in APPLYING for path in sorted((CONFIGS / room).glob("*.yaml"))]


def forms(path) -> list[tuple[str, ...]]:
    """(data set, preset) in words, of all that a YAML has."""
    tree = config.read([path])
    presets = [None, *variants.split(tree)[2]]
    return [(f"like={name}", *([f"preset={preset}"] if preset else []))
            for preset in presets for name in variants.meant_for(tree, preset)]


def method(path) -> str:
    return config.text(config.read([path]).value["method"])


CHECKED = ("rem", "sem", "ueraser", "jcdp", "ddpm")
CASES = [pytest.param(room, path, words, id=" ".join([path.stem, *words]))
         for room, path in PAGES if method(path) in CHECKED for words in forms(path)]


def found(room: str, path, *words: str):
    """The request and the keys of its training, where it has one."""
    command = APPLYING[room]
    request = parse([str(path), "data=cifar10", *words], "", command)
    trains = getattr(request.module, "TRAINED_BY", None)
    return request, trains and parse([str(path), "data=cifar10", *words], "", trains).train_config


@pytest.mark.parametrize(("room", "path", "words"), CASES)
def test_a_preset_fits_the_data_set(room, path, words):
    request, training = found(room, path, *words)
    keys = request.config
    if request.method in ("rem", "sem"):
        reach = keys.inner_steps * keys.inner_step_size     # SEM draws in the adversary's place
        assert reach >= keys.adversary or request.method == "sem"
        assert keys.steps * keys.step_size >= keys.epsilon
        assert keys.decay_every < keys.train_steps
    elif request.method == "ueraser":
        assert keys.copies_epochs is None or keys.copies_epochs < keys.epochs
    elif request.method == "jcdp":
        assert keys.start in (keys.t_star - 1, keys.t_star)
    if training is not None and hasattr(training, "ema_start"):
        stays = training.ema_decay**training.steps if training.ema_start == "init" else 0
        assert stays < 0.05
        assert (training.warmup_steps or 0) < training.steps / 2


def shortens(path) -> bool:
    """Whether `protocol=` gives this learner its schedule."""
    return method(path) != "standard" and issubclass(
        find_method("learners", method(path)).Config, standard.Config)


SHORT = [pytest.param(path, words, id=" ".join([path.stem, *words]))
         for room, path in PAGES if room == "learners" and shortens(path)
         for words in forms(path) if words[0] == "like=small"]


@pytest.mark.parametrize(("path", "words"), SHORT)
def test_the_small_protocol_fits_a_preset(path, words):
    """What `--small` makes of a learner: its schedule is cpu12's, and its own keys fit that."""
    keys = parse([str(path), "data=cifar10", *words, "protocol=cpu12"], "", "evaluate").config
    assert (keys.epochs, keys.schedule) == (12, "onecycle")
    if method(path) == "ueraser":
        assert keys.copies_epochs is None or keys.copies_epochs < 12


@pytest.mark.parametrize("like", ["cifar10", "small", "imagenet100", "pets", "photographs"])
@pytest.mark.parametrize("preset", ["radius1", "radius2"])
def test_lsps_radii_grow_with_the_side(like, preset):
    """An L2 radius of 32x32 is a seventh of the noise a value at 224x224."""
    side = {"imagenet100": 224, "pets": 224, "photographs": 64}.get(like, 32)
    keys, _ = found("poisons", CONFIGS / "poisons/lsp.yaml", f"like={like}", f"preset={preset}")
    a_value = 255 * keys.config.radius / (3 * side * side) ** 0.5       # grey levels
    assert 4.5 < a_value < 10
