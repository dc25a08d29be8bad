"""Every committed record is reached by a table or listed as retired: no number loses its source."""

import csv
import json

import pytest
import yaml
from conftest import CONFIGS, ROOT, run_command

from scripts.documents import documents
from scripts.tables import plan, render, spec
from scripts.tables.table import Choice

RESULTS = ROOT / "results"
INDEX = yaml.safe_load((RESULTS / "index.yaml").read_text())
RECORDS = {str(path.parent.relative_to(RESULTS)): json.loads(path.read_text())
           for path in sorted(RESULTS.rglob("record.json"))}


@pytest.fixture(autouse=True)
def in_the_repository_without_data(tmp_path, monkeypatch):
    """As on a fresh machine, where plans know data sets by the index."""
    for name in ("configs", "results", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("folder", INDEX["tables"])
def test_every_committed_record_is_reached_by_its_table(folder):
    entry, reached = INDEX["tables"][folder], set()
    for name in entry["tables"]:
        tables = spec.read(str(CONFIGS / f"tables/{name}.yaml"),
                           *Choice.split(entry["settings"]))
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
def test_printed_tables_are_their_records(path):
    """A table under results/ that has records there: every accuracy is still what they give."""
    _, name, settings = PRINTED[path]
    outcome = run_command(render.main, CONFIGS / f"tables/{name}.yaml", *settings,
                          "--format", "csv")
    now = {(row["poison"], row["defence"]): "{accuracy (%)} ± {sd} ({runs})".format(**row)
           if row["sd"] else row["accuracy (%)"] or "-"
           for row in csv.DictReader(outcome.stdout.splitlines())}
    printed = documents.cells(f"results/{path}")
    assert printed
    assert printed == {key: now.get(key) for key in printed}


@pytest.mark.parametrize("path", PRINTED)
def test_printed_tables_have_todays_published_numbers(path):
    _, name, settings = PRINTED[path]
    outcome = run_command(render.main, CONFIGS / f"tables/{name}.yaml", *settings)
    now, printed = (rows_of(text) for text in (
        outcome.stdout, (ROOT / "results" / path).read_text("utf-8")))
    assert printed
    for cell, row in printed.items():
        for head in ("reported", "also published", "gap"):
            assert row.get(head, "") == now[cell].get(head, ""), (cell, head)


def rows_of(markdown: str) -> dict[tuple[str, str], dict[str, str]]:
    """The lines of the first printed table by poison and defence."""
    [block, *_] = [block for block in markdown.split("\n\n") if block.startswith("| poison")]
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split(" | ")]
                       for line in block.splitlines()]
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    return {(row["poison"], row["defence"]): row for row in rows}


def test_printed_tables_have_records():
    assert {"cifar10-5000/table.md", "cifar10-attacks/table.md", "digits-tables/demo_jcdp.md"} \
        <= set(PRINTED)
