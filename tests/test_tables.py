"""Tables: reading, planning, making each artefact once, printing; by real commands."""

import dataclasses
import json
import math
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from methods import make_missing

import evaluate
import purify
from core import distance, files
from core.datasets import EMBEDDED
from core.errors import UserError
from core.imageset import ImageSet
from core.methods import list_methods
from poisons.__main__ import main as poison_main
from scripts.tables import claims, estimates, noted, plan, render, run_table, schedule, spec
from scripts.tables.table import FORMS, WHOLE, Choice
from tests.conftest import ROOT, checkout, content, run_command, succeed

TABLE = """
title: tiny
dataset: cifar10
source: LE
seeds: [0, 1]
settings: {{data: {few}, threads: 1}}
evaluate:
  evaluate: configs/learners/em60.yaml
  standard.width: 4
  standard.epochs: 1
  standard.test_every: 0
rows:
  clean: []
  lsp:
    poison: configs/poisons/lsp.yaml
    lsp.patch: 8
columns:
  none: []
  jpeg:
    over: {{quality: [10, 50]}}
    only: [lsp]
    steps:
      purify: configs/purifiers/jpeg.yaml
      jpeg.quality: "{{quality}}"
derived:
  iss_best: {{max: ["jpeg quality=10", "jpeg quality=50"]}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A checkout of the code alone, with its own runs/."""
    return checkout(tmp_path_factory.mktemp("project"))


