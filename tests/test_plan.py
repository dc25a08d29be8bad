"""Planning: cells as artefacts, each known by its fingerprint and after what it needs."""

import json
import re
from pathlib import Path

import pytest
import tables
from conftest import ROOT, run_command, succeed
from tables import QUICK, changed, planned

import evaluate
import purify
import train_vae
from core import distance
from core.errors import UserError
from core.imageset import ImageSet
from poisons.__main__ import main as poison_main
from scripts.tables import plan, run_table, spec
from scripts.tables.table import FORMS, Choice

# fixtures
project, here, tiny, several = tables.project, tables.here, tables.tiny, tables.several


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


def test_tables_may_share_a_cell(here):
    """One line makes both; it is no seed counted twice."""
    choice = Choice("quick", rows=("clean", "lsp"), columns=("none",))
    found = [spec.read_one(name, choice) for name in ("dvae_cifar10", "le_table3")]
    cells = plan.cells_of(found)
    assert len(cells) == 2 * 2 * len(found[0].seeds)
    assert len({cell.record.out for cell in cells}) == len(cells) // 2


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


def test_a_trained_purifier_needs_its_training_step(tiny):
    changed(tiny, "  none: []", "  none: []\n  dvae:\n    purify: configs/purifiers/dvae.yaml")
    with pytest.raises(UserError, match="dvae is trained: a train step must come before"):
        planned(tiny)


def test_a_step_may_name_its_checkpoint(tiny, few_path):
    """Trained elsewhere: nothing is trained for it, and what comes of it has its fingerprint."""
    trained = succeed(train_vae.main, "configs/purifiers/vae.yaml", f"data={few_path}", "threads=1",
                      "--smoke", "seed=3", "out=elsewhere")
    changed(tiny, "  none: []", f"""  none: []
  vae:
    purify: configs/purifiers/vae.yaml
    checkpoint: {trained}""")
    [cell] = [cell for cell in planned(tiny)
              if (cell.row.name, cell.column.name, cell.seed) == ("lsp", "vae", 0)]
    [purified] = cell.record.needs
    assert [need.job.method for need in purified.needs] == ["lsp"]
    assert purified.checkpoint == trained
    succeed(poison_main, *purified.needs[0].arguments)
    path = succeed(purify.main, *purified.arguments)
    meta = json.loads((path / "meta.json").read_text())
    assert meta["fingerprint"] == purified.job.fingerprint
    assert meta["lineage"][-1]["inputs"]["checkpoint"] == \
        json.loads((trained / "meta.json").read_text())["fingerprint"]
    assert meta["lineage"][-1]["seed"] == 3
    changed(tiny, f"checkpoint: {trained}", "checkpoint: nowhere")
    with pytest.raises(UserError, match=r"tiny\.yaml:\d+: nowhere: no such folder"):
        planned(tiny)
    changed(tiny, "purifiers/vae.yaml", "purifiers/gray.yaml")
    with pytest.raises(UserError, match=r"tiny\.yaml:\d+: checkpoint: gray is not trained and"):
        planned(tiny)


@pytest.mark.parametrize(("steps", "said"), [
    ("{poison: configs/poisons/ops.yaml}", "lsp x other: no step after this poison reads"),
    ("{purify: configs/purifiers/jpeg.yaml, data: photos}", "lsp x other: no step after this poi"),
    ("{train_vae: configs/purifiers/vae.yaml}", "lsp x other: no step after this train_vae reads"),
    ("[{purify: configs/purifiers/gray.yaml}, {poison: configs/poisons/ops.yaml}]",
     "lsp x other: no step after this purify reads")])
def test_a_step_that_nothing_after_it_reads_is_refused(tiny, steps, said):
    changed(tiny, "  none: []", f"  none: []\n  other: {steps}")
    with pytest.raises(UserError, match=rf"tiny\.yaml:\d+: {said}"):
        planned(tiny, Choice(rows=("lsp",)))
    if steps.startswith("{p"):                              # where the row has no set of its own
        assert planned(tiny, Choice(rows=("clean",)))


