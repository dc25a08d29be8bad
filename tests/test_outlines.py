"""Planning without data sets: by their sizes, and by digests that the repository has."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_command, succeed

import evaluate
from core import datasets, origins, outlines
from core.datasets import DataSettings
from core.errors import UserError
from poisons.__main__ import main as poison
from scripts.tables import plan, render, run_table, spec
from scripts.tables.table import Choice

TABLE = """
title: two sets
data: [cifar10, svhn]
seeds: [0, 1]
evaluate: {evaluate: configs/learners/em60.yaml}
rows:
  clean: []
  lsp: {poison: configs/poisons/lsp.yaml}
columns:
  none: []
  jcdp:
    - {train_ddpm: configs/purifiers/ddpm.yaml, split: test, seed: 0}
    - {purify: configs/purifiers/jcdp.yaml, seed: 0}
"""


@pytest.fixture(autouse=True)
def asked(tmp_path, monkeypatch) -> list:
    """A fresh machine: nothing here but the YAMLs and a table, and no way to the network; what was
    asked of it."""
    found = []

    def offline(*arguments, **keywords):
        found.append(arguments)
        raise OSError("no route")

    monkeypatch.setattr("socket.create_connection", offline)
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    Path("configs").symlink_to(ROOT / "configs")
    Path("table.yaml").write_text(TABLE)
    return found


@pytest.fixture
def cifar10(monkeypatch):
    """60 images for torchvision's."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(datasets, "from_torchvision", lambda source, split, root: (
        images, np.arange(60) % 10, [str(i) for i in range(10)]))
    Path("data/cifar-10-batches-py").mkdir(parents=True)


def records_of(cells: list[plan.Cell]) -> dict[str, plan.Artefact]:
    return {str(cell): cell.record for cell in cells}


def test_a_dry_run_prints_the_whole_plan_without_data(asked):
    """Each step after what it reads, numbered where it has no fingerprint; one line says so, and
    one which weights are to be downloaded."""
    outcome = run_command(run_table.main, "table.yaml", "--dry-run")
    assert outcome.status == 0
    lines = outcome.stdout.splitlines()
    assert len(lines) == 2 * (1 + 1 + 2 + 8)            # poison, prior, purified, records
    made = set()
    for line in lines:
        [out] = re.findall(r" out=(\S+)", line)
        assert re.search(r"-step\d+$", out)
        assert out not in made
        assert all(path in made for path in re.findall(r"(?:data|checkpoint)=(runs/\S+)", line))
        made.add(out)
    said = outcome.stderr
    assert said.count("note: cifar10 and svhn not in 'data': the plan knows only") == 1
    assert said.count("note: lpips_net: alex needs https://") == 1
    assert "16 cells; 24 artefacts to make" in said
    assert not Path("runs").exists()
    assert not Path("data").exists()
    assert not asked


def test_a_table_prints_without_data():
    outcome = run_command(render.main, "table.yaml", "--format", "csv")
    assert outcome.status == 0
    assert [line.split(",")[:6] for line in outcome.stdout.splitlines()][1] == \
        ["cifar10", "clean", "none", "", "", "0"]


def test_sizes_and_classes_are_those_of_the_sets():
    with outlines.allowed():
        for name, shape, classes in (("cifar10", (50_000, 10_000), 10),
                                     ("cifar100", (50_000, 10_000), 100),
                                     ("svhn", (73_257, 26_032), 10)):
            train, test = (datasets.load(DataSettings(name, split)) for split in ("train", "test"))
            assert (len(train), len(test)) == shape
            assert train.num_classes == test.num_classes == classes
            assert len(datasets.load(DataSettings(name, "first:40000"))) == 40_000
        assert outlines.unknown() == ["cifar10", "cifar100", "svhn"]
    with pytest.raises(UserError, match="cifar10 is not in 'data'"):
        datasets.load(DataSettings("cifar10"))          # work needs the pixels
    with outlines.allowed(), pytest.raises(UserError, match=r"other\.npz: no such file"):
        datasets.load(DataSettings("other.npz"))        # and of other sets nothing is known


