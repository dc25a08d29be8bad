"""core.job.py: what a key that names a file or an artefact counts by."""

import pytest
from conftest import digest, write_imageset
from methods import checkpoint_of

from core import identity
from core.errors import UserError
from core.imageset import ImageSet
from core.job import fingerprint_at
from core.request import parse


def test_an_artefact_may_have_a_dot_in_its_name(tmp_path, images, labels):
    path = write_imageset(tmp_path / "train.2024", images, labels, fingerprint="f" * 64)
    assert fingerprint_at(str(path)) == "f" * 64
    assert fingerprint_at(str(path / "labels.npy")) == digest(path / "labels.npy")
    for name, words in (("x.pth", r"x\.pth: no such file"), ("x", "x: no such folder")):
        with pytest.raises(UserError, match=words):
            fingerprint_at(str(tmp_path / name))
    (tmp_path / "vae-1.5.partial").mkdir()
    with pytest.raises(UserError, match=r"vae-1\.5: no such folder; it is unfinished"):
        fingerprint_at(str(tmp_path / "vae-1.5"))


def test_a_limit_that_leaves_all_rows_is_none(few_path):
    """320 rows are 320 rows, whatever larger number was typed."""
    def settings(*words: str) -> dict:
        request = parse(["method=gray", f"data={few_path}", *words], "", "purify")
        return identity.purify(request, request.load_data(), None).settings

    assert settings() == settings("--limit", "321") == settings("--limit", "99999") == {}
    assert settings("--limit", "319") == {"limit": 319}


def test_the_bytes_of_every_input_are_known_at_a_resume(few_path, tmp_path):
    """Of the checkpoint too, and of a record's test set."""
    checkpoint = checkpoint_of("vae", few_path, tiny=True)
    request = parse(["method=vae", f"data={few_path}", *checkpoint], "", "purify")
    made = identity.purify(request, request.load_data(), ("f" * 64, 0))
    assert {role: sorted(found) for role, found in made.digests.items()} == {
        "data": ["images.npy", "labels.npy"], "checkpoint": ["stage1.safetensors"]}
    request = parse(["method=standard", f"data={few_path}"], "", "evaluate")
    found = request.load_data()
    other = write_imageset(tmp_path / "other", found.images[:9], found.labels[:9])
    kept = identity.record(request, found, ImageSet.load(other)).digests
    assert kept["train"]["labels.npy"] == digest(few_path / "labels.npy")
    assert kept["test"]["labels.npy"] == digest(other / "labels.npy")
