"""What the tests of tables share: a tiny table in a checkout of its own."""

import shutil
from pathlib import Path

import pytest
from conftest import ROOT, checkout

from scripts.tables import plan, published, spec
from scripts.tables.table import WHOLE, Choice, Table

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
    """A checkout of the code, with its own runs/ and, of the results, the prior of --small."""
    folder = checkout(tmp_path_factory.mktemp("project"))
    (folder / "results/small").mkdir(parents=True)
    (folder / "results/small/prior").symlink_to(ROOT / "results/small/prior")
    return folder


@pytest.fixture
def here(project, monkeypatch) -> Path:
    """The checkout, entered, without what an earlier test made."""
    shutil.rmtree(project / "runs", ignore_errors=True)
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


def beside(table: Table, attacks: tuple[str, ...], defences: tuple[str, ...], **conditions: str):
    """What was published beside a cell of this table."""
    return published.beside(published.read(), table.dataset, attacks, defences,
                            source=table.source, **conditions)