def test_a_committed_record_tells_the_digest():
    """Then the plan has the fingerprints that the commands will have."""
    found = (json.loads(path.read_text()) for path in (ROOT / "results/small").rglob("record.json"))
    record = next(one for one in found if one["train"].get("root_digest"))
    record.pop("sha256", None)
    for part, split in (("train", "first:10000"), ("test", "test")):
        record[part]["root"] = {"data": "cifar10", "split": split}
    Path("results/one").mkdir(parents=True)
    Path("results/one/record.json").write_text(json.dumps(record))
    cells = records_of(plan.cells_of(spec.read("table.yaml", Choice(columns=("none",)))))
    known = cells["cifar10: lsp x none, seed 0"]
    assert known.known
    assert known.out.name.endswith(known.job.fingerprint[:8])
    assert known.job.inputs["test"] == record["test"]["root_digest"]
    assert known.needs[0].job.inputs["data"] == record["train"]["root_digest"]
    assert not cells["svhn: lsp x none, seed 0"].known


def test_what_an_unknown_set_trained_makes_no_known_set():
    """Digits purified by a prior of a set whose digest nobody knows."""
    text = TABLE.replace("data: [cifar10, svhn]", "data: digits\nsettings: {size: 32}")
    text = text.replace("split: test, seed: 0", "data: cifar10, size: null, seed: 0")
    Path("table.yaml").write_text(text.replace("jcdp.yaml", "ddpm.yaml"))
    cells = records_of(plan.cells_of(spec.read("table.yaml")))
    assert [cells[f"{row} x {column}, seed 0"].known for row in ("clean", "lsp")
            for column in ("none", "jcdp")] == [True, False, True, False]


def test_what_is_here_is_read(cifar10):
    """The plan of a set that is on this disk is the true one."""
    cells = plan.cells_of(spec.read("table.yaml", Choice(columns=("none",)),
                                    ("data=cifar10",)))
    assert all(cell.record.known for cell in cells)
    assert cells[0].record.rows == 60


def test_a_set_of_the_index_is_known_by_its_digest():
    """And it is read where it is here, whatever it then holds."""
    Path("results").mkdir()
    shutil.copy(ROOT / "results/index.yaml", "results")
    path = "data/cifar10-train.npz"
    with outlines.allowed():
        found = datasets.load(DataSettings(path, "first:100", test="data/cifar10-test.npz"))
        test = origins.load_test(found, DataSettings(path))
        assert (len(found), len(test), outlines.unknown()) == (100, 10_000, [])
        with pytest.raises(UserError, match=r"size: .* has a size of its own"):
            datasets.load(DataSettings(path, size=16))
    Path("data").mkdir()
    np.savez(path, images=np.zeros((7, 32, 32, 3), np.uint8), labels=np.arange(7))
    with outlines.allowed():
        assert len(datasets.load(DataSettings(path))) == 7


def test_a_commands_dry_run_needs_no_data():
    outcome = run_command(poison, "configs/poisons/lsp.yaml", "data=cifar10", "--dry-run")
    assert outcome.status == 0, outcome.stderr
    assert "# clean set: cifar10, 50000 rows" in outcome.stdout
    assert "# cifar10 is not in 'data': the fingerprint" in outcome.stdout
    assert "# fingerprint" not in outcome.stdout
    outcome = run_command(evaluate.main, "configs/learners/em60.yaml", "data=cifar100", "--dry-run")
    assert "# test: 32x32 images of 100 classes" in outcome.stdout
    outcome = run_command(poison, "configs/poisons/lsp.yaml", "data=cifar10")
    assert outcome.status == 1                          # and what was allowed it is over
    assert "cifar10 is not in 'data'" in outcome.error


def test_a_set_remembers_the_digest_of_what_is_gone(monkeypatch, cifar10):
    """A set made of CIFAR-10 is planned on where CIFAR-10 is not."""
    succeed(poison, "configs/poisons/lsp.yaml", "lsp.patch=4", "data=cifar10", "out=lsp")
    Path("data/cifar-10-batches-py").rmdir()
    outcome = run_command(evaluate.main, "configs/learners/em60.yaml", "data=lsp", "--dry-run")
    assert outcome.status == 0, outcome.stderr
    assert "# fingerprint" in outcome.stdout