@pytest.fixture
def here(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def tiny(here, few_path, tmp_path) -> Path:
    """The tiny table's YAML."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TABLE.format(few=few_path))
    return path


def changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


QUICK = Choice("quick")


def planned(path: Path, choice: Choice = WHOLE) -> list[plan.Cell]:
    return list(plan.Planner(spec.read_one(str(path), choice)).cells())


def start(path: Path, *words: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "scripts/run_table.py", str(path), *words],
                            stderr=subprocess.PIPE, text=True, **options)


def finished_at(folder: Path) -> dict[str, int]:
    return {str(path.parent): path.stat().st_mtime_ns for path in folder.rglob("meta.json")}


# --- reading ---------------------------------------------------------------------------------


def test_the_grid_and_its_artefacts(tiny):
    cells = planned(tiny)
    names = {(cell.row.name, cell.column.name) for cell in cells}
    assert names == {("clean", "none"), ("lsp", "none"), ("lsp", "jpeg quality=10"),
                     ("lsp", "jpeg quality=50")}
    assert len(cells) == 8                              # two seeds
    missing = plan.wanted(cells, {})
    kinds = [artefact.job.kind for artefact in missing]
    assert kinds.count("poisons") == 1                  # shared by six cells
    assert kinds.count("purified") == 2                 # by two seeds each
    assert kinds.count("records") == 8
    for artefact in missing:                            # each after what it needs
        position = missing.index(artefact)
        assert all(missing.index(need) < position for need in artefact.needs)


def test_the_plan_knows_the_fingerprints_of_the_commands(tiny, few_path):
    """Also where a learner takes a part of the set, as bridge120 does."""
    changed(tiny, "  standard.test_every: 0\n", "  standard.test_every: 0\n  split: first:100\n")
    cells = {(cell.row.name, cell.column.name, cell.seed): cell.record for cell in planned(tiny)}
    clean, lsp = (cells[row, "none", 0] for row in ("clean", "lsp"))
    [poison] = lsp.needs
    for artefact, main in ((poison, poison_main), (clean, evaluate.main), (lsp, evaluate.main)):
        path = succeed(main, *artefact.arguments)
        meta = json.loads((path / "meta.json").read_text())
        assert meta["fingerprint"] == artefact.job.fingerprint
    assert json.loads((lsp.out / "record.json").read_text())["train"]["rows"] == 100


def test_a_step_may_take_fewer_rows(tiny):
    """`limit:` in a step: planned as the commands make it, and the set before it is made whole."""
    changed(tiny, "      purify:", "      limit: 100\n      purify:")
    cell = next(cell for cell in planned(tiny) if cell.column.family == "jpeg")
    [purified] = cell.record.needs
    [poison] = purified.needs
    assert "limit=100" in purified.arguments
    assert "limit=100" not in poison.arguments
    for artefact, main, rows in ((poison, poison_main, 320), (purified, purify.main, 100)):
        path = succeed(main, *artefact.arguments)
        meta = json.loads((path / "meta.json").read_text())
        assert meta["fingerprint"] == artefact.job.fingerprint
        assert len(ImageSet.load(path)) == rows
    path = succeed(evaluate.main, *cell.record.arguments)
    assert json.loads((path / "meta.json").read_text())["fingerprint"] == \
        cell.record.job.fingerprint


@pytest.mark.parametrize(("old", "new", "message"), [
    ("configs/purifiers/jpeg.yaml", "configs/purifiers/jpg.yaml", r"jpg\.yaml: no such file"),
    ("jpeg.quality:", "jpeg.qualty:", r"tiny\.yaml:\d+: .*unknown key 'jpeg.qualty'.*quality"),
    ('"{quality}"', '"{qality}"', r"there is no \{qality\} here; known: .*\{quality\}"),
    ("only: [lsp]", "only: [lps]", r"only: there is no 'lps'; did you mean 'lsp'|only: .*'lps'"),
    ("      purify:", "      purfy:", r"tiny\.yaml:\d+: a step names one of poison, train_vae"),
    ('["jpeg quality=10", ', '["jpg", ', r"iss_best: there is no column 'jpg'"),
    ("columns:", "colums:", r"tiny\.yaml:\d+: unknown key 'colums'.*columns"),
    ("data: ", "dta: ", r"settings: unknown key 'dta'"),
    ("seeds: [0, 1]", "seeds: []", r"at least one seed"),
    ("method", "method", ""),
])
def test_a_mistake_in_a_table_is_named(tiny, old, new, message):
    if not message:                                     # an unknown method
        changed(tiny, "      jpeg.quality:", "      method: jpge\n      jpeg.quality:")
        message = r"tiny\.yaml:\d+: .*method: there is no purifiers/jpge\.py.*jpeg"
    else:
        changed(tiny, old, new)
    with pytest.raises(UserError) as error:
        planned(tiny)
    assert re.search(message, str(error.value)), error.value


def test_a_trained_purifier_needs_its_training_step(tiny):
    changed(tiny, "  none: []", "  none: []\n  dvae:\n    purify: configs/purifiers/dvae.yaml")
    with pytest.raises(UserError, match="dvae is trained: a train step must come before"):
        planned(tiny)


DIFFUSION = """
title: diffusion
dataset: cifar10
seeds: [0]
settings: {{data: {few}, threads: 1}}
evaluate: {{evaluate: configs/learners/em60.yaml}}
rows:
  lsp: {{poison: configs/poisons/lsp.yaml}}
columns:
  jcdp:
    - train_ddpm: configs/purifiers/ddpm.yaml
      ddpm.train.steps: 5
    - purify: configs/purifiers/jcdp.yaml
      jcdp.lpips_resize: 64
"""


@pytest.mark.parametrize(("keys", "message"), [
    ("jcdp.lpips_net: alex", r"tiny\.yaml:\d+: lpips_net: alex needs https://.*alexnet.* put that "
     "file into .*lpips_net=squeeze"),
    ("jcdp.lpips_net: alex\n      jcdp.lpips_weights: tiny.yaml", "lpips_weights: tiny.yaml"),
    ("jcdp.lpips_resize: 12", "lpips_net: squeeze takes images of at least 17 pixels, not 12"),
    ("jcdp.t_star: 1001", "jcdp.t_star: 1001 steps, but .* was trained on the first 250 only"),
])
def test_what_a_later_step_needs_is_found_before_its_prior_is_trained(
        here, tmp_path, monkeypatch, few_path, keys, message):
    import torch

    def offline(*arguments, **keywords):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    monkeypatch.setattr(run_table, "Scheduler", None)           # nothing is started
    distance.note_download.cache_clear()                       # it is said once a process
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(here / "configs")
    text = DIFFUSION.format(few=few_path)
    key = keys.partition(":")[0]
    Path("tiny.yaml").write_text(re.sub(rf"\n +{key}: .*", "", text).rstrip() + f"\n      {keys}\n")
    for words in ([], ["--dry-run"]):
        outcome = run_command(run_table.main, "tiny.yaml", *words)
        if words and keys == "jcdp.lpips_net: alex":            # what running will download
            assert (outcome.status, outcome.stdout.count("\n")) == (0, 4)
            assert re.search(r"note: lpips_net: alex needs https://.*alexnet", outcome.stderr)
            continue
        assert outcome.status == 1
        assert re.search(message, outcome.error), outcome.error
    assert planned(Path("tiny.yaml"))                              # what is there can be printed


@pytest.mark.parametrize(("old", "new", "message"), [
    ("ddpm.train.steps: 5", "data: digits\n      size: 32", "was trained on 32x32 images, but the "
     "set has 16x16"),
    ("purify: configs/purifiers/jcdp.yaml\n      jcdp.lpips_resize: 64",
     "purify: configs/purifiers/dvae.yaml", "is a checkpoint of 'ddpm', not of 'dvae'"),
])
def test_a_checkpoint_that_cannot_fit_is_a_mistake_in_the_table(here, few_path, old, new, message):
    path = here / "diffusion.yaml"
    path.write_text(DIFFUSION.format(few=few_path))
    changed(path, old, new)
    with pytest.raises(UserError, match=rf"diffusion\.yaml:\d+: .*{message}"):
        planned(path)


def test_quick_is_the_same_grid_on_digits(here):
    full = spec.read_one("configs/tables/dvae_cifar10.yaml")
    quick = spec.read_one("configs/tables/dvae_cifar10.yaml", QUICK)
    assert [line.name for line in quick.rows] == [line.name for line in full.rows]
    assert [line.name for line in quick.columns] == [line.name for line in full.columns]
    assert quick.settings == {"data": "digits"}
    cell = next(cell for cell in plan.Planner(quick).cells()
                if (cell.row.name, cell.column.name) == ("em", "dvae"))
    purify, = (need for need in cell.record.needs if need.job.kind == "purified")
    poison, dvae = purify.needs
    assert poison.job.config["epsilon"] == 32 / 255     # what the YAMLs hold `for: digits:`
    assert dvae.job.config["width"] == 16
    assert cell.record.job.config["epochs"] == 10


def test_a_part_of_a_table(several):
    """Rows, columns and seeds by name; `none` of all of an `over`; seeds in the order typed."""
    choice, settings = Choice.split(["--rows=lsp", "--seeds", "2,1", "threads=1"])
    assert settings == ("threads=1",)
    assert choice.words == ["--rows=lsp", "--seeds=2,1"]
    digits, photos = spec.read(str(several), choice)
    assert (digits.seeds, [row.name for row in photos.rows]) == ((2, 1), ["lsp"])
    path = "configs/tables/le_table3.yaml"
    whole, part = spec.read_one(path), spec.read_one(path, Choice(columns=("jpeg", "none")))
    assert [line.name for line in part.columns] == ["none", "jpeg"]     # in the table's order
    assert part.rows == whole.rows
    assert not part.derived                                             # bdr and gray are not there
    part = spec.read_one(path, Choice(columns=("bdr", "gray", "jpeg")))
    assert [line.name for line in part.derived] == ["iss_best"]
    table = spec.read("configs/tables/le_table2.yaml",
                      Choice.split(["--columns", "blur, sigma 1,jcdp"])[0])[0]
    assert {line.name for line in table.columns} == {"blur, sigma 1", "jcdp"}   # a comma in a name
    swept = spec.read_one("configs/tables/fig2b.yaml", Choice(columns=("jpeg",)))
    assert len(swept.columns) == 7
    with pytest.raises(UserError, match=r"--rows: .*le_table3.yaml has no 'lps'; did you mean"):
        spec.read_one(path, Choice(rows=("lps",)))
    assert spec.read_one("le_table3").title == whole.title
    with pytest.raises(UserError, match=r"^there is no configs/tables/le_table33.yaml; did you"):
        spec.read("le_table33")
    with pytest.raises(UserError, match="--seeds 1,x: expected whole numbers"):
        Choice.split(["--seeds", "1,x"])
    assert Choice.split(["--seeds", "1,0,1"])[0].seeds == (1, 0)
    with pytest.raises(UserError, match="--rows ',': it names none"):
        Choice.split(["--rows", ","])


def test_a_choice_without_a_cell_is_refused(tiny):
    with pytest.raises(UserError, match=r"tiny.yaml: by its `only:`, none of these rows has one"):
        plan.cells_of([spec.read_one(str(tiny), Choice(rows=("clean",), columns=("jpeg",)))])


@pytest.mark.parametrize(("name", "seeds"), [
    ("countermeasures", (0,)), ("bridgepure_table1", (0, 1, 2, 3, 4)), ("fig3", (0,))])
def test_a_tables_own_seeds_win(here, name, seeds):
    """Also over those of --quick, unless its own `quick:` has others."""
    assert spec.read_one(name, QUICK).seeds == seeds


def test_a_seed_is_named_once(tiny):
    with pytest.raises(UserError, match=r"seeds: \[0, 0\] has one twice"):
        spec.read_one(str(changed(tiny, "[0, 1]", "[0, 0]")))


# --- a method's keys -------------------------------------------------------------------------


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


def test_small_is_the_same_grid_on_few_photographs(here):
    """What the YAMLs hold `for: small:`, whatever set stands in the place of CIFAR-10."""
    table = spec.read_one("configs/tables/le_table3.yaml", Choice("small", rows=("em", "lsp")),
                          ("data=digits", "size=32", "split=first:100"))
    assert table.settings == {"data": "digits", "size": "32", "split": "first:100", "like": "small"}
    jobs = {(cell.row.name, cell.column.name): cell.record for cell in plan.Planner(table).cells()}
    record = jobs["em", "none"]
    assert (record.job.config["epochs"], record.job.config["width"]) == (12, 16)
    assert record.needs[0].job.config["batch_size"] == 128
    [purified] = jobs["lsp", "jcdp"].needs
    poison, prior = purified.needs
    assert poison.job.config["radius"] == 1.3041
    assert prior.job.config["steps"] == 12000


@pytest.mark.parametrize("name", sorted(path.stem for path in spec.TABLES.glob("*.yaml")
                                        if path.stem not in FORMS))
def test_small_needs_no_second_data_set(here, name, capsys):
    """Every table: beside CIFAR-10's rows a prior sees its test images or what is embedded."""
    table = spec.read_one(name, Choice("small"))
    read = {step.settings["data"] for line in (*table.rows, *table.columns) for step in line.steps
            if "data" in step.settings}
    assert (table.settings["data"], read - set(EMBEDDED)) == ("cifar10", set())
    assert not capsys.readouterr().err              # nothing had to be left out


def test_small_makes_jcdp_with_a_prior_of_the_test_images(here):
    """In the place of one of CIFAR-100 that is fine-tuned on them; all other columns stay."""
    small, full = (spec.read("le_table1", Choice(size))[0] for size in ("small", ""))
    assert [line.name for line in small.columns] == [line.name for line in full.columns]
    (train, purify_), (first, *_) = (next(line.steps for line in table.columns
                                         if line.name == "jcdp") for table in (small, full))
    assert first.settings["data"] == "{prior}"
    assert train.settings == {"split": "test", "seed": "0"}
    assert purify_.method == "jcdp"


OTHER = """
  svhn prior:
    - {{train_ddpm: configs/purifiers/ddpm.yaml, data: {data}}}
    - purify: configs/purifiers/jcdp.yaml
derived:
  best: {{max: [none, svhn prior]}}
"""


@pytest.mark.parametrize("data", ["svhn", '"{other}"\nlet: {other: svhn}'])
def test_small_says_which_lines_it_leaves_out(tiny, data, capsys):
    """Those that read another data set and for which it has nothing instead."""
    name, _, words = data.partition("\n")
    text = changed(tiny, "dataset: cifar10", f"dataset: cifar10\n{words}").read_text()
    tiny.write_text(text.split("derived:")[0].rstrip() + OTHER.format(data=name))
    table = spec.read_one(str(tiny), Choice("small"))
    assert [line.family for line in table.columns] == ["none", "jpeg", "jpeg"]
    assert not table.derived
    assert capsys.readouterr().err == (
        f"note: {tiny} --small: without svhn prior, which read other data sets\n")
    assert len(spec.read_one(str(tiny)).columns) == 4


def test_small_may_make_a_part_unless_others_are_chosen(here):
    def columns(*chosen: str) -> list[str]:
        return [line.name for line in
                spec.read_one("le_table3", Choice("small", columns=chosen)).columns]

    assert columns() == ["none", "bdr", "gray", "jpeg", "jcdp"]
    assert columns("avatar") == ["avatar"]


def test_small_leaves_a_learner_of_its_own_kind_its_protocol(here):
    """SimCLR's classifier is a probe: a protocol of supervised training is none for it."""
    table = spec.read_one("le_table4", Choice("small", columns=("none", "cutout")),
                          ("data=digits", "size=32"))
    jobs = {(cell.row.name, cell.column.name): cell.record.job
            for cell in plan.Planner(table).cells()}
    assert {(job.method, job.config["width"], job.config["epochs"]) for job in jobs.values()} == {
        ("simclr", 16, 40)}
    assert jobs["cp_s", "cutout"].config["views"]["cutout"] == 16


def test_quick_takes_any_learner(tiny):
    """What it changes of an evaluation is a key of whichever method that is."""
    changed(tiny, "configs/learners/em60.yaml", "configs/learners/smoothing.yaml")
    changed(tiny, "  standard.width: 4\n  standard.epochs: 1\n  standard.test_every: 0\n", "")
    [cell, *_] = plan.Planner(spec.read_one(str(tiny), QUICK)).cells()
    assert (cell.record.job.method, cell.record.job.config["test_every"]) == ("smoothing", 0)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/tables").glob("*.yaml")),
                         ids=lambda path: path.stem)
