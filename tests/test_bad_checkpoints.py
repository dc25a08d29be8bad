"""Checkpoints that are missing, damaged, or of another method, model or set."""

import json
from pathlib import Path

import pytest
from conftest import Outcome, content, run_command, succeed, write_imageset
from refusals import DVAE, GRAY, OUT, TINY_VAE, refused

import purify
import train_vae
from core import files


@pytest.fixture(scope="module")
def checkpoint(few_path, tmp_path_factory) -> Path:
    return succeed(train_vae.main, DVAE, f"data={few_path}", *TINY_VAE,
                   f"out={tmp_path_factory.mktemp('bad') / 'checkpoint'}")


def dvae(data, *arguments) -> Outcome:
    return run_command(purify.main, DVAE, f"data={data}", f"out={OUT}", *arguments)


def test_a_checkpoint_is_needed_and_must_be_one(few_path, tmp_path):
    refused(dvae(few_path), "checkpoint: dvae is trained; make one with python train_vae.py")
    refused(dvae(few_path, "checkpoint=nowhere"),
            "nowhere: no such folder; it should be a checkpoint")
    refused(dvae(few_path, f"checkpoint={few_path}"), "is an ImageSet, not a checkpoint")
    refused(dvae(few_path, f"checkpoint={tmp_path}"), "it has no meta.json")


def test_a_checkpoint_made_for_other_data_is_refused(tmp_path, few, checkpoint):
    large = write_imageset(tmp_path / "large", few.images.repeat(2, 1).repeat(2, 2), few.labels)
    refused(dvae(large, f"checkpoint={checkpoint}"),
            "trained on 16x16 images of 10 classes, but the set has 32x32")
    more = write_imageset(tmp_path / "more", few.images, few.labels, classes=11)
    refused(dvae(more, f"checkpoint={checkpoint}"), "10 classes, but", "16x16 images of 11")


def test_another_set_of_the_same_shape_is_purified_with_a_note(tmp_path, few, checkpoint):
    other = write_imageset(tmp_path / "other", 255 - few.images, few.labels)
    outcome = dvae(other, f"checkpoint={checkpoint}")
    assert outcome.status == 0
    assert "was trained on 320 images of digits, another set" in outcome.stderr


def test_a_checkpoint_of_fewer_rows_of_this_set_is_said(tmp_path, few_path):
    trained = succeed(train_vae.main, DVAE, f"data={few_path}", *TINY_VAE, "--limit", 40,
                      f"out={tmp_path / 'trained'}")
    line = (DVAE, f"data={few_path}", f"checkpoint={trained}")
    every = run_command(purify.main, *line, f"out={tmp_path / 'all'}")
    assert "was trained on the first 40 of these 320 images (--limit)" in every.stderr
    same = run_command(purify.main, *line, "--limit", 40, f"out={tmp_path / 'same'}")
    assert (same.status, "was trained on" in same.stderr) == (0, False)


def test_a_checkpoint_of_a_smoke_test_is_said(tmp_path, few_path):
    trained = succeed(train_vae.main, DVAE, f"data={few_path}", "--smoke", f"out={tmp_path / 'it'}")
    line = (DVAE, f"data={few_path}", f"checkpoint={trained}", f"out={OUT}")
    assert "trained with --smoke" in run_command(purify.main, *line, "--dry-run").stderr
    assert "trained with --smoke" not in run_command(purify.main, *line, "--smoke",
                                                     "--dry-run").stderr


def test_force_does_not_move_aside_what_the_line_reads(tmp_path, few_path, checkpoint):
    before = content(few_path)
    around = few_path.parent / ".." / few_path.parent.name / few_path.name
    for out in (few_path, checkpoint, around):
        outcome = dvae(few_path, f"checkpoint={checkpoint}", f"out={out}", "--force")
        assert outcome.status == 1
        assert "is what this line reads, and --force would move it aside" in outcome.error
    assert content(few_path) == before


def damaged(checkpoint: Path, where: Path, change) -> Path:
    """A copy of the checkpoint in which `change` had its way."""
    where.mkdir()
    for path in checkpoint.iterdir():
        (where / path.name).write_bytes(path.read_bytes())
    meta = json.loads((where / "meta.json").read_text())
    change(where, meta)
    files.write_sealed(where / "meta.json", meta)
    return where


def test_a_checkpoint_of_another_method_or_model_is_refused(tmp_path, few_path, checkpoint):
    def other_method(folder, meta):
        meta["method"] = "vae"

    def other_width(folder, meta):
        meta["config"]["width"] = 16

    def other_key(folder, meta):
        meta["config"]["colour"] = "red"

    def cut_weights(folder, meta):
        file = folder / "stage1.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

    def lost_weights(folder, meta):
        (folder / "stage2.safetensors").unlink()

    def not_weights(folder, meta):
        (folder / "stage1.safetensors").write_bytes(b"hello")
        meta["digests"]["stage1.safetensors"] = files.sha256(folder / "stage1.safetensors")

    for change, words in [(other_method, "is a checkpoint of 'vae', not of 'dvae'"),
                          (other_width, "does not fit this model"),
                          (other_key, "unknown key 'colour'"),
                          (cut_weights, "stage1.safetensors does not match its SHA-256"),
                          (lost_weights, "stage2.safetensors: no such file"),
                          (not_weights, "stage1.safetensors is not a readable .safetensors")]:
        path = damaged(checkpoint, tmp_path / change.__name__, change)
        refused(dvae(few_path, f"checkpoint={path}"), path.name, words)


def test_methods_that_are_not_trained_say_so(few_path):
    refused(run_command(train_vae.main, GRAY, f"data={few_path}", f"out={OUT}"), "gray")
    refused(run_command(purify.main, GRAY, f"data={few_path}", "checkpoint=x", f"out={OUT}"),
            "gray is not trained")


def test_an_artefact_of_another_kind_is_no_data(checkpoint):
    refused(run_command(purify.main, GRAY, f"data={checkpoint}", f"out={OUT}"),
            "checkpoint is a checkpoint, not")
