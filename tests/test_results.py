"""Every committed record is reached by a table or listed as retired: no number loses its source."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import CONFIGS, ROOT, run_command

from core.datasets import split_of
from core.imageset import ImageSet
from scripts.documents import documents
from scripts.tables import plan, render, spec

RESULTS = ROOT / "results"
INDEX = yaml.safe_load((RESULTS / "index.yaml").read_text())
RECORDS = {str(path.parent.relative_to(RESULTS)): json.loads(path.read_text())
           for path in sorted(RESULTS.rglob("record.json"))}
TEST = "data/cifar10-test.npz"


def outline(path: str) -> ImageSet:
    """A set of the index: its fingerprint and its shape, its pixels all black."""
    known = INDEX["data"][path]
    size, rows = known["size"], known["rows"]
    images = np.broadcast_to(np.uint8(0), (rows, size, size, 3))
    return ImageSet(images, np.arange(rows) % known["classes"], {
        "fingerprint": known["fingerprint"], "name": Path(path).stem,
        "classes": [str(i) for i in range(known["classes"])], "root": {"data": path},
        "test": {"data": TEST}, "lineage": []})


@pytest.fixture
def outlines(monkeypatch):
    """Planning reads the index's sets where a table names them."""
    load, load_test = plan.load, plan.load_test

    def load_outline(settings, *rest):
        if settings.data not in INDEX["data"]:
            return load(settings, *rest)
        path = settings.test if settings.split == "test" else settings.data
        return split_of(outline(path), settings.split)

    def load_test_outline(train, settings):
        if train.meta["test"] == {"data": TEST}:
            return outline(TEST)
        return load_test(train, settings)

    monkeypatch.setattr(plan, "load", load_outline)
    monkeypatch.setattr(plan, "load_test", load_test_outline)
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("folder", INDEX["tables"])
def test_every_committed_record_is_reached_by_its_table(folder, outlines):
    entry, reached = INDEX["tables"][folder], set()
    for name in entry["tables"]:
        tables = spec.read(str(CONFIGS / f"tables/{name}.yaml"),
                           *spec.Choice.split(entry["settings"]))
        reached |= {cell.record.job.fingerprint for cell in plan.cells_of(tables)}
    lost = [place for place, record in RECORDS.items() if place.startswith(f"{folder}/")
            and place not in INDEX["retired"] and record["fingerprint"] not in reached]
    assert not lost, "\n".join(lost)


def test_every_committed_record_is_in_the_index():
    unknown = [place for place in RECORDS if place not in INDEX["retired"]
               and not any(place.startswith(f"{folder}/") for folder in INDEX["tables"])]
    assert not unknown, "\n".join(unknown)
    assert set(INDEX["retired"]) <= set(RECORDS)


PRINTED = {path: (folder, name, entry["settings"]) for folder, entry in INDEX["tables"].items()
           for name in entry["tables"]
           for path in (f"{folder}/table.md", f"{folder}.md") if (ROOT / "results" / path).exists()}


@pytest.mark.parametrize("path", PRINTED)
def test_printed_tables_are_their_records(path, outlines):
    """A table under results/ that has records there: every accuracy is still what they give."""
    _, name, settings = PRINTED[path]
    outcome = run_command(render.main, CONFIGS / f"tables/{name}.yaml", *settings,
                          "--format", "csv")
    now = {(row["poison"], row["defence"]): row["accuracy (%)"]
           for row in csv.DictReader(outcome.stdout.splitlines())}
    printed = documents.cells(f"results/{path}")
    assert printed
    assert printed == {key: now.get(key) for key in printed}


def test_printed_tables_have_records():
    assert {"cifar10-5000/table.md", "cifar10-attacks/table.md", "digits-tables/demo_jcdp.md"} \
        <= set(PRINTED)