def test_a_poison_may_read_a_file_in_the_rows_set(tiny, few_path):
    """Which is there already: its bytes count."""
    made = succeed(poison_main, "configs/poisons/lsp.yaml", f"data={few_path}", "lsp.patch=8",
                   "threads=1")
    (made / "noise.npy").write_bytes((made / "images.npy").read_bytes())
    changed(tiny, "  none: []", "  none: []\n  dc:\n    poison: configs/poisons/reuse.yaml\n"
            '    reuse.source: "{set}"')
    assert planned(tiny, Choice(rows=("lsp",), columns=("dc",)))
    changed(tiny, '"{set}"', '"{set}/noise.npy"')
    [cell, _] = planned(tiny, Choice(rows=("lsp",), columns=("dc",)))
    assert f"reuse.source={made}/noise.npy" in cell.record.needs[0].arguments


def test_two_seeds_of_a_cell_are_two_runs(tiny):
    changed(tiny, "  standard.epochs: 1\n", "  standard.epochs: 1\n  seed: 3\n")
    assert plan.cells_of(spec.read(str(tiny), Choice(seeds=(0,))))
    with pytest.raises(UserError, match=r"tiny\.yaml:\d+: clean x none: seeds 0 and 1 are one r"):
        plan.cells_of(spec.read(str(tiny)))
    changed(tiny, "seed: 3", 'seed: "{seed}"')
    assert len(plan.cells_of(spec.read(str(tiny)))) == 8


def test_a_step_may_name_a_checkpoint_that_its_table_makes(tiny, few_path):
    """By the folder that another column trains into: no cell trains it again, and each waits for
    it. One sweep over folders is no other matter."""
    changed(tiny, "  none: []", f"""  none: []
  trained:
    - train_vae: configs/purifiers/vae.yaml
      data: {few_path}
      seed: 4
      out: made/prior
    - purify: configs/purifiers/vae.yaml
  named:
    over: {{folder: [prior]}}
    steps:
      purify: configs/purifiers/vae.yaml
      checkpoint: made/{{folder}}""")
    cells = {(cell.row.name, cell.column.family): cell for cell in planned(tiny) if not cell.seed}
    trained, named = (cells["lsp", name].record.needs[0] for name in ("trained", "named"))
    assert trained is named
    [poison, prior] = named.needs
    assert (prior.out, prior.job.seed, named.checkpoint) == (Path("made/prior"), 4, prior.out)
    assert (poison.job.method, named.job.seed) == ("lsp", 4)


def test_the_weights_of_a_named_checkpoint_are_looked_at_first(tiny, few_path, monkeypatch):
    """Damage is found before a poison is made, each of two folders for itself; what is there can
    be printed all the same."""
    for seed, name in enumerate(("first", "second")):
        folder = succeed(train_vae.main, "configs/purifiers/vae.yaml", f"data={few_path}",
                         "threads=1", "--smoke", f"seed={seed}", f"out={name}")
    changed(tiny, "  none: []", """  none: []
  vae:
    over: {folder: [first, second]}
    steps:
      purify: configs/purifiers/vae.yaml
      checkpoint: '{folder}'""")
    weights = min(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(run_table, "Scheduler", None)           # nothing is started
    outcome = run_command(run_table.main, str(tiny))
    assert (outcome.status, outcome.error.count("\n")) == (1, 0)
    assert re.search(r"tiny\.yaml:\d+: second/.*does not match its SHA-256", outcome.error)
    assert planned(tiny)


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

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))       # without this user's downloads
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


def test_a_choice_without_a_cell_is_refused(tiny):
    with pytest.raises(UserError, match=r"tiny.yaml: by its `only:`, none of these rows has one"):
        plan.cells_of([spec.read_one(str(tiny), Choice(rows=("clean",), columns=("jpeg",)))])


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


def test_a_table_stands_for_each_of_its_data_sets(several):
    digits, photos = spec.read(str(several))
    assert [table.title for table in (digits, photos)] == ["Two sets (digits)", "Two sets (photos)"]
    assert (digits.dataset, photos.dataset) == ("digits", "photos")
    assert [line.name for line in digits.columns] == ["none", "photos prior"]
    assert [line.name for line in photos.columns] == ["none", "digits prior"]
    assert photos.columns[1].reported == ("jcdp, digits",)
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


def test_a_plan_says_once_where_a_method_has_no_values_for_the_data_set(several, capsys):
    plan.cells_of(spec.read(str(several), overrides=("data=photos",)))
    said = capsys.readouterr().err
    assert said.count("lsp.yaml has no values of its own for photos; those for cifar10") == 1


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
