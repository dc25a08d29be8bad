"""What bad input gets: status 1 (2 for usage), a sentence with the culprit, nothing at OUT."""

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, Outcome, content, run_command, sign, succeed, write_imageset
from PIL import Image
from refusals import DVAE, EM60, GRAY, LSP, OUT, PATCH, TINY_NET, TINY_VAE, refused

import evaluate
import purify
import train_ddpm
import train_vae
from core import files, identity
from core.command import command
from core.job import Job
from core.methods import find_method
from core.request import parse
from core.run import Run
from poisons.__main__ import main as poison


def test_memory_that_ran_out_costs_a_sentence(capsys):
    """A real allocation of 4 EB, and CUDA's words."""
    def allocate():
        torch.empty(2**60)

    def too_many_bytes():
        torch.empty(2**31, 2**31, 2**5)

    def too_many_values():
        torch.zeros(3).expand(2**40, 2**30, 3).contiguous()

    def cuda():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    for body in (allocate, too_many_bytes, too_many_values, cuda):
        assert command(lambda argv, body=body: body())() == 1
        assert re.fullmatch(r"error: out of memory: lower the batch size or the width \(.*\)\n",
                            capsys.readouterr().err)

    def python():
        raise MemoryError

    assert command(lambda argv: python())() == 1
    assert capsys.readouterr().err == ("error: out of memory: lower the batch size, or take fewer "
                                       "rows\n")


def lsp(*arguments) -> Outcome:
    return run_command(poison, LSP, "data=digits", PATCH, f"out={OUT}", *arguments)


@pytest.fixture
def copy(few, tmp_path) -> Path:
    """An ImageSet folder that may be damaged."""
    return write_imageset(tmp_path / "set", few.images, few.labels)


# --- usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("main", [poison, purify.main, train_vae.main, evaluate.main])
@pytest.mark.parametrize("arguments", [["--frobnicate"], ["--limit", "0"], ["--limit", "x"],
                                       ["--limit", "-3"], ["--limit"], ["--seed", "3"]])
def test_wrong_usage_exits_2(main, arguments):
    outcome = run_command(main, *arguments)
    assert outcome.status == 2
    assert "usage: " in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_key_that_is_typed_in_another_way_is_shown_as_it_should_be():
    for words in (["--data", "runs/x"], ["--data=runs/x"]):
        said = run_command(poison, "lsp", *words).stderr
        assert said.endswith("; if it is a key, write data=VALUE\n")
    for words in (["data", "=", "digits"], ["data", "=digits"]):
        refused(run_command(poison, "lsp", *words), "stands alone: write key=value without spaces")


def test_the_poisons_are_a_package():
    started = subprocess.run([sys.executable, ROOT / "poisons", "lsp"], text=True,
                             capture_output=True)
    assert (started.returncode, started.stderr) == (1, "error: write python -m poisons\n")


@pytest.mark.parametrize("main", [poison, purify.main, train_vae.main, evaluate.main])
def test_without_a_method_the_choices_are_named(main):
    refused(run_command(main), "no method", "method=")


# --- keys and values -------------------------------------------------------------------------