def test_every_table_can_be_planned_on_digits(here, path):
    if path.stem in (*FORMS, "reported"):
        pytest.skip("not a table")
    read = spec.read_one(f"configs/tables/{path.name}", QUICK)
    cells = list(plan.Planner(read).cells())
    assert {cell.row.name for cell in cells} == {row.name for row in read.rows}
    assert {cell.column.name for cell in cells} == {column.name for column in read.columns}


def test_a_row_or_column_may_end_with_a_learner_of_its_own(tiny):
    """It trains in the table's place; no other cell changes."""
    before = {str(cell): cell.record.job.fingerprint for cell in planned(tiny)}
    changed(tiny, "columns:\n", "  ops:\n    - poison: configs/poisons/ops.yaml\n"
            "    - {evaluate: configs/learners/em100.yaml, standard.width: 2}\n"
            "columns:\n  smoothed:\n    over: {amount: [0.1, 0.3]}\n    only: [lsp]\n    steps:\n"
            "      - purify: configs/purifiers/gray.yaml\n"
            "      - evaluate: configs/learners/smoothing.yaml\n"
            "        protocol: configs/learners/cpu12.yaml\n"
            '        smoothing.label_smoothing: "{amount}"\n')
    cells = {str(cell): cell.record for cell in planned(tiny)}
    assert before.items() <= {key: made.job.fingerprint for key, made in cells.items()}.items()
    smoothed = cells["lsp x smoothed amount=0.3, seed 1"]
    assert [need.job.method for need in smoothed.needs] == ["gray"]
    job = smoothed.job
    assert (job.method, job.preset, job.seed) == ("smoothing", "smoothing_cpu12", 1)
    assert {"label_smoothing": 0.3, "width": 8, "schedule": "onecycle"}.items() <= \
        job.config.items()                              # cpu12's form for digits
    job = cells["ops x none, seed 0"].job
    assert (job.method, job.preset, job.config["width"]) == ("standard", "em100", 2)


