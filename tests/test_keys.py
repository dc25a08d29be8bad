"""A method's key behind a table's name: which steps take it, and when it is not clear."""

import re

import pytest
import tables
from conftest import run_command

from core.errors import UserError
from scripts.tables import keys, plan, run_table, spec
from scripts.tables.table import Choice

# fixtures
project, here, tiny = tables.project, tables.here, tables.tiny


def settings_of(path: str, *words: str) -> dict[str, dict[str, str]]:
    """Step -> what is set of it, for those that have such a key."""
    choice, typed = Choice.split(words)
    table = spec.read_one(path, choice, typed)
    found = {f"{line.name}/{step.command}": step for line in (*table.rows, *table.columns)
             for step in line.steps} | {"evaluate": table.evaluate}
    return {name: step.settings for name, step in found.items()
            if any(word.partition("=")[0] in step.settings for word in table.typed)}


@pytest.mark.parametrize(("words", "changed_steps"), [
    (["dvae_cifar10", "dvae.train.epochs=20"], ["dvae/train_vae"]),
    (["dvae_cifar10", "lsp.radius=2"], ["lsp/poison"]),
    (["dvae_cifar10", "standard.epochs=3"], ["evaluate"]),
    (["dvae_cifar10", "--columns", "avatar", "ddpm.train.steps=9"], ["avatar/train_ddpm"]),
    (["dvae_cifar10", "dvae.train.stages.0.kld_target=2"], ["dvae/train_vae"])])
def test_a_methods_key_goes_to_the_steps_that_take_it(here, words, changed_steps):
    found = settings_of(*words)
    assert list(found) == changed_steps
    key, value = words[-1].split("=")
    assert all(settings[key] == value for settings in found.values())


def test_a_typed_key_is_planned(tiny):
    [cell] = plan.cells_of(spec.read(str(tiny), Choice(rows=("clean",), seeds=(0,)),
                                     ("standard.epochs=7",)))
    assert cell.record.job.config["epochs"] == 7
    assert [word for word in cell.record.arguments if "epochs" in word] == ["standard.epochs=7"]


@pytest.mark.parametrize(("words", "message"), [
    (["dvae_cifar10", "--quick", "ddpm.train.steps=5"], r"ddpm\.train\.steps=5: .* has several "
     r"values of it \(800 in avatar, 800 in jcdp, 200 in jcdp\); choose one by --rows or"),
    (["countermeasures", "adversarial.epsilon=1/255"], r"4/255 in at eps4, 8/255 in at eps8"),
    (["fig2b", "--columns", "jpeg quality=10", "jpeg.quality=3"],
     r"has jpeg quality=10 for a value of its own"),
    (["dvae_cifar10", "dvae.train.epoch=5"], r"command line: unknown key 'dvae\.train\.epoch'; did "
     r"you mean 'dvae\.train\.epochs'"),
    (["dvae_cifar10", "dvae.epochs=5"], r"command line: .*did you mean 'dvae\.train\.epochs'"),
    (["dvae_cifar10", "standard.epochs=x"], r"command line: standard\.epochs: 'x' is not a number"),
    (["le_table3", "dvae.train.epochs=5"], r"no step of .*le_table3\.yaml takes it; its methods "
     r"are em, lsp, rem"),
    (["le_table3", "em.train.epochs=5"], r"no step of .* takes it; did you mean|known keys")])
def test_a_methods_key_must_be_clear(here, words, message):
    with pytest.raises(UserError) as error:
        settings_of(*words)
    assert re.search(message, str(error.value)), error.value


@pytest.mark.parametrize(("words", "kept"), [
    (["--columns", "none,cutout,mixup", "standard.epochs=3"], "cutout.epochs, mixup.epochs)"),
    (["--columns", "none,cutout,ueraser_max", "ueraser.copies=3"], ""),     # it alone has the key
    (["--columns", "cutout,dvae", "dvae.train.epochs=3"], ""),              # not of a learner
    (["--columns", "none,gray", "standard.epochs=3"], "")])
def test_learners_that_a_key_leaves_out_are_said(here, words, kept):
    ended = run_command(run_table.main, "dvae_cifar10", *words, "--rows", "clean,lsp", "--dry-run")
    assert ended.status == 0, ended.stderr
    said = [line for line in ended.stderr.splitlines() if "other learners" in line]
    assert len(said) == bool(kept)
    assert all(line.endswith(f"{words[-1]}: cells of other learners keep theirs ({kept}")
               for line in said), said


def test_a_key_that_is_typed_for_two_learners_is_left_out_of_none(here):
    one, two = (spec.read("dvae_cifar10", Choice(columns=("none", "cutout")), words) for words in (
        ("standard.epochs=3",), ("standard.epochs=3", "cutout.epochs=3")))
    assert keys.left_out(one) == ["cutout.epochs"]
    assert keys.left_out(two) == []
