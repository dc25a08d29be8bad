"""core.job.py: what a key that names a file or an artefact counts by."""

import pytest
from conftest import digest, write_imageset

from core import identity
from core.errors import UserError
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