@pytest.mark.parametrize(("old", "new", "message"), [
    ("  none: []", "  none: [{evaluate: configs/learners/em60.yaml}, {purify: configs/purifiers/"
     "gray.yaml}]", r"tiny\.yaml:\d+: none: evaluate is the last step of a row or column"),
    ("  none: []", "  none: {evaluate: configs/learners/em60.yaml}\n  again: {evaluate: configs/"
     "learners/em100.yaml}", ""),
    ("  clean: []", "  clean: {evaluate: configs/learners/em60.yaml}\n  other: []", "")])
def test_a_cell_has_one_learner(tiny, old, new, message):
    """Named twice it is refused: neither could be meant to lose."""
    changed(tiny, old, new)
    if not message:
        assert planned(tiny)                            # either may name one
        changed(tiny, *(("  clean: []", "  clean: {evaluate: configs/learners/em60.yaml}")
                        if "again" in new else
                        ("  none: []", "  none: {evaluate: configs/learners/em60.yaml}")))
        message = r"tiny\.yaml:\d+: none: the row clean names a learner too; .*`only:`"
    with pytest.raises(UserError, match=message):
        planned(tiny)


SEVERAL = """
title: Two sets
data: [digits, photos]
let: {{other: photos}}
for:
  photos: {{let: {{other: digits}}, evaluate: {{evaluate: configs/learners/em100.yaml}}}}
seeds: [0]
settings: {{size: 16, threads: 1}}
evaluate: {{evaluate: configs/learners/em60.yaml, standard.epochs: 1}}
rows:
  lsp: {{poison: configs/poisons/lsp.yaml}}
columns:
  none: []
  "{{other}} prior":
    reported: jcdp, {{other}}
    steps:
      - {{train_ddpm: configs/purifiers/ddpm.yaml, data: "{{other}}"}}
      - {{purify: configs/purifiers/jcdp.yaml}}
"""


@pytest.fixture
def several(here) -> Path:
    """The YAML of a table on two data sets."""
    path = here / "several.yaml"
    path.write_text(SEVERAL.format())
    return path


def test_a_table_stands_for_each_of_its_data_sets(several):
    digits, photos = spec.read(str(several))
    assert [table.title for table in (digits, photos)] == ["Two sets (digits)", "Two sets (photos)"]
    assert (digits.dataset, photos.dataset) == ("digits", "photos")
    assert [line.name for line in digits.columns] == ["none", "photos prior"]
    assert [line.name for line in photos.columns] == ["none", "digits prior"]
    assert photos.columns[1].reported == "jcdp, digits"
    assert digits.evaluate.yamls == ("configs/learners/em60.yaml",)
    assert photos.evaluate.yamls == ("configs/learners/em100.yaml",)
    assert photos.evaluate.settings == digits.evaluate.settings
    cells = plan.cells_of([digits, photos])
    assert [str(cell) for cell in cells][1:3] == ["digits: lsp x photos prior, seed 0",
                                                  "photos: lsp x none, seed 0"]
    # The same work is one artefact: each table's clean images are the other's prior's.
    assert len({cell.record.job.fingerprint for cell in cells}) == 4
    for cell in cells:
        [poison] = [need for need in artefacts_of(cell.record) if need.job.kind == "poisons"]
        assert f"data={cell.table.block}" in poison.arguments


def artefacts_of(artefact: plan.Artefact) -> set[plan.Artefact]:
    return {artefact, *(found for need in artefact.needs for found in artefacts_of(need))}


@pytest.mark.parametrize(("words", "title", "data", "prior"), [
    (("data=photos",), "Two sets (photos)", "photos", "digits prior"),
    (("data=few.npz",), "Two sets (few.npz)", "few.npz", "photos prior"),
    (("data=few.npz", "like=photos"), "Two sets (few.npz)", "few.npz", "digits prior")])
def test_data_names_one_of_a_tables_data_sets(several, words, title, data, prior):
    table = spec.read_one(str(several), overrides=words)
    assert (table.title, table.settings["data"], table.columns[1].name) == (title, data, prior)