@pytest.mark.parametrize(("argument", "words"), [
    ("lsp.raduis=1", ["unknown key 'lsp.raduis'", "did you mean 'lsp.radius'"]),
    ("radius=1", ["unknown key 'radius'", "did you mean 'lsp.radius'"]),
    ("sede=1", ["unknown key 'sede'", "did you mean 'seed'"]),
    ("lps.radius=1", ["unknown key 'lps'", "did you mean 'lsp'"]),
    ("method=lspp", ["there is no poisons/lspp.py", "did you mean 'lsp'"]),
    ("method=dvae", ["there is no poisons/dvae.py"]),
    ("zzzzzz=1", ["unknown key 'zzzzzz'; known keys: method,", "lsp.radius"]),
    ("lsp.zzzzzz=1", ["unknown key 'lsp.zzzzzz'; known keys: lsp.radius, lsp.patch"]),
    ("limit=0", ["limit: 0 is out of range: it must be at least 1"]),
    ("lsp.radius=big", ["lsp.radius: 'big' is not a number"]),
    ("lsp.radius=-1", ["lsp.radius: -1 is out of range: it must be above 0"]),
    ("lsp.radius=0", ["lsp.radius: 0 is out of range"]),
    ("lsp.patch=2.5", ["lsp.patch: 2.5 is not a whole number"]),
    ("lsp.patch=0", ["lsp.patch: 0 is out of range"]),
    ("lsp.patch=16", ["lsp.patch: blocks of 16 leave 3 features, too few for 10 classes"]),
    ("lsp.positive_only=maybe", ["lsp.positive_only: 'maybe' is not true or false"]),
    ("lsp.positive_only=0.5", ["lsp.positive_only"]),
    ("lsp.rounding=rnd", ["lsp.rounding: 'rnd' is not one of round, floor", "'round'"]),
    ("seed=x", ["seed: 'x' is not a number"]),
    ("lsp=3", ["lsp: expected a section"]),
    ("device=tpu9", ["device: 'tpu9'"]),
    ("device=cpu:5", ["device: 'cpu:5' is not supported; write auto, cpu or cuda"]),
    ("device=mps", ["device: 'mps' is not supported; write auto, cpu or cuda"]),
    ("graphs=true", ["graphs: only a CUDA device has graphs; write graphs=auto"]),
    ("fraction=0.0001", ["fraction: 0.0001 of ", " rows is none"]),
    ("device=cuda:99", ["device: 'cuda:99' is not on this machine"]),
    ("precision=fp8", ["precision: 'fp8' is not one of"]),
    ("threads=0", ["threads: 0 is out of range: it must be at least 1"]),
    ("threads=50000", ["threads: 50000 is out of range: it must be at least 1 and at most 1024"]),
    ("size=20", ["size: digits come in 16 or 32 pixels, not 20"]),
    ("split=tset", ["split: 'tset' is not train, test"]),
    ("split=first:" + "9" * 5000, ["split: 'first:999999999999999...' is not train, test"]),
    ("data=digts", ["data: 'digts'", "did you mean 'digits'"]),
    ("nonsense", ["'nonsense' is neither a YAML file nor key=value: there is no "
                  "configs/poisons/nonsense.yaml; names there: ", " cp, cuda, "]),
    ("tpa", ["'tpa' is neither", "there is no configs/poisons/tpa.yaml; did you mean 'tap'"]),
    ("a/b", ["'a/b' is neither", "there is no configs/poisons/b.yaml"]),
    ("tap.epsilon=8/255", ["unknown key 'tap': that is another method's, and this line runs lsp"]),
    ("missing.yaml", ["missing.yaml: no such file"]),
])
def test_a_wrong_key_or_value_is_named(argument, words):
    refused(lsp(argument), *words)


@pytest.mark.parametrize(("main", "name", "owner"), [
    (train_vae.main, "ddpm", "train_ddpm.py"), (train_ddpm.main, "dvae", "train_vae.py"),
    (train_vae.main, "gray", None), (train_ddpm.main, "jcdp", None)])
def test_what_another_command_trains_is_said(main, name, owner):
    outcome = run_command(main, CONFIGS / f"purifiers/{name}.yaml", "data=digits", "--dry-run")
    assert f"does not train {name}" in outcome.error
    assert outcome.error.endswith(f"; python {owner} does" if owner else f"does not train {name}")


def test_a_part_of_no_row_is_refused_before_it_is_planned():
    line = lsp("fraction=0.0001", "--dry-run")
    assert line.status == 1
    assert line.error.endswith("of 1437 rows is none")


