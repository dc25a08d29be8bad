"""`--help METHOD` shows every key with its default, range and comment, and what a YAML adds."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

import pytest
from conftest import CONFIGS as CONFIGS_FOLDER
from conftest import ROOT, run_command
from methods import APPLYING
from test_ranges import CONFIGS, MODULES, ROOMS

import evaluate
import purify
import train_ddpm
import train_vae
from core import manual
from core.commands import COMMANDS
from core.config import added
from core.errors import UserError
from core.methods import find_method
from core.ranges import Count, Keys, LinfRadius, Positive
from poisons import __main__ as poisons_main

METHODS = [(room, name) for room in ROOMS for full in MODULES
           for where, name in [full.split(".")] if where == room]


@dataclass(frozen=True)
class Parent(Keys):
    epsilon: LinfRadius = 8 / 255   # L-inf budget
    rounds: Count = 3               # a cap,
                                    # in rounds
    # above it
    # in two lines
    mode: Literal["on", "off"] = "on"
    bare: Positive | None = None


@dataclass(frozen=True)
class Child(Parent):
    rounds: Count = 4
    bare: Positive | None = added(0.5)      # of the child
    section: Parent | None = None           # of keys


def test_the_comment_of_a_field_is_what_stands_above_beside_and_below_it():
    assert manual.comments(Parent) == {
        "epsilon": "L-inf budget", "rounds": "a cap, in rounds", "mode": "above it in two lines"}
    assert manual.comments(Child) == {
        **manual.comments(Parent), "bare": "of the child", "section": "of keys"}


def test_keys_have_default_and_range_in_words():
    found = {key.name: (key.default, key.limits) for key in manual.keys(Child, "child")}
    assert found == {
        "child.epsilon": ("8/255", "above 0.5/255 and at most 1"),
        "child.rounds": ("4", "whole, at least 1"), "child.mode": ("on", "on, off"),
        "child.bare": ("0.5", "above 0, or null"),
        "child.section": ("null", "a section, or null"),
        "child.section.epsilon": ("8/255", "above 0.5/255 and at most 1"),
        "child.section.rounds": ("3", "whole, at least 1"),
        "child.section.mode": ("on", "on, off"),
        "child.section.bare": ("null", "above 0, or null")}


@pytest.mark.parametrize(("room", "name"), METHODS)
def test_help_shows_every_key_of_every_method(room, name):
    module = MODULES[f"{room}.{name}"]
    for command, half, prefix in ((APPLYING[room], "Config", name),
                                  ("train_vae", "TrainConfig", f"{name}.train")):
        if not hasattr(module, half):
            continue
        page = manual.page(module, name, COMMANDS[command])
        assert all(len(line) <= manual.WIDTH for line in page.splitlines())
        assert page.startswith(f"{room}/{name}.py: ")
        assert f"configs/{room}/" in page
        for field in dataclasses.fields(getattr(module, half)):
            assert re.search(rf"^  {prefix}\.{field.name}[ .]", page, re.MULTILINE), field.name


@pytest.mark.parametrize(("main", "words", "lines"), [
    (poisons_main.main, ["--help", "em"], [
        "poisons/em.py: EM: error-minimising noise, sample-wise.",
        "  em.epsilon = 8/255  L-inf budget, [0, 1] units; release: 8/255 [above 0.5/255 and at "
        "most 1]", "  em.rounding = round ", "configs/poisons/em.yaml  ",
        "  data=cifar100  em.train_steps=20 em.weight_decay=5e-5", "  preset=eps16  "]),
    (purify.main, ["jcdp", "--help"], [
        "  jcdp.t_star = 20  ", "  jcdp.strength = 0.002 ",
        "  preset=released  precision=fp32 jcdp.t_star=20 jcdp.start_index=20"]),
    (purify.main, ["--help", f"{ROOT}/configs/purifiers/dvae.yaml"], [
        "  dvae.stages = null ", "  dvae.train.*: keys of python train_vae.py"]),
    (train_vae.main, ["--help", "dvae"], [
        "  dvae.train.stages = [{kld_target: 1, output: subtract}, {kld_target: 3, output: both}]",
        "  dvae.train.stages.N.kld_target ", "  data=digits  dvae.train.epochs=15"]),
    (train_ddpm.main, ["--help", "ddpm"], ["  ddpm.train.width = 128 "]),
    (evaluate.main, ["standard", "--help", "standard.width=3"], [
        "  standard.width = 64  ", "configs/learners/rem40k.yaml  standard.steps=40000"]),
    (evaluate.main, ["--help", "em60"], ["  standard.width = 64  "]),
])
def test_each_command_prints_its_half(main, words, lines):
    outcome = run_command(main, *words)
    assert outcome.status == 0
    shown = " ".join(outcome.stdout.split())        # lines may break anywhere
    for line in lines:
        assert " ".join(line.split()) in shown


def test_help_says_which_key_picks_a_section():
    shown = run_command(purify.main, "dvae", "--help").stdout
    assert {"data=digits", "like=small"} <= set(shown.split())
    assert "data=small" not in shown


def test_help_alone_lists_the_methods_and_an_unknown_one_names_the_nearest():
    shown = run_command(poisons_main.main, "-h").stdout
    assert "methods in poisons/: " in shown
    assert ", cp, cuda, " in shown
    for key in ("data = null ", "seed = null ", "fraction = 1 ", "precision = auto "):
        assert f"\n  {key}" in shown
    assert "\n  checkpoint" not in shown
    outcome = run_command(poisons_main.main, "--help", "emm")
    assert (outcome.status, outcome.stdout) == (1, "")
    assert outcome.error == "--help: method: there is no poisons/emm.py; did you mean 'em'?"
    helper = run_command(poisons_main.main, "--help", "frozen")     # a module, but no method
    assert helper.error == ("--help: method: poisons/frozen.py has no VERSION, and is no method "
                            "without one")
    assert "jpeg is not trained" in run_command(train_vae.main, "--help", "jpeg").error


@pytest.mark.parametrize(("room", "name", "needed"), [
    ("poisons", "lsp", "bound"), ("purifiers", "gray", "purify"), ("learners", "standard", "fit"),
    ("poisons", "lsp", "SMOKE"), ("purifiers", "gray", "Config")])
def test_a_module_that_lacks_what_a_method_has_is_named(monkeypatch, room, name, needed):
    monkeypatch.delattr(find_method(room, name), needed)
    with pytest.raises(UserError, match=rf"^{room}/{name}\.py has no {needed}; docs/extending"):
        find_method(room, name)


@pytest.mark.parametrize("kind", sorted(CONFIGS, key=lambda kind: kind.__module__ + kind.__name__),
                         ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_key_is_explained_where_its_default_stands(kind):
    for parent in kind.__mro__:
        if dataclasses.is_dataclass(parent):
            without = [name for name, text in manual.own_comments(parent).items() if not text]
            assert without == [], f"{parent.__module__}.{parent.__name__}"
    assert set(manual.comments(kind)) == {field.name for field in dataclasses.fields(kind)}


# --- a YAML by its name ----------------------------------------------------------------------


def test_a_name_finds_its_yaml(tmp_path, monkeypatch):
    """As seen from where one stands; a file of that name that is here goes first."""
    inside = f"{CONFIGS_FOLDER}/purifiers/jcdp.yaml"
    assert manual.yaml_of("purifiers", "jcdp") == inside
    assert manual.yaml_of("purifiers", "jcdp.yaml") == inside
    (tmp_path / "jcdp.yaml").write_text("method: jcdp\n")
    assert manual.yaml_of("purifiers", "jcdp.yaml") == "jcdp.yaml"
    assert manual.yaml_of("purifiers", "own/jcdp.yaml") == "own/jcdp.yaml"
    monkeypatch.chdir(ROOT)
    assert manual.yaml_of("purifiers", "jcdp") == "configs/purifiers/jcdp.yaml"
    for word in ("jdcp", "purifiers/jcdp", "em60"):
        with pytest.raises(UserError, match=r"^here: there is no configs/purifiers/.*\.yaml; "):
            manual.yaml_of("purifiers", word, "here")


@pytest.mark.parametrize(("main", "words"), [
    (poisons_main.main, ["lsp"]), (train_vae.main, ["dvae"]), (train_ddpm.main, ["ddpm"]),
    (purify.main, ["jpeg"]), (evaluate.main, ["smoothing", "protocol=em60"])])
def test_every_command_takes_a_name(main, words):
    """The same plan as of the path."""
    rest = ["data=digits", "--dry-run", "--smoke"]
    named = run_command(main, *words, *rest)
    assert named.status == 0, named.stderr
    room = next(room for room in ROOMS if (CONFIGS_FOLDER / room / f"{words[0]}.yaml").is_file())
    paths = [word.replace(name, f"{CONFIGS_FOLDER}/{room}/{name}.yaml")
             for word, name in zip(words, (words[0], "em60"), strict=False)]
    assert run_command(main, *paths, *rest).stdout == named.stdout


@pytest.mark.parametrize(("room", "name", "command", "said"), [
    ("purifiers", "dvae", "train_vae", True), ("purifiers", "chain", "purify", True),
    ("poisons", "em", "poison", False)])
def test_items_of_a_list_are_said_to_count_from_0(room, name, command, said):
    page = manual.page(find_method(room, name), name, COMMANDS[command])
    assert ("\n  N is an item of the list, counted from 0\n" in page) == said