def test_quick_is_one_small_data_set(several):
    table = spec.read_one(str(several), QUICK)
    assert (table.title, table.settings) == ("Two sets", {"data": "digits"})
    assert table.columns[1].words == {"other": "photos"}


@pytest.mark.parametrize(("old", "new", "message"), [
    ("  photos: {let", "  photo: {let", r"several\.yaml:\d+: for: photo: the table's data sets are "
     "digits, photos"),
    ("size: 16", "data: digits", "settings: data: the table names its data sets at its top"),
    ("other} prior", "ohter} prior", r"several\.yaml:\d+: there is no \{ohter\} here"),
    ("let: {other: photos}\n", "lett: {other: photos}\n", "unknown key 'lett'.*'let'")])
def test_a_mistake_about_data_sets_is_named(several, old, new, message):
    with pytest.raises(UserError, match=message):
        spec.read(str(changed(several, old, new)))


def test_a_plan_says_once_where_a_method_has_no_values_for_the_data_set(several, capsys):
    plan.cells_of(spec.read(str(several), overrides=("data=photos",)))
    said = capsys.readouterr().err
    assert said.count("lsp.yaml has no values of its own for photos; those for cifar10") == 1


def test_a_tables_own_mistake_is_not_the_command_lines(several):
    row = "  em: {poison: configs/poisons/em.yaml, em.epsilom: 1}\n"
    table = changed(several, "columns:", f"{row}columns:")
    with pytest.raises(UserError, match=r"several\.yaml:\d+: unknown key 'em\.epsilom'"):
        plan.cells_of(spec.read(str(table)))


def test_no_data_set_is_a_mistake(several):
    with pytest.raises(UserError, match="data=: it names no data set"):
        spec.read(str(several), overrides=("data=",))


def test_what_is_drawn_is_of_one_data_set(several):
    with pytest.raises(UserError, match="data= names one of digits, photos"):
        spec.read_one(str(several))


def test_several_data_sets_print_as_one_table(several):
    tables = spec.read(str(several))
    cells = plan.cells_of(tables)
    entries = [entry for table in tables for entry in render.collect(table, cells)]
    head, lines = render.long(entries)
    assert head == ("data", "poison", "defence", "accuracy (%)")
    assert [line[:3] for line in lines] == [["digits", "lsp", "none"],
                                            ["digits", "lsp", "photos prior"],
                                            ["photos", "lsp", "none"],
                                            ["photos", "lsp", "digits prior"]]
    head, lines = render.wide(entries)
    assert head == ("data", "poison", "none", "photos prior", "digits prior")
    assert [line[:2] for line in lines] == [["digits", "lsp"], ["photos", "lsp"]]


def test_le_table_1_is_as_printed(here):
    """Its three data sets, each with its own prior and protocol; jcdp's numbers are LE's."""
    tables = spec.read("configs/tables/le_table1.yaml")
    assert [table.dataset for table in tables] == ["cifar10", "cifar100", "svhn"]
    for key, expected in (("prior", ["cifar100", "cifar10", "cifar10"]),
                          ("protocol", ["em60", "em100", "em60"])):
        words = [Path(table.columns[-1].words[key]).stem for table in tables]
        assert words == expected
    for table in tables:                                # what `protocol` says twice
        assert table.evaluate.yamls == (table.columns[-1].words["protocol"],)
    published = render.published()
    found = [render.facts_of(table, "lsp", "jcdp", published)[0]["accuracy"] for table in tables]
    assert len(set(found)) == 3


@pytest.mark.parametrize("path", sorted((ROOT / "configs/tables").glob("*.yaml")),
                         ids=lambda path: path.stem)
def test_what_a_column_is_reported_as_is_published(path):
    """A mistyped `reported:` would leave the numbers out without a word."""
    if path.stem in FORMS:
        pytest.skip("not a table")
    known = {name for fact in render.published() for name in (fact["attack"], render.name_of(fact))}
    for table in spec.read(str(path)):
        for line in (*table.rows, *table.columns):
            assert line.reported == line.family or line.reported in known, line.reported


def test_every_table_has_its_line_and_every_line_its_table():
    tables = {path.stem for path in (ROOT / "configs/tables").glob("*.yaml")} - set(FORMS)
    for name in tables:
        head = "".join((ROOT / f"configs/tables/{name}.yaml").read_text().splitlines(True)[:4])
        lines = re.findall(r"(?:bash|python) (scripts/\w+\.(?:sh|py))", head)
        assert lines, f"{name}.yaml names no line that makes it"
        assert all((ROOT / line).exists() for line in lines), lines
    for path in (ROOT / "scripts").glob("*.sh"):
        for name in re.findall(r'table\.sh" (\w+)', path.read_text()):
            assert name == path.stem
            assert name in tables


def test_a_row_that_reads_a_set_still_to_be_made(here):
    """dvae_reuse: the poison `reuse` names the purified set that the step before will make."""
    cells = planned(Path("configs/tables/dvae_reuse.yaml"), QUICK)
    [record] = [c.record for c in cells if c.row.name == "lsp reused" and c.seed == 0]
    [reuse] = record.needs
    assert reuse.job.method == "reuse"
    [source] = reuse.needs
    assert source.job.method == "dvae"
    assert reuse.job.inputs["source"] == source.job.fingerprint
    assert "source" not in reuse.job.config
    assert [need.job.kind for need in source.needs] == ["poisons", "checkpoints"]


# --- making ----------------------------------------------------------------------------------