def test_a_variable_of_torchrun_that_is_empty_is_none(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    assert lsp("--dry-run").status == 0


@pytest.mark.parametrize("seed", ["-1", "4294967296", "10000000000000000000000"])
def test_a_seed_that_the_method_cannot_take_is_named(seed):
    refused(lsp(f"seed={seed}"), f"seed: {seed} is out of range: it must be at least 0 and below "
            "4294967296")


@pytest.mark.parametrize(("main", "argument", "words"), [
    (train_vae.main, "dvae.epochs=20", ["unknown key 'dvae.epochs'; did you mean",
                                        "'dvae.train.epochs'"]),
    (train_vae.main, "epochs=20", ["unknown key 'epochs'; did you mean 'dvae.train.epochs'?"]),
    (train_vae.main, "dvae.train.kld_target=2",
     ["unknown key 'dvae.train.kld_target'; did you mean 'dvae.train.stages.0.kld_target'?"]),
    (train_vae.main, "dvae.train.epoch=20", ["did you mean 'dvae.train.epochs'?"]),
    (train_vae.main, "dvae.rounding=floor", ["dvae.rounding: python train_vae.py takes none; it is "
                                             "a key of python purify.py"]),
    (purify.main, "dvae.train.rounding=floor", ["dvae.train.rounding: python purify.py"]),
    (purify.main, "dvae.train.stages.1.kld_target=2", ["dvae.train.stages.1.kld_target: python"]),
    (purify.main, "dvae.train={epochs: 3}", ["dvae.train.epochs: python purify.py takes none"]),
    (purify.main, "dvae.train.stages=[]", ["dvae.train.stages: python purify.py takes none"]),
])
def test_a_key_of_the_other_half_of_a_trained_method_is_named(few_path, main, argument, words):
    refused(run_command(main, DVAE, f"data={few_path}", f"out={OUT}", argument), *words)


@pytest.mark.parametrize("value", ["8", "255", "1.5", "16"])
def test_a_budget_in_grey_levels_is_caught(value):
    outcome = run_command(poison, "method=random_signs", "data=digits", f"out={OUT}",
                          f"random_signs.epsilon={value}")
    refused(outcome, f"random_signs.epsilon: {value} is above 1", f"write {value}/255")


@pytest.mark.parametrize("method", ["random_signs", "em", "rem", "tap", "sep", "hypo", "pil"])
def test_a_budget_that_rounding_would_swallow_is_caught(method):
    outcome = run_command(poison, f"method={method}", "data=digits", f"out={OUT}",
                          f"{method}.epsilon=0.5/255")
    refused(outcome, f"{method}.epsilon: 0.5/255 is no more than half a grey level")


@pytest.mark.parametrize(("text", "words"), [
    ("method: lsp\nseed: 1\nseed: 2\n", "bad.yaml:3: repeated key 'seed'"),
    ("method: lsp\nlsp:\n  radius: 1\n  radius: 2\n", "bad.yaml:4: repeated key 'radius'"),
    ("method: lsp\nlsp:\n  raduis: 1\n", "bad.yaml:3: unknown key 'lsp.raduis'"),
    ("method: lsp\nlsp:\n  radius: 1..5\n", "bad.yaml:3: lsp.radius: '1..5' is not a number"),
    ("method: lsp\nlsp: [1]\n", "bad.yaml:2: lsp: expected a section"),
    ("method: lsp\npreset: a\npresets: {a: 3}\n", "bad.yaml:3: a: expected `name: ...` lines"),
    ("method: [lsp]\n", "bad.yaml:1: method: expected a single value"),
    ("method: lsp\nlsp:\n radius: 1\n  patch: 4\n", "bad.yaml:4: not valid YAML"),
    ("seed: 1\n", "no method"),
    ("", "no method"),
])
def test_a_mistake_in_a_file_is_named_with_its_line(text, words):
    Path("bad.yaml").write_text(text)
    refused(run_command(poison, "bad.yaml", "data=digits", f"out={OUT}"), words)


def test_values_that_yaml_alone_would_misread_are_understood():
    Path("good.yaml").write_text(
        "method: standard\nstandard:\n  weight_decay: 5e-4\n  flip: off\n  learning_rate: 1e-3\n"
        "  milestones: [010]\n  clip_norm: none\n")
    outcome = run_command(evaluate.main, "good.yaml", "data=digits", "--dry-run")
    assert outcome.status == 0, outcome.stderr
    for line in ("weight_decay: 0.0005", "flip: false", "learning_rate: 0.001", "milestones: [10]",
                 "clip_norm: null"):
        assert line in outcome.stdout


# --- data ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "words"), [
    (None, "no data"),
    ("data=none/at/all", "data: none/at/all: no such folder"),
    ("data=./", "it has no meta.json"), ("data=none.npz", "data: none.npz: no such file"),
    ("data=folder:none", "data: none: no such folder"), ("data=somefile", "somefile"),
])
def test_missing_data_is_named(source, words):
    Path("somefile").write_text("not a set")
    arguments = ["method=lsp", f"out={OUT}", *([source, "size=16"][: 2 if "folder" in source else 1]
                                              if source else [])]
    refused(run_command(poison, *arguments), words)


