"""Protocols: those that are published, key by key, and what a protocol may not say."""

import pytest
from conftest import CONFIGS, new_run

from core import config, training
from core.errors import ConfigError, UserError
from core.request import parse
from core.training import Protocol
from core.views import Views
from learners import standard

CLIP_5 = {"clip_norm": 5}
AT_224 = {"crop_padding": 0, "flip": False}         # what views take the place of
PROTOCOLS = {
    "em60": {"epochs": 60, "drop_last": True, "schedule": "cosine", **CLIP_5},
    "em100": {"epochs": 100, "drop_last": True, "schedule": "cosine", **CLIP_5},
    "avatar120": {"epochs": 120, "drop_last": False, "schedule": "multistep",
                  "milestones": (80, 100), "gamma": 0.1, **CLIP_5},
    "bridge120": {"epochs": 120, "schedule": "multistep", "milestones": (80, 100), "gamma": 0.1,
                  "clip_norm": None},
    "rem40k": {"steps": 40_000, "drop_last": True, "schedule": "multistep",
               "milestones": (16_000, 32_000), "gamma": 0.1, "mean": (0.5, 0.5, 0.5),
               "std": (1, 1, 1)},
    "tap200": {"epochs": 200, "schedule": "cosine"},
    "iss60": {"epochs": 60, "drop_last": False, "schedule": "cosine", "clip_norm": None},
    "apb200": {"epochs": 200, "drop_last": True, "schedule": "multistep", "milestones": (100,),
               "gamma": 0.5, "clip_norm": None, "shuffle": False},
    "ecl80": {"epochs": 80, "drop_last": False, "schedule": "constant", "weight_decay": 0,
              "clip_norm": None, "test_every": 5},
    "gue100": {"epochs": 100, "batch_size": 256, "drop_last": False, "learning_rate": 0.01,
               "schedule": "multistep", "milestones": (75, 90), "gamma": 0.1, "clip_norm": None},
    "aue200": {"epochs": 200, "drop_last": False, "learning_rate": 0.5, "warmup_epochs": 10,
               "schedule": "cosine", "weight_decay": 1e-4, "clip_norm": None, "test_every": 25},
    "miue200": {"epochs": 200, "drop_last": False, "learning_rate": 0.5, "schedule": "cosine",
                "weight_decay": 1e-4, "clip_norm": None, "test_every": 1},
    "dvae224": {**AT_224, "epochs": 100, "schedule": "cosine", **CLIP_5,
                "views": Views(scale=(0.08, 1), jitter=0, grey=0)},
    "uc90": {**AT_224, "epochs": 90, "batch_size": 512, "drop_last": False,
             "schedule": "cosine", "clip_norm": None, "mean": (0.5, 0.5, 0.5),
             "std": (0.5, 0.5, 0.5),
             "views": Views(scale=None, resize=256 / 224, jitter=0, grey=0)},
    "apb224": {**AT_224, "epochs": 200, "batch_size": 256, "schedule": "cosine", "clip_norm": None,
               "views": Views(scale=None, jitter=1, hue=0.2, grey=0)},
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_presets_are_the_published_protocols(name):
    tree = config.read([CONFIGS / "learners" / f"{name}.yaml"])
    found = config.build(standard.Config, tree.value["standard"], "standard")
    common = {"batch_size": 128, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
              "nesterov": False, "crop_padding": 4, "flip": True, "architecture": "resnet18",
              "width": 64, "shuffle": True, "warmup_epochs": 0}
    for key, value in {**common, **PROTOCOLS[name]}.items():
        assert getattr(found, key) == value, key
    if name == "bridge120":
        assert tree.value["split"].value == "first:40000"
    if name == "tap200":                                        # of its poison_evaluation
        assert found.mean == (0.4914, 0.4822, 0.4465)
        assert found.std == (0.2023, 0.1994, 0.2010)


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if "steps" not in PROTOCOLS[name]])
def test_a_protocol_is_as_long_on_svhn(name):
    """EM's alone is half as long there, and those that go on from it have its length at hand, and
    mirror its digits no more than it does."""
    line = [str(CONFIGS / f"learners/{name}.yaml"), "data=svhn"]
    expected = 30 if name == "em60" else PROTOCOLS[name]["epochs"]
    found = parse(line, "", "evaluate").config
    assert found.epochs == expected
    assert not found.flip
    assert found.views is None or found.views.flip == 0