def test_a_table_is_made_once(tiny):
    """From nothing, then again, then with one more column by YAML alone."""
    changed(tiny, "seeds: [0, 1]", "seeds: [0]")
    first = start(tiny, "--jobs", "2")
    _, stderr = first.communicate(timeout=300)
    assert first.returncode == 0, stderr
    before = finished_at(Path("runs"))
    assert len(before) >= 7
    cells = planned(tiny)
    assert all(cell.record.done for cell in cells)
    assert plan.wanted(cells, {}) == []
    assert json.loads((cells[0].record.out / "record.json").read_text())["device"]["threads"] == 1
    written, = noted.read(noted.PLANS)                  # for those who clean
    assert written.line == f"{tiny} threads=1"
    assert written.until == {cell.record.job.fingerprint for cell in cells}
    sets = {made for cell in cells for made in cell.record.needs}
    sets |= {poison for made in sets for poison in made.needs}
    assert written.artefacts == written.until | {made.job.fingerprint for made in sets}

    again = run_command(run_table.main, tiny, "--jobs", "2")
    assert again.status == 0, again.stderr
    assert "0 artefacts to make" in again.stderr
    assert finished_at(Path("runs")) == before

    changed(tiny, "  none: []", "  none: []\n  gray:\n    purify: configs/purifiers/gray.yaml")
    more = run_command(run_table.main, tiny, "--rows", "clean")
    assert more.status == 0, more.stderr
    new = set(finished_at(Path("runs"))) - set(before)
    assert len(new) == 2                                # a set and a record
    assert all("gray" in name for name in new)

    changed(tiny, "[0]", "[5]")                         # whose like has been timed
    outcome = run_command(run_table.main, tiny, "--rows", "clean", "--dry-run")
    assert re.search(r"estimate [\d.]+ \w+ for 2 of them", outcome.stderr), outcome.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can fork safely")
def test_a_brief_step_is_made_without_a_new_python(tiny, monkeypatch):
    """In a fork of the runner: the bytes that its command makes."""
    cell = next(cell for cell in planned(tiny) if cell.column.family == "jpeg")
    [purified] = cell.record.needs
    [poison] = purified.needs
    assert (purified.brief, poison.brief, cell.record.brief) == (True, False, False)
    succeed(poison_main, *poison.arguments)
    monkeypatch.setattr(schedule.processes, "start", None)
    assert schedule.Scheduler([purified], 1, []).run() == {}
    again = succeed(purify.main, *purified.arguments, "out=again")
    assert content(again) == content(purified.out)
    assert "jpeg changed" in schedule.log_of(purified).read_text()


