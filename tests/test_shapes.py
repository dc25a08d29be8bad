"""JSON of another shape than ours, in artefacts without a digest of their own or signed anew: one
sentence wherever it is read, never a traceback."""

import copy
import json
import random
from pathlib import Path

import pytest
from conftest import run_command, write_imageset

import evaluate
import purify
from core import files, records
from core.artefact import read_any_meta
from core.checkpoint import Checkpoint, describe
from core.errors import UserError
from core.imageset import ImageSet
from core.shapes import ROOT, misshapen
from scripts.exchange import export
from scripts.tables import entries, wording
from scripts.tables.measure import read_log

RECORDS = Path(__file__).resolve().parents[1] / "results"
VALUES = (None, True, 3, -1, 2.5, 10**30, "x", [], {}, [[1]], {"a": 1})
TRAINED_ON = {"name": "few", "fingerprint": "f", "shape": [320, 16, 16, 3], "num_classes": 10,
              "root": {"data": "digits", "size": 16}, "lineage": ["lsp"]}
STEP = {"method": "lsp", "preset": "lsp", "version": 1, "seed": 0, "config": {"radius": 1.0},
        "settings": {}, "fingerprint": "f", "inputs": {"data": "d"}, "seconds": 1.5,
        "trained_on": {**TRAINED_ON, "after": TRAINED_ON}}


def places(value, path=()):
    """Every place below a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) \
        if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def mutants(value, count):
    """`value` with one place changed to a value of another type or size, `count` times."""
    chance = random.Random(0)
    every = [path for path in places(value) if path]
    for _ in range(count):
        path, mutant = chance.choice(every), copy.deepcopy(value)
        *above, last = path
        inner = mutant
        for key in above:
            inner = inner[key]
        inner[last] = chance.choice(VALUES)
        yield path, mutant


def explained(*command):
    """Ends with 0, or with one sentence: a traceback would come out of here."""
    outcome = run_command(*command)
    assert outcome.status == 0 or outcome.error, outcome.stderr


@pytest.mark.parametrize(("value", "shape", "fault"), [
    ({"data": "x", "size": 3}, ROOT, None), ({}, ROOT, None), ({"size": "3"}, ROOT, "size"),
    ({"size": True}, ROOT, "size"), ([], ROOT, ""), ({"data": None}, ROOT, "data"),
    ({"a": {"b": [1, "2"]}}, {"a": {"b": [int]}}, "a.b[1]"), ([1, 2.5], [int, float], None),
    ([1], [int, float], ""), (float("nan"), float, ""), (10**30, int, ""),
    ({"a": {"x": "1", "y": 2}}, {"a": {str: str}}, "a.y"), ("b", {"a", "b"}, None),
    (["b"], {"a", "b"}, ""), ({"t": {"d": 1}}, {"t": ({"d": str}, None)}, "t.d"),
    ({"data": "x", "sise": 3}, ROOT, "sise"),
])
def test_misshapen_names_the_place(value, shape, fault):
    assert misshapen(value, shape) == fault


def test_no_odd_type_in_a_sets_meta_is_a_traceback(tmp_path, few):
    path = write_imageset(tmp_path / "set", few.images[:40], few.labels[:40], lineage=[STEP])
    whole = json.loads((path / "meta.json").read_text())
    for number, (_, mutant) in enumerate(mutants(whole, 150)):
        (path / "meta.json").write_text(json.dumps(mutant))
        explained(purify.main, "method=gray", f"data={path}", "--dry-run", "out=x")
        explained(evaluate.main, "method=standard", f"data={path}", "--dry-run", "out=y")
        explained(export.main, path, "--as", "npz", "--out", tmp_path / f"{number}.npz")


def test_no_odd_type_in_a_checkpoints_meta_is_a_traceback(tmp_path, few):
    meta = {"format": 1, "kind": "checkpoint", "fingerprint": "f", "method": "vae", "seed": 0,
            "config": {"epochs": 3}, "precision": "fp32", "trained_on": TRAINED_ON,
            "lineage": [STEP], "device": {"name": "cpu"}, "digests": {}}
    (tmp_path / "checkpoint").mkdir()
    path = write_imageset(tmp_path / "set", few.images[:40], few.labels[:40])
    for _, mutant in mutants(meta, 150):
        (tmp_path / "checkpoint" / "meta.json").write_text(json.dumps(mutant))
        explained(purify.main, "method=vae", f"data={path}", "--dry-run", "out=x",
                  f"checkpoint={tmp_path / 'checkpoint'}")
        try:
            describe(Checkpoint.load(tmp_path / "checkpoint").meta["trained_on"])
        except UserError:
            pass


@pytest.mark.parametrize("name", ["cifar10-attacks", "digits-tables"])
def test_no_odd_type_in_a_record_is_a_traceback(tmp_path, name, capsys):
    source = next((RECORDS / name).rglob("record.json"))
    whole = json.loads(source.read_text())
    whole["purifier_trained_on"], whole["train"]["lineage"] = [TRAINED_ON], [STEP]
    for _, mutant in mutants(whole, 150):
        (tmp_path / "record.json").write_text(json.dumps(mutant))
        (tmp_path / "meta.json").write_text(json.dumps({
            "format": 1, "kind": "record", "fingerprint": "f",
            "digests": {"record.json": files.sha256(tmp_path / "record.json")}}))
        try:
            record = records.load(tmp_path)
        except UserError:
            continue
        evaluate.report(record, tmp_path)
        entries.seconds_of(record)
        wording.saw(record)
        for trained in record["purifier_trained_on"]:
            describe(trained)


@pytest.mark.parametrize("text", [
    b"[" * 100_000, b'{"kind": NaN}', b"[]", b"null", b"\xff", b"", b'{"kind": "imageset"}',
    b'{"kind": ["imageset"], "format": 1}',
])
def test_what_is_no_meta_is_one_sentence(tmp_path, text):
    (tmp_path / "meta.json").write_bytes(text)
    for load in (ImageSet.load, Checkpoint.load, records.load, read_any_meta):
        with pytest.raises(UserError, match=r"meta\.json|is something else|is an ImageSet"):
            load(tmp_path)


def test_every_committed_artefact_still_loads():
    """They have no digest of their meta.json."""
    for path in RECORDS.rglob("meta.json"):
        assert read_any_meta(path.parent)["kind"] != "record" or records.load(path.parent)


def test_a_finished_log_is_as_it_was_written(tmp_path, few):
    path = write_imageset(tmp_path / "set", few.images[:40], few.labels[:40])
    (path / "log.jsonl").write_text('{"loop": "a", "at": 0, "kld": 2.5}\n')
    assert read_log(path)[0]["kld"] == 2.5          # of an older artefact
    meta = json.loads((path / "meta.json").read_text())
    files.write_sealed(path / "meta.json",
                       {**meta, "log_sha256": files.sha256(path / "log.jsonl")})
    assert read_log(path)[0]["kld"] == 2.5
    (path / "log.jsonl").write_text('{"loop": "a", "at": 0, "kld": 3.5}\n')
    with pytest.raises(UserError, match=r"log\.jsonl is missing, damaged or edited"):
        read_log(path)
