"""Exports in the forms of other code come back the same, and leave alone what is not theirs."""

import os

import foreign
import numpy as np
import pytest
from conftest import run_command

from core import lock
from core.datasets import DataSettings, load
from core.errors import UserError
from core.imageset import ImageSet
from scripts.exchange import export, import_poison

# fixtures
base = foreign.base


@pytest.mark.parametrize(("form", "name"), [("png", "tree"), ("npy", "x.npy"), ("npz", "x.npz"),
                                            ("pt", "delta.pt")])
def test_exports_come_back_the_same(tmp_path, monkeypatch, form, name, digits):
    """Of a poison on the first digits, whose clean set the export of a perturbation needs."""
    from poisons.__main__ import main as poison_main

    poison = run_command(poison_main, "method=lsp", "data=digits", "split=first:80",
                         "lsp.patch=4").path
    outcome = run_command(export.main, poison, "--as", form, "--out", tmp_path / name)
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout == f"{tmp_path / name}\n"
    found = run_command(import_poison.main, tmp_path / name, "--base", "digits", "--split",
                        "first:80")
    assert found.status == 0, found.stderr
    one, two = ImageSet.load(poison), ImageSet.load(found.path)
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.labels, two.labels)
    if form == "png":
        listed = "".join(f"{row},{label}\n" for row, label in enumerate(one.labels))
        assert (tmp_path / name / "labels.csv").read_text() == f"index,label\n{listed}"
    if form == "npz":           # data= reads it, too
        read = load(DataSettings(str(tmp_path / name)))
        np.testing.assert_array_equal(read.images, one.images)
        np.testing.assert_array_equal(read.labels, one.labels)
    if form == "npy":           # killed between its two files: the same line goes on
        (tmp_path / name).unlink()
        assert run_command(export.main, poison, "--as", form, "--out", tmp_path / name).status == 0
        (tmp_path / "mine_labels.npy").write_bytes(b"mine")
        assert "mine_labels.npy exists" in run_command(
            export.main, poison, "--as", form, "--out", tmp_path / "mine.npy").error
    again = run_command(export.main, poison, "--as", form, "--out", tmp_path / name)
    assert "exists; remove it or choose another name" in again.error
    suffix = export.SUFFIX[form]
    odd = run_command(export.main, poison, "--as", form, "--out", tmp_path / "x.odd")
    assert odd.status == bool(suffix)       # a folder may have any name
    assert not suffix or f"which ends in '{suffix}'" in odd.error


def test_an_npz_of_other_names_is_one_sentence():
    np.savez("other.npz", images=np.zeros((2, 4, 4, 3), np.uint8), targets=np.arange(2))
    with pytest.raises(UserError, match=r"other\.npz: it needs arrays `images` and `labels`, or "
                                        "`data` and `targets`"):
        load(DataSettings("other.npz"))


def test_an_export_leaves_an_unfinished_run_alone(tmp_path, base):
    (tmp_path / "tree.partial").mkdir()
    (tmp_path / "tree.partial" / "run.json").write_text("{}")
    assert run_command(export.main, base, "--as", "png", "--out", tmp_path / "tree").status == 0
    assert (tmp_path / "tree.partial" / "run.json").exists()


def test_an_export_leaves_a_folder_that_it_did_not_make(tmp_path, base):
    mine = tmp_path / "tree.export"
    mine.mkdir()
    (mine / "thesis.tex").write_text("precious")
    refused = run_command(export.main, base, "--as", "png", "--out", tmp_path / "tree")
    assert "tree.export is in the way" in refused.error
    assert (mine / "thesis.tex").read_text() == "precious"
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(("form", "name"), [("png", "tree"), ("npy", "x.npy")])
def test_of_two_exports_at_once_one_is_told(tmp_path, base, form, name):
    arguments = [base, "--as", form, "--out", tmp_path / name]
    other = lock.take(tmp_path / f"{name}.export")
    refused = run_command(export.main, *arguments)
    assert "another process" in refused.error
    assert not (tmp_path / name).exists()
    os.close(other)             # killed: what it left is cleared
    assert run_command(export.main, *arguments).status == 0
    assert not (tmp_path / f"{name}.export").exists()