def test_beside_a_gpu_nothing_is_forked(monkeypatch):
    """CUDA cannot be begun in a fork of a process that has looked for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not schedule.Scheduler([], 1, []).forks


def test_a_failed_cell_does_not_stop_the_others(tiny):
    changed(tiny, "  lsp:\n", "  broken:\n    poison: configs/poisons/lsp.yaml\n"
                              "    data: /nowhere/at-all\n  lsp:\n")
    with pytest.raises(UserError, match="/nowhere/at-all"):
        planned(tiny)                                      # found before anything is made
    # Of 300 pixels a side there are 3 features: too few for ten classes.
    changed(tiny, "data: /nowhere/at-all", "lsp.patch: 300")
    outcome = run_command(run_table.main, tiny, "--rows=broken,clean", "--columns=none",
                          "--seeds=3")
    assert outcome.status == 1
    said = outcome.stderr
    assert said.index("FAILED: poison") < said.index("] clean x none, seed 3: ")
    assert "\nbroken x none, seed 3: lsp.patch" in said
    assert "1 of 2 cells failed" in said


def test_an_edited_record_is_named(tiny):
    choice = Choice(rows=("clean",), columns=("none",), seeds=(0,))
    [cell] = planned(tiny, choice)
    make_missing([cell])
    record = cell.record.out / "record.json"
    text = record.read_text()
    record.write_text(text.replace('"accuracy_last": 0.', '"accuracy_last": 0.9'))
    try:
        outcome = run_command(run_table.main, tiny, *choice.words)
        assert outcome.status == 1
        assert re.search(r"clean x none, seed 0: .*record\.json does not match", outcome.stderr)
    finally:
        record.write_text(text)


@pytest.mark.slow
def test_two_at_once_and_a_kill_make_the_same(tiny):
    """kill -9 of everything in the middle; then two processes on the same table."""
    changed(tiny, "lsp.patch: 8", "lsp.patch: 4")       # a set of artefacts of its own
    victim = start(tiny, start_new_session=True)
    deadline = time.monotonic() + 120
    while not any("lsp" in name for name in finished_at(Path("runs"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(3)
    subprocess.run(["pkill", "-9", "-s", str(victim.pid)], check=False)
    subprocess.run(["pkill", "-9", "-f", str(tiny)], check=False)
    victim.wait()
    both = [start(tiny), start(tiny)]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    assert not list(Path("runs").rglob("*.partial"))
    assert all(cell.record.done for cell in planned(tiny))


def test_ctrl_c_saves_and_says_so(tiny):
    changed(tiny, "standard.epochs: 1", "standard.epochs: 2000")
    record = planned(tiny)[0].record.out
    process = start(tiny)
    log = Path(f"runs/logs/records-{record.name}.log")
    deadline = time.monotonic() + 120
    while not (log.exists() and "epoch" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same line resumes" in stderr
    assert list(record.with_name(f"{record.name}.partial").glob("state/*.pt"))


def test_finished_records_of_another_precision_are_said(tiny, monkeypatch):
    """As a committed record says of itself; an `auto` asks for nothing."""
    cells = planned(tiny)
    made = Path("made")
    made.mkdir(exist_ok=True)
    (made / "meta.json").write_text('{"device": {"precision": "bf16"}}')
    monkeypatch.setattr(run_table.records, "committed",
                        lambda: {cell.record.job.fingerprint: made for cell in cells})
    assert "made with" not in run_command(run_table.main, tiny, "--dry-run").stderr
    assert (f"made is already done, made with precision=bf16, not fp32: another out= makes it anew "
            f"({len(cells)} such records)\n") in run_command(
                run_table.main, tiny, "--dry-run", "precision=fp32").stderr


# --- estimates -------------------------------------------------------------------------------


def test_torn_and_foreign_lines_of_the_timings_do_not_count():
    good = '{"key": ["poison", "lsp", {"epochs": 2}, 50], "seconds": 2}'
    for line in ('{"key": ["poison", "l', "[1, 2]", '{"key": ["a", "b", 7, 7], "seconds": 1}',
                 '{"key": ["a", "b", {"epochs": "x"}, 7], "seconds": 1}', '{"key": "abcd"}',
                 '{"key": ["a", [], {}, 7], "seconds": 1}', '{"key": ["a", "b", {}, 0]}', "7",
                 '{"key": 1}', "\xff\xfe", "[" * 100_000,
                 '{"key": 1, "seconds": "soon"}', '{"key": 1, "seconds": NaN}',
                 f'{{"key": 1, "seconds": {10**400}}}', '{"key": 1, "seconds": -3}'):
        files.mkdir(estimates.TIMINGS.parent)
        estimates.TIMINGS.write_text(f"{good}\n{line}\n{good}\n{line}", "latin-1")
        found, end = estimates.read_timings()
        assert found == [(["poison", "lsp", {"epochs": 2}, 50], 2)] * 2, line
        assert end == len(f"{good}\n{line}\n{good}\n".encode("latin-1"))    # the last may be torn


@pytest.mark.parametrize("place", ["nothing", "a folder", "below a file", "a pipe"])
def test_timings_that_cannot_be_read_or_written_are_skipped(tmp_path, monkeypatch, place):
    path = tmp_path / "timings.jsonl"
    if place == "a folder":
        path.mkdir()
    elif place == "a pipe":
        os.mkfifo(path)
    elif place == "below a file":
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "timings.jsonl"
    monkeypatch.setattr(estimates, "TIMINGS", path)
    assert estimates.read_timings() == ([], 0)
    files.append_or_skip(path, b"x\n")
    assert place != "nothing" or path.read_bytes() == b"x\n"


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "timings.jsonl"
    path.write_bytes(b"one\ntor")
    files.append_or_skip(path, b"two\n")
    assert path.read_bytes() == b"one\ntor\ntwo\n"

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)       # as a disk that gets full in the line
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 3, limit[1]))
    try:
        files.append_or_skip(path, b"three\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == b"one\ntor\ntwo\n"


def test_compiling_commands_share_the_cores(tiny, monkeypatch):
    """32 processes each, as torch would start, are too many."""
    started = []
    monkeypatch.setattr(schedule.processes, "start",
                        lambda words, env, **options: started.append(env))
    monkeypatch.setattr(schedule, "free_cores", lambda: 10)
    record = planned(tiny)[0].record
    key = "TORCHINDUCTOR_COMPILE_THREADS"
    monkeypatch.delenv(key, raising=False)
    claim = claims.take(record)
    schedule.Scheduler([record], 4, [])._launch(record, claim)
    monkeypatch.setenv(key, "7")
    schedule.Scheduler([record], 4, ["GPU-1"])._launch(record, claim)
    assert started == [{key: "2"}, {key: "7", "CUDA_VISIBLE_DEVICES": "GPU-1"}]


# --- printing --------------------------------------------------------------------------------


def test_the_table_prints_what_the_records_say(tiny):
    make_missing(planned(tiny))
    accuracies: dict = {}
    for cell in planned(tiny):
        record = json.loads((cell.record.out / "record.json").read_text())
        accuracies.setdefault((cell.row.name, cell.column.name), []).append(
            100 * record["accuracy_last"])

    outcome = run_command(render.main, tiny, "--format", "csv")
    lines = [line.split(",") for line in outcome.stdout.splitlines()]
    assert lines[0][:3] == ["poison", "defence", "accuracy (%)"]
    shown = {(line[0], line[1]): line for line in lines[1:]}
    for key, values in accuracies.items():
        expected = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} (2)"
        assert shown[key][2] == expected
    best = max(("jpeg quality=10", "jpeg quality=50"),
               key=lambda name: statistics.mean(accuracies["lsp", name]))
    oracle = shown["lsp", "iss_best"]
    assert oracle[2] == shown["lsp", best][2]
    assert f"† best of these: {best}" in oracle
    # LE, Table 3: 15.0 for undefended LSP on CIFAR-10
    reported = lines[0].index("reported")
    assert shown["lsp", "none"][reported] == "15.0 LE T1" or "LE" in shown["lsp", "none"][reported]
    gap = float(shown["lsp", "none"][lines[0].index("gap")])
    assert gap == pytest.approx(statistics.mean(accuracies["lsp", "none"]) - 15.0, abs=0.051)

    for words in (["--format", "latex"], ["--wide"], []):
        text = run_command(render.main, tiny, *words).stdout
        assert f"{statistics.mean(accuracies['clean', 'none']):.1f}" in text
    assert text.splitlines()[1].count("---") == text.splitlines()[0].count("|") - 1

    [purified] = next(c.record for c in planned(tiny) if c.column.name == best).needs
    [poison] = purified.needs
    errors = (ImageSet.load(purified.out).images / 255.0 - ImageSet.load(poison.out).images / 255.0)
    psnr = -10 * math.log10((errors**2).mean())         # of the whole set
    text = run_command(render.main, tiny, "--distances").stdout
    [line] = [line for line in text.splitlines() if f"jpeg {best[-2:]} |" in line]
    assert line.split(" | ")[2] == f"{psnr:.2f}"


def found(row: str, column: str, *accuracies: float) -> render.Entry:
    return render.Entry("", row, column, list(accuracies), (None, None, None), "", None, [])


def test_the_gap_of_a_linear_probe_is_of_its_best_epoch_as_the_published_number():
    last = dataclasses.replace(found("cp_s", "none", 40.0, 42.0), reported={
        "accuracy": 44.9, "source": "CP", "table": "README"})
    assert last.gap == pytest.approx(41 - 44.9)
    probed = [{"accuracy_best": 0.45, "probe": {"data": "clean"}},
              {"accuracy_best": 0.47, "probe": {"data": "clean"}}]
    best = dataclasses.replace(last, best=render.probes_best(probed))
    assert best.mean == 41
    assert best.gap == pytest.approx(46 - 44.9)
    assert best.oracle == "gap of best epoch: 46.0 ± 1.4 (2)"
    assert render.probes_best([{"accuracy_best": 0.9}, {"accuracy_best": 0.9, "probe": None}]) == ()
    assert last.oracle == dataclasses.replace(best, reported=None).oracle == ""


def test_a_derived_column_waits_for_its_cells(tiny):
    """The best of what happens to be there would be another number once the rest is."""
    cells = planned(tiny)
    record = {"accuracy_last": 0.5, "train": {"lineage": []}, "seconds": 1.0,
              "purifier_trained_on": []}

    def derived(*there: plan.Cell) -> render.Entry:
        [entry] = [e for e in render.collect(
            cells[0].table, cells, lambda one: Path(one.out.name)
            if one in [cell.record for cell in there] else None) if e.column == "iss_best"
            and e.row == "lsp"]
        return entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render.records, "load", lambda place: record)
        jpegs = [cell for cell in cells if cell.column.family == "jpeg"]
        assert derived(*jpegs).accuracies == [50.0, 50.0]
        assert derived(*jpegs[1:]).accuracies == []             # one seed of one quality lacks
        assert derived().accuracies == []


def test_a_row_whose_poison_does_not_poison_is_marked(tiny):
    table = spec.read_one(str(tiny))
    clean = found("clean", "none", 90.0, 92.0)
    assert render.marks_of(table, [clean, found("lsp", "none", 86.2)]) == \
        {"lsp": "‡ no: 4.8 points, undefended"}
    assert render.marks_of(table, [clean, found("lsp", "none", 86.0)]) == {}
    assert render.marks_of(table, [found("lsp", "none", 91.0)]) == {}       # clean is not there yet
    assert render.marks_of(table, [clean, found("lsp", "jpeg quality=10", 91.0)]) == {}
    marked = [clean, found("lsp", "none", 90.0)]
    marked[1] = dataclasses.replace(marked[1], mark="‡ no")
    assert [line[0] for line in render.wide(marked)[1]] == ["clean", "lsp ‡"]
    head, lines = render.long(marked)
    assert (head[-1], lines[0][-1], lines[1][-1]) == ("does it poison?", "", "‡ no")


def test_a_smaller_form_says_what_it_is(tiny):
    for words, text in ((["--quick"], "A demonstration, not the paper's experiment: digits, 1,437 "
                         "training images; resnet18 of width 4; n = 0\n\n| poison"),
                        ([], "| poison"),
                        (["standard.epochs=2"], "few, 320 training images; resnet18 of width 4; "
                         "n = 0; with standard.epochs=2\n\n| poison")):
        assert run_command(render.main, tiny, *words).stdout.startswith(text)
    outcome = run_command(render.main, tiny, "--quick", "--format", "csv")
    assert outcome.stdout.startswith("poison,")             # whose readers expect the head first
    assert "A demonstration" in outcome.stderr
    assert run_command(render.main, tiny, "--quick", "--format", "latex").stdout.startswith(
        "% A demonstration")


def test_seconds_are_of_each_kind_of_work():
    """Training the purifier with what it goes on from, purifying, training the classifier; the
    poison's are no defence's."""
    prior = {"seconds": 20.0, "after": {"seconds": 400.0, "after": None}}
    steps = [{"method": "lsp", "seconds": 1.0}, {"method": "gray", "seconds": 2.0},
             {"method": "jcdp", "seconds": 50.0, "trained_on": prior}]

    def seconds(*lineage: dict) -> tuple:
        return render.seconds_of({"train": {"lineage": list(lineage)}, "seconds": 7.0})

    assert seconds(*steps) == (420.0, 52.0, 7.0)
    assert seconds(steps[0]) == (None, None, 7.0)
    assert seconds(*steps[:2]) == (None, 2.0, 7.0)
    prior["after"].pop("seconds")                       # a checkpoint of before seconds were kept
    assert seconds(*steps) == (None, 52.0, 7.0)


def test_a_published_number_says_whose_it_is():
    published = render.published()
    attacks = spec.read_one(str(ROOT / "configs/tables/attacks.yaml"), overrides=("data=cifar10",))
    own, others = render.facts_of(attacks, "ops", "none", published)
    assert render.number(own) == "15.56 OPS paper"       # and not ISS's 36.55
    shown = list(map(render.number, others))
    assert {"36.55 ISS README-main", "14.69 (leaderboard) APBench site-cifar10"} <= set(shown)
    own, others = render.facts_of(attacks, "em", "none", published, "mobilenet_v2")
    assert {fact["arch"] for fact in [own, *others] if fact} == {"mobilenetv2"}
    _, others = render.facts_of(attacks, "rem", "none", published)
    assert "17.47 (simplified, leaderboard) APBench site-cifar10" in map(render.number, others)


def test_a_probe_is_beside_the_same_learners_probe():
    """And not beside supervised training on the same poison."""
    published = render.published()
    for name, learner, reported in (("le_table4", "simclr", 44.9), ("le_table4_moco", "moco", 55.1),
                                    ("le_table4_byol", "byol", 59.6)):
        table = spec.read_one(name, overrides=("data=cifar10",))
        evaluated = render.evaluation(learner)
        own, _ = render.facts_of(table, "cp_s", "none", published, evaluated=evaluated)
        assert own["accuracy"] == reported
        assert render.facts_of(table, "cp_s", "none", published) == (None, [])
    assert {fact["eval"] for fact in published if "eval" in fact} <= {
        render.evaluation(learner) for learner in list_methods("learners")}


def test_published_numbers_are_kept_whole():
    """Facts of the papers' tables, under our names."""
    published = render.published()
    assert len(published) > 1000
    for fact in published:
        assert {"source", "table", "dataset", "attack", "defence", "arch", "accuracy",
                "kind"} <= set(fact)
        assert 0 < fact["accuracy"] <= 100
        assert fact["kind"] in ("paper", "independent", "leaderboard")

    def of(**wanted):
        return [fact["accuracy"] for fact in published
                if all(fact[key] == value for key, value in wanted.items())]

    base = {"source": "LE", "table": "T1", "dataset": "cifar10"}
    assert of(**base, attack="em_classwise", defence="none") == [20.7]
    assert of(**base, attack="tap", defence="jcdp") == [90.8]
    assert of(source="OPS", attack="ops") == [15.56]
    assert of(**{**base, "table": "T3"}, attack="lsp", defence="gray") == [82.5]
    assert of(source="BridgePure", dataset="cifar10", attack="lsp", defence="dvae",
              arch="resnet18")
