"""The command that imports a poison: its lineage, its rows, mistakes of its line."""

import json

import foreign
import numpy as np
import pytest
from conftest import digest, run_command
from foreign import ROWS, K, make_em, run_import, wrong
from PIL import Image

from core.datasets import DataSettings, load
from core.errors import UserError
from core.imageset import ImageSet
from core.splits import rows_split, split_rows
from scripts.pictures import inspect_poison

# fixtures
base, clean, noise, poisoned = foreign.base, foreign.clean, foreign.noise, foreign.poisoned


def test_the_lineage_names_the_file(tmp_path, base, noise):
    make_em(tmp_path / "em8.pt", noise)
    outcome = run_import(tmp_path / "em8.pt", base, "--name", "em")
    meta = json.loads((outcome.path / "meta.json").read_text())
    [step] = meta["lineage"]
    assert (step["method"], step["preset"]) == ("import", "em")
    assert step["imported"]["sha256"] == digest(tmp_path / "em8.pt")
    assert step["imported"]["source"].endswith("em8.pt")
    assert step["inputs"]["data"] == ImageSet.load(base).fingerprint
    assert meta["test"] == ImageSet.load(base).meta["test"]
    assert "noise an image in units of [0, 1]" in outcome.stderr
    assert "Linf 8/255" in outcome.stderr
    again = run_import(tmp_path / "em8.pt", base, "--name", "em")
    assert "already done" in again.stderr


def test_a_norm_that_it_does_not_keep(tmp_path, base, noise):
    make_em(tmp_path / "em.pt", noise)
    assert "its l2 is" in wrong(tmp_path / "em.pt", base, "--norm", "l2", "--radius", "0.5")
    assert "its linf is 0.031373, above the 0.015686 of --radius" in \
        wrong(tmp_path / "em.pt", base, "--norm", "linf", "--radius", "4/255")
    assert "--norm and --radius go together" in wrong(tmp_path / "em.pt", base, "--norm", "l2")


def test_mistakes_of_the_import_line(tmp_path, base, poisoned):
    np.save(tmp_path / "x.npy", poisoned)
    for words, message in ((["--norm", "linf", "--radius", "8"], "write 8/255"),
                           (["--name", "../x"], "cannot name a folder; write '___x'")):
        assert message in run_import(tmp_path / "x.npy", base, *words).error
    assert "is an image set of this project already" in run_import(base, base).error


def test_other_work_in_the_way_of_an_import(tmp_path, base, poisoned):
    np.save(tmp_path / "x.npy", poisoned)
    assert run_import(tmp_path / "x.npy", base, "--out", "mine").status == 0
    again = [tmp_path / "x.npy", base, "--out", "mine", "--rounding", "floor"]
    assert run_import(*again).error.endswith("; choose another --out, or --force to move it aside")
    assert run_import(*again, "--force").status == 0


def test_labels_beside_a_pool_belong_to_the_file(tmp_path, base):
    """They decide on the noise of an image: others make another set, of another fingerprint."""
    np.save(tmp_path / "simple_data.npy", np.random.default_rng(3).uniform(
        -0.05, 0.05, (3 * ROWS, 32, 32, 3)).astype(np.float32))
    made = []
    for shift in (0, 1):
        np.save(tmp_path / "simple_label.npy", (np.arange(3 * ROWS) + shift) % K)
        made.append(run_import(tmp_path / "simple_data.npy", base).path)
    assert made[0] != made[1]
    assert not np.array_equal(*(ImageSet.load(path).images for path in made))


def test_an_imported_part_knows_its_rows(tmp_path, clean, poisoned):
    base = tmp_path / "base.npz"
    np.savez(base, images=clean.images, labels=clean.labels)
    rows = np.array([3, 5, 6, 7, 20, 21, 40, 59])
    labels = np.array(clean.labels)[rows]
    np.savez(tmp_path / "part.npz", data=poisoned[rows], labels=labels)
    part = run_import(tmp_path / "part.npz", base)
    assert part.status == 0, part.stderr
    assert "8 of the base's 60 images are there; the set has no others" in part.stderr
    again = load(DataSettings(**ImageSet.load(part.path).meta["root"]))
    np.testing.assert_array_equal(again.images, clean.images[rows])
    np.testing.assert_array_equal(again.labels, labels)
    outcome = run_command(inspect_poison.main, part.path, "--out", tmp_path / "part.png")
    assert outcome.status == 0, outcome.stderr
    assert "8/255" in outcome.stdout
    assert (tmp_path / "part.png").exists()
    halved = run_import(tmp_path / "part.npz", base, "--split", "after:2")
    assert "leave --split out" in halved.error
    with pytest.raises(UserError, match="no choice of rows from 60"):
        load(DataSettings(str(base), split="rows:AAAA"))
    with pytest.raises(UserError, match="no choice of rows from 30"):
        split_rows(rows_split(rows, 60), 30)


def test_folders_that_lack_classes_keep_their_numbers(tmp_path, base, clean, poisoned):
    rows = np.flatnonzero(np.isin(clean.labels, (2, 5, 7)))
    for row in rows:
        folder = tmp_path / "some" / str(clean.labels[row])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(poisoned[row]).save(folder / f"{row}.png")
    outcome = run_import(tmp_path / "some", base)
    assert outcome.status == 0, outcome.stderr
    found = ImageSet.load(outcome.path)
    np.testing.assert_array_equal(found.images, poisoned[rows])
    np.testing.assert_array_equal(found.labels, clean.labels[rows])
