"""core.job.py: what a key that names a file or an artefact counts by."""

import pytest
from conftest import digest, write_imageset

from core.errors import UserError
from core.job import fingerprint_at


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