def test_a_set_that_cannot_be_downloaded_says_what_to_put_where(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    outcome = run_command(poison, LSP, "data=cifar10", "root=nowhere", f"out={OUT}")
    refused(outcome, "cifar10 is not in 'nowhere'", "cifar-10-batches-py", "root=")


def cut(data):
    return data[: len(data) // 2]


def flip(data):
    data[len(data) // 2] ^= 64
    return data


@pytest.mark.parametrize("main", [poison, purify.main, train_vae.main, evaluate.main])
@pytest.mark.parametrize("change", [cut, flip, lambda data: b""], ids=["cut", "flipped", "emptied"])
def test_damaged_images_are_refused_by_every_command(copy, main, change):
    file = copy / "images.npy"
    file.write_bytes(change(bytearray(file.read_bytes())))
    yaml = {poison: LSP, purify.main: GRAY, train_vae.main: DVAE, evaluate.main: EM60}[main]
    refused(run_command(main, yaml, f"data={copy}", f"out={OUT}"), "set/images.npy", "SHA-256")


@pytest.mark.parametrize(("arrays", "words"), [
    (lambda x, y: (x.astype(np.float32), y), "images are float32"),
    (lambda x, y: (x, y[:100]), "320 images but 100 labels"),
    (lambda x, y: (x, y + 1), "has label 10; labels must lie in 0..9"),
    (lambda x, y: (x, y.astype(np.uint8)), "labels are uint8"),
    (lambda x, y: (x[:0], y[:0]), "the set is empty"),
])
def test_wrong_arrays_with_right_digests_are_refused(tmp_path, few, arrays, words):
    path = write_imageset(tmp_path / "set", *arrays(few.images, few.labels))
    for main, yaml in ((poison, LSP), (purify.main, GRAY), (evaluate.main, EM60)):
        refused(run_command(main, yaml, f"data={path}", f"out={OUT}"), "set", words)


def test_an_input_that_is_unfinished_says_so():
    Path("half.partial").mkdir()
    refused(run_command(purify.main, GRAY, "data=half", f"out={OUT}"), "half", "unfinished")


def test_a_broken_image_in_a_folder_is_named(few):
    for i, label in enumerate(few.labels[:30]):
        folder = Path("tree", str(label))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(few.images[i]).save(folder / f"{i}.png")
    culprit = Path("tree", str(few.labels[7]), "7.png")
    whole = culprit.read_bytes()
    culprit.write_bytes(whole[: len(whole) // 2])
    arguments = [poison, "method=lsp", "data=folder:tree", "size=16", PATCH, f"out={OUT}"]
    refused(run_command(*arguments), str(culprit), "not a readable image")
    culprit.write_bytes(whole)
    Image.fromarray(few.images[8]).convert("L").save(Path("tree", str(few.labels[8]), "8.png"))
    Image.fromarray(few.images[9]).convert("RGBA").save(Path("tree", str(few.labels[9]), "9.png"))
    assert np.load(succeed(*arguments) / "images.npy").shape == (30, 16, 16, 3)


# --- sets that are small or uneven -----------------------------------------------------------


def test_a_set_smaller_than_the_batch_says_so(few_path):
    refused(run_command(evaluate.main, EM60, f"data={few_path}", "--limit", 60, f"out={OUT}"),
            "60 rows", "batch of 64", "lower batch_size")
    refused(run_command(train_vae.main, DVAE, f"data={few_path}", "--limit", 60, "out=other"),
            "60 rows", "batch of 64", out=Path("other"))


@pytest.mark.parametrize("rows", [65, 64, 33])
def test_a_last_batch_of_one_image_is_no_obstacle(few_path, rows):
    """65 and 33 leave one image over, for which batch normalisation has no statistics."""
    out = succeed(evaluate.main, EM60, f"data={few_path}", *TINY_NET, "standard.drop_last=false",
                  "--limit", rows)
    assert json.loads((out / "record.json").read_text())["images"] == rows // 32 * 32
    succeed(train_vae.main, DVAE, f"data={few_path}", *TINY_VAE, "--limit", rows)


def test_a_batch_of_one_is_refused(few_path):
    refused(run_command(evaluate.main, EM60, f"data={few_path}", *TINY_NET,
                        "standard.batch_size=1", "--limit", 3, f"out={OUT}"),
            "standard.batch_size: 1 is out of range")
    refused(run_command(train_vae.main, DVAE, f"data={few_path}", *TINY_VAE,
                        "dvae.train.batch_size=1", f"out={Path('other')}"),
            "dvae.train.batch_size: 1 is out of range", out=Path("other"))


def test_a_class_with_one_image_goes_through_everything(tmp_path, few):
    labels = np.where(np.arange(320) == 17, 9, np.arange(320) % 9)
    path = write_imageset(tmp_path / "uneven", few.images, labels)
    poisoned = succeed(poison, LSP, f"data={path}", PATCH)
    np.testing.assert_array_equal(np.load(poisoned / "labels.npy"), labels)
    trained = succeed(train_vae.main, DVAE, f"data={poisoned}", *TINY_VAE)
    purified = succeed(purify.main, DVAE, f"data={poisoned}", f"checkpoint={trained}")
    succeed(evaluate.main, EM60, f"data={purified}", *TINY_NET)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_handful_of_rows_is_poisoned_and_purified(rows):
    poisoned = succeed(poison, LSP, "data=digits", PATCH, "--limit", rows)
    assert len(np.load(succeed(purify.main, GRAY, f"data={poisoned}") / "images.npy")) == rows


# --- test sets -------------------------------------------------------------------------------


def test_a_missing_test_set_is_asked_for(tmp_path, few):
    np.savez("own.npz", images=few.images, labels=few.labels)
    refused(run_command(evaluate.main, EM60, "data=own.npz", f"out={OUT}"),
            "own.npz has no test set of its own: name one with test=")
    refused(run_command(evaluate.main, EM60, "data=own.npz", "test=none.npz", f"out={OUT}"),
            "test: none.npz: no such file")
    np.savez("small.npz", images=few.images[:, :8, :8], labels=few.labels)
    refused(run_command(evaluate.main, EM60, "data=own.npz", "test=small.npz", f"out={OUT}"),
            "small.npz has 8x8 images", "own.npz has 16x16")


# --- training that diverges ------------------------------------------------------------------


def test_training_that_diverges_says_so(few_path):
    refused(run_command(evaluate.main, EM60, f"data={few_path}", *TINY_NET, "standard.epochs=3",
                        "standard.learning_rate=1e30", "standard.clip_norm=null", f"out={OUT}"),
            "its training diverged", "lower the learning rate")
    refused(run_command(train_vae.main, DVAE, f"data={few_path}", *TINY_VAE,
                        "dvae.train.epochs=3", "dvae.train.learning_rate=1e30", "out=other"),
            "became", "lower the learning rate", out=Path("other"))


# --- where the result goes -------------------------------------------------------------------


def test_an_occupied_out_is_refused_and_left_as_it_is():
    assert lsp("--limit", 100).status == 0
    before = content(OUT)
    for change in ("seed=2", "lsp.radius=1.0", "lsp.rounding=floor", "size=32"):
        outcome = lsp("--limit", 100, change)
        assert outcome.status == 1
        assert "out holds other work" in outcome.error
        assert "--force" in outcome.error
    assert lsp("--limit", 99).status == 1
    assert content(OUT) == before
    assert lsp("--limit", 100).status == 0                  # the same work: already done
    assert lsp("--limit", 100, "seed=2", "--force").status == 0
    assert content(OUT) != before
    assert content(Path("out.old-1")) == before


def test_a_damaged_result_says_how_to_make_it_again():
    """The same line, and --force, find OUT done: neither would mend it."""
    out = lsp("--limit", 100).path
    whole = content(out)
    file = out / "images.npy"
    file.write_bytes(flip(bytearray(file.read_bytes())))
    for arguments in ([], ["--force"]):
        outcome = lsp("--limit", 100, *arguments)
        assert outcome.status == 1
        assert outcome.error.endswith("remove out and repeat the command that made it")
    files.remove_tree(out)
    assert content(lsp("--limit", 100).path) == whole


def test_a_dry_run_says_what_it_would_meet():
    def plan(*arguments):
        return lsp("--limit", 100, "--dry-run", *arguments).stdout.splitlines()[-1]

    assert plan() == "# out: would be made"
    with Run(Job("poisons", "x", "lsp", 1, {}, 0, {}), out=OUT):
        pass
    assert plan() == "# out: holds other unfinished work (--force would drop it)"
    files.remove_tree(Path("out.partial"))
    with Run(the_job(), out=OUT):
        pass
    assert plan() == "# out: would resume"
    assert lsp("--limit", 100).status == 0
    assert plan() == "# out: already done"
    assert plan("seed=2") == "# out: holds other work (--force would move it aside)"


def the_job() -> Job:
    """Of lsp("--limit", 100)."""
    request = parse([str(LSP), "data=digits", PATCH, "--limit", "100"], "", "poison")
    return identity.poison(request, request.load_data())


def test_an_out_that_is_a_file_or_a_strangers_folder_is_refused():
    OUT.write_text("mine")
    outcome = lsp("--limit", 100)
    assert outcome.status == 1
    assert outcome.error == ("out is there already and not of this code's making; choose another "
                             "out=, or --force to move it aside")
    assert OUT.read_text() == "mine"
    OUT.unlink()
    OUT.mkdir()
    (OUT / "thesis.tex").write_text("years")
    assert lsp("--limit", 100).status == 1
    assert (OUT / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("out", [".", "/", "..", "file/sub", "a" * 300])
def test_an_out_that_cannot_be_is_refused(out):
    Path("file").write_text("mine")
    outcome = run_command(poison, LSP, "data=digits", PATCH, "--limit", 100, f"out={out}")
    assert outcome.status == 1
    assert outcome.error
    assert Path("file").read_text() == "mine"


def test_an_out_in_finished_work_is_refused(few_path):
    inside = few_path / "mine"
    outcome = run_command(poison, LSP, f"data={few_path}", PATCH, "--limit", 100, f"out={inside}")
    refused(outcome, f"out: '{inside}' lies in {few_path}, which is finished work", out=inside)
    Path("meta.json").write_text('{"kind": "a diary"}')         # somebody's own
    assert lsp("--limit", 100, "out=sub/set").status == 0


def test_poisoning_what_is_not_clean_is_said(few_path):
    once = succeed(poison, LSP, f"data={few_path}", PATCH, "--limit", 100, "out=once")
    twice = run_command(poison, LSP, f"data={once}", PATCH, f"out={OUT}")
    assert "note: few is not clean (lineage: lsp): the noise goes on top" in twice.stderr
    assert "is not clean" not in lsp("--limit", 100, "out=clean").stderr


@pytest.mark.parametrize(("room", "name", "function"), [
    ("poisons", "lsp", "poison"), ("purifiers", "gray", "purify"), ("learners", "standard", "fit")])
def test_a_method_that_returns_nothing_is_named(monkeypatch, few_path, room, name, function):
    module = find_method(room, name)
    monkeypatch.setattr(module, function, lambda *arguments, **keywords: None)
    main = {"poisons": poison, "purifiers": purify.main, "learners": evaluate.main}[room]
    refused(run_command(main, f"method={name}", f"data={few_path}", f"out={OUT}", "--smoke"),
            f"{room}/{name}.py returned NoneType, not the ")


def test_the_meta_of_a_copy_can_be_signed_again(copy):
    """The helper that other tests lean on makes loadable sets."""
    meta = json.loads((copy / "meta.json").read_text())
    np.save(copy / "images.npy", np.load(copy / "images.npy")[:10])
    np.save(copy / "labels.npy", np.load(copy / "labels.npy")[:10])
    refused(run_command(purify.main, GRAY, f"data={copy}", f"out={OUT}"), "SHA-256")
    sign(copy, meta)
    assert len(np.load(succeed(purify.main, GRAY, f"data={copy}") / "images.npy")) == 10


def test_a_mistake_in_the_code_keeps_its_traceback():
    with pytest.raises(OSError, match="descriptor"):
        command(lambda argv: os.close(10_000))()
