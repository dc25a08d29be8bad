"""A name from outside moves no cursor and leaves no folder."""

from pathlib import Path

import pytest
from conftest import CONFIGS, run_command, succeed, write_imageset

import evaluate
import purify
from core.job import Job
from core.names import component, name_at, printable
from scripts.exchange import import_poison
from scripts.pictures import inspect_poison
from scripts.tables.formats import latex, markdown, markdown_cell

GRAY = CONFIGS / "purifiers" / "gray.yaml"
NASTY = "\x1b[2J\x1b]0;title\x07\r\nrow\u202egnp\x00|$\\frac{"


@pytest.mark.parametrize(("text", "shown"), [
    ("plain-name_1", "plain-name_1"), ("größe 大", "größe 大"), ("a\nb", r"a\nb"),
    ("\x1b[31m", r"\x1b[31m"), ("\r", r"\r"), ("\x9b2J", r"\x9b2J"), ("\u202e", r"\u202e"),
    ("\udcff", r"\udcff"), (Path("x y"), "x y"), ("x" * 5000, "x" * 4000 + "..."),
])
def test_what_is_shown_moves_no_cursor(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(("text", "part"), [
    ("digits-lsp-gray", "digits-lsp-gray"), ("my set (2), größe", "my set (2), größe"),
    ("../../x", "___.._x"),
    ("..", "__"), ("", "_"), (".hidden", "_hidden"), ("a\x00b\n", "a_b_"), ("a\\b/c", "a_b_c"),
    ("ü" * 300, "ü" * 100),
])
def test_a_component_is_no_path(text, part):
    found = component(text)
    assert found == part
    assert Path("runs", found).parent == Path("runs")
    assert Path("runs", found).resolve().parent == Path("runs").resolve()


@pytest.mark.parametrize(("path", "name"), [
    ("/data/flowers/train", "flowers-train"), ("flowers/val", "flowers-val"), ("train", "train"),
    ("/train", "train"), ("data/cifar10.npz", "cifar10.npz"), ("cifar10", "cifar10")])
def test_a_half_is_called_with_its_set(path, name):
    assert name_at(path) == name


def test_the_name_of_a_set_leads_out_of_no_folder(tmp_path, few):
    name = "../../../../escaped"
    path = write_imageset(tmp_path / "set", few.images[:50], few.labels[:50], name=name)
    out = succeed(purify.main, GRAY, f"data={path}")
    assert out.parent == Path("runs", "purified")
    assert not list(tmp_path.parent.glob("escaped*"))
    job = Job("poisons", f"{name}/..", "x", 1, {}, 0, {})
    assert job.default_out.parent == Path("runs", "poisons")


def test_a_name_reaches_no_terminal_raw(tmp_path, few):
    """Errors, notes, summaries, plans and pictures."""
    root = {"data": NASTY, "split": NASTY}
    path = write_imageset(tmp_path / "set", few.images[:50], few.labels[:50], name=NASTY, root=root,
                          lineage=[{"method": NASTY, "preset": NASTY}],
                          classes=10, test={"data": NASTY})
    other = write_imageset(tmp_path / "other", 255 - few.images[:50], few.labels[:50])
    outcomes = [
        run_command(purify.main, GRAY, f"data={path}"),
        run_command(purify.main, GRAY, f"data={path}", "--dry-run"),
        run_command(evaluate.main, "method=standard", f"data={path}"),
        run_command(inspect_poison.main, path, other, "--out", tmp_path / "x.png"),
        run_command(inspect_poison.main, path),
        run_command(purify.main, GRAY, f"data={NASTY}/x"),
        run_command(import_poison.main, tmp_path / "none.npy", "--base", f"{NASTY}/x"),
    ]
    assert [outcome.status for outcome in outcomes] == [0, 0, 1, 0, 1, 1, 1]
    for outcome in outcomes:
        shown = outcome.stdout + outcome.stderr
        assert all(character.isprintable() for line in shown.split("\n") for character in line)
    assert (tmp_path / "x.png").exists()


def test_the_cells_of_a_table_stay_in_their_cells():
    assert markdown_cell("a|b\nc") == r"a\|b\nc"
    assert markdown(("a", "b"), [["x|y\n", "1"]]).splitlines()[2] == r"| x\|y\n | 1 |"
    assert r"a\textbackslash{}b\{\$ & 1 \\" in latex(("a", "b"), [["a\\b{$", "1"]])
