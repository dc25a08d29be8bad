"""One table of the commands, and what methods say of themselves."""

import importlib

import pytest
from conftest import CONFIGS, run_command

from core import methods
from core.commands import COMMANDS, OWNER
from core.errors import UserError
from core.request import parse
from core.settings import Settings


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_every_command_is_there_under_its_words_and_name(command):
    *_, word = command.words
    program = importlib.import_module(f"{word}.__main__" if "-m" in command.words
                                      else word.removesuffix(".py"))
    said = run_command(program.main, "--help").stdout
    assert said.startswith(f"usage: {command.line} ")
    assert f"methods in {command.room}/: {', '.join(methods.list_methods(command.room))}" in said


def test_a_key_of_one_command_is_a_setting_that_the_others_refuse():
    for key, owner in OWNER.items():
        given = {None: "x", False: "false"}.get(getattr(Settings, key), getattr(Settings, key))
        for name, command in COMMANDS.items():
            yaml = sorted((CONFIGS / command.room).glob("*.yaml"))[0]
            if command is not owner:
                with pytest.raises(UserError, match=f"{key}: {command.line} takes none; it is a "
                                                    f"key of {owner.line}"):
                    parse([str(yaml), f"{key}={given}"], "", name)


def test_methods_say_what_they_are_in_constants(tmp_path, monkeypatch):
    """A module that speaks of `class Config` or defines one is no method without a VERSION; and
    each purifier that is trained names the command that trains it."""
    room = tmp_path / "room"
    room.mkdir()
    (room / "helper.py").write_text('"""class Config"""\nclass Config: ...\n')
    (room / "blur.py").write_text("VERSION = 1\nCHECKPOINT = 'ddpm'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert methods.is_method("room", "blur")
    assert not any(methods.is_method("room", name) for name in ("helper", "nothing", "../blur"))
    assert methods.trained_as(methods.find_method("room", "blur")) == "ddpm"
    for name in methods.list_methods("purifiers"):
        module = methods.find_method("purifiers", name)
        trainer = methods.fact(module, "TRAINED_BY")
        assert (trainer is not None) == hasattr(module, "TrainConfig"), name
        assert trainer is None or COMMANDS[trainer].trains


def test_a_command_imports_the_method_that_it_calls_and_no_other(monkeypatch):
    imported, load = set(), importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name: imported.add(name) or load(name))
    parse([str(CONFIGS / "poisons" / "lsp.yaml")], "", "poison")
    assert imported == {"poisons.lsp"}


@pytest.mark.parametrize(("name", "typed", "example"), [
    ("evaluate", "smothing.strength=0.2", "smoothing"), ("evaluate", "standard.epochs=2", "em60"),
    ("evaluate", "seed=1", "em60"), ("evaluate", "jpeg.quality=2", "em60"),
    ("poison", "em.epsilon=8/255", "em"), ("poison", "seed=1", "lsp"),
    ("purify", "seed=1", "jpeg"), ("train_vae", "seed=1", "dvae"),
    ("train_vae", "ae.train.epochs=3", "ae"), ("train_ddpm", "seed=1", "ddpm")])
def test_without_a_method_the_nearest_to_what_was_typed_is_named(name, typed, example):
    command = COMMANDS[name]
    program = importlib.import_module(f"{command.words[-1]}.__main__" if "-m" in command.words
                                      else command.words[-1].removesuffix(".py"))
    error = run_command(program.main, "data=digits", typed).error
    assert error.startswith(f"no method: name a YAML such as configs/{command.room}/{example}.yaml")
    methods_named = error.rpartition("one of ")[2].split(", ")
    assert set(methods_named) <= set(methods.list_methods(command.room))
    assert command.trains == ("jpeg" not in methods_named and command.room == "purifiers")


def test_a_method_without_a_yaml_of_its_name_names_those_that_it_has():
    with pytest.raises(UserError, match=r"'standard' is a method: write method=standard, or one of "
                                        r"its YAMLs: apb200, .*em60, "):
        parse(["standard"], "", "evaluate")
