"""Which commit runs: of a checkout, of one with changes, of a copy that is none."""

import shutil

import pytest

from core import commit, files

ME = ("-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
NONE = {"commit": None, "dirty": None}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of one commit, whatever this user's git is told elsewhere."""
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    folder = tmp_path / "code"
    (folder / "docs").mkdir(parents=True)
    (folder / "method.py").write_text("VERSION = 1\n")
    (folder / ".gitignore").write_text("runs/\n")
    for words in (("init", "-q"), ("add", "."), (*ME, "commit", "-qm", "first")):
        commit.git(folder, *words)
    return folder


def test_a_commit_and_what_was_changed_since(checkout, monkeypatch):
    head = commit.git(checkout, "rev-parse", "HEAD").strip()
    assert commit.of_code(checkout) == {"commit": head, "dirty": False}
    # No number depends on these.
    for name in ("docs/page.md", "results/small/record.json", "runs/log", "lsp.png", "own/a.npz"):
        (checkout / name).parent.mkdir(exist_ok=True, parents=True)
        (checkout / name).write_text("x")
    assert commit.of_code(checkout) == {"commit": head, "dirty": False}
    for name in ("new.py", "own/new.yaml"):
        (checkout / name).write_text("")
        assert commit.of_code(checkout) == {"commit": head, "dirty": True}
        (checkout / name).unlink()
    (checkout / "method.py").write_text("VERSION = 2\n")
    assert commit.of_code(checkout) == {"commit": head, "dirty": True}
    monkeypatch.setenv("GIT_DIR", "/nowhere")           # as in a hook of another repository
    assert commit.of_code(checkout)["commit"] == head


def test_a_copy_that_is_no_checkout_has_none(checkout, tmp_path, monkeypatch):
    assert commit.of_code(tmp_path) == NONE
    inside = checkout / "vendored"
    inside.mkdir()
    assert commit.of_code(inside) == NONE               # the commit around it is another's
    monkeypatch.setenv("PATH", "")
    assert commit.of_code(checkout) == NONE             # no git here


def test_the_commit_of_a_sha256_repository_can_be_read_back(tmp_path):
    """64 hex digits, as a lost seal would leave."""
    files.write_json(tmp_path / "record.json", {"fingerprint": "a" * 64, "commit": "b" * 64})
    assert files.read_json(tmp_path / "record.json")["commit"] == "b" * 64