def test_steps_of_a_protocol_are_of_its_own_data_set():
    """UC's 90 epochs of Pets, 8 steps each: of another set they would be other epochs."""
    for data, steps in (("pets", 90 * 8), ("cifar10", None), ("imagenet100", None)):
        found = parse([str(CONFIGS / "learners/uc90.yaml"), f"data={data}"], "", "evaluate").config
        assert (found.epochs, found.steps) == (90, steps)


def test_bridgepures_vit_is_a_preset():
    found = parse([str(CONFIGS / "learners/bridge120.yaml"), "preset=vit"], "", "evaluate").config
    assert (found.architecture, found.optimizer, found.learning_rate, found.weight_decay,
            found.epochs, found.milestones) == ("vit_small", "adam", 5e-4, 0, 120, (80, 100))


@pytest.mark.parametrize("keys", [
    {"epochs": 0}, {"batch_size": 1}, {"learning_rate": 0}, {"momentum": 1}, {"momentum": -0.1},
    {"nesterov": True, "momentum": 0}, {"weight_decay": -1e-4}, {"crop_padding": -1},
    {"test_every": -1}, {"steps": 0}, {"clip_norm": 0}, {"mean": (0.5, 0.5, 0.5)},
    {"std": (1, 1, 1)},
    {"warmup_epochs": -1}, {"warmup_epochs": 1, "schedule": "onecycle"},
    {"schedule": "multistep"},
    {"mean": (0.5,), "std": (0.5,)}, {"mean": (0.5,) * 3, "std": (0.5,) * 2},
    {"views": Views()}, {"views": Views(), "flip": False},
    {"views": Views(size=16), "crop_padding": 0, "flip": False},
    {"shuffle_block": 64, "shuffle": False},
])
def test_impossible_protocols_are_refused(keys):
    with pytest.raises(ConfigError):
        Protocol(**keys)


def test_keys_that_came_later_change_no_fingerprint():
    assert not {"optimizer", "views"} & config.plain(Protocol(), identity=True).keys()
    assert config.plain(Protocol(optimizer="adam"), identity=True)["optimizer"] == "adam"
    with pytest.raises(ConfigError, match="adam has no such form"):
        Protocol(optimizer="adam", nesterov=True)


def test_views_are_keys_of_a_section(tmp_path):
    """Typed one by one, or in a YAML; a wrong one is named in full."""
    yaml, typed = str(CONFIGS / "learners/em60.yaml"), ["standard.crop_padding=0",
                                                       "standard.flip=false"]
    found = parse([yaml, *typed, "standard.views.scale=[0.5, 1]", "standard.views.grey=0"], "",
                  "evaluate").config
    assert found.views == Views(scale=(0.5, 1), grey=0)
    with pytest.raises(UserError, match=r"standard\.views\.hue: 2 is out of range"):
        parse([yaml, *typed, "standard.views.hue=2"], "", "evaluate")
    with pytest.raises(UserError, match=r"standard\.views: takes the place of crop and flip"):
        parse([yaml, "standard.views.hue=0"], "", "evaluate")


@pytest.mark.parametrize(("architecture", "optimizer", "said"), [
    ("vit_small", "sgd", True), ("vit_small", "adam", False), ("resnet18", "sgd", False)])
def test_a_vit_that_sgd_trains_is_said(tmp_path, capsys, architecture, optimizer, said):
    with new_run(tmp_path / "run") as run:
        training.note_marks(standard.Config(architecture=architecture, optimizer=optimizer), run)
    assert ("note: vit_small learns by SGD here" in capsys.readouterr().err) == said
