"""`list.py runs`: what is on a disk, what needs what, and what --clean removes and leaves."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_command, succeed

import evaluate
import purify
from core import files, lock
from core.errors import UserError
from poisons.__main__ import main as poison_main
from scripts.finding import clean, disk, listing
from scripts.tables import noted


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """runs/: LSP > grey scale > a record; JPEG of the same set and random signs, unused."""
    start, folder = os.getcwd(), tmp_path_factory.mktemp("pipeline")
    os.chdir(folder)
    try:
        few = ["data=digits", "size=16", "--limit", "40", "threads=1"]
        succeed(poison_main, "lsp", *few, "lsp.patch=4", "out=runs/lsp")
        succeed(poison_main, "random_signs", *few, "out=runs/signs")
        succeed(purify.main, "gray", "data=runs/lsp", "threads=1", "out=runs/purified/gray")
        succeed(purify.main, "jpeg", "data=runs/lsp", "threads=1", "out=runs/purified/jpeg")
        succeed(evaluate.main, "cpu12", "data=runs/purified/gray", "threads=1", "out=runs/record",
                "standard.epochs=1", "standard.width=4", "standard.batch_size=16")
    finally:
        os.chdir(start)
    return folder / "runs"


@pytest.fixture
def runs(pipeline, tmp_path):
    shutil.copytree(pipeline, tmp_path / "runs")
    return Path("runs")


def cleaned(*words):
    return run_command(listing.main, "runs", *words, "--clean", "--yes")


def there(runs: Path) -> set[str]:
    """The works that are there, by the last part of their paths."""
    return {path.parent.name for path in runs.rglob("meta.json")}


EVERY = {"lsp", "signs", "gray", "jpeg", "record"}
UNUSED = {"signs", "jpeg"}


def unfinished(path: Path, run: dict, shown: str = "") -> Path:
    """What a killed command leaves."""
    path.mkdir(parents=True)
    (path / "lock").write_bytes(lock.SIGN + b"{}\n")
    (path / "run.json").write_text(json.dumps(run))
    (path / "config.yaml").write_text(shown or "seed: 0\n")
    return path


def test_what_is_there_is_listed_with_what_needs_it(runs):
    shown = run_command(listing.main, "runs").stdout
    lines = {line.split(":")[0].split()[-1]: line for line in shown.splitlines()[:5]}
    assert set(lines) == {"runs/lsp", "runs/signs", "runs/purified/gray", "runs/purified/jpeg",
                          "runs/record"}
    assert lines["runs/lsp"].endswith("set, digits > lsp; behind 3 finished artefacts")
    assert lines["runs/purified/gray"].endswith("> lsp > gray; behind 1 finished artefact")
    assert "record, digits > lsp (limit=40) > gray, cpu12, epochs=1, batch_size=16, " in \
        lines["runs/record"]
    assert lines["runs/record"].endswith(" %; a result")
    assert lines["runs/signs"].endswith("nothing needs it")
    assert "\nruns: 5 artefacts, " in shown
    assert "\n2 sets and checkpoints (" in shown
    assert "\nnothing needs 2 of them (" in shown
    assert there(runs) == EVERY


def test_clean_removes_what_nothing_needs_and_no_more(runs):
    before = (runs / "lsp/images.npy").read_bytes()
    outcome = cleaned()
    assert outcome.status == 0
    assert outcome.stdout.splitlines()[-2:] == ["removed runs/purified/jpeg", "removed runs/signs"]
    assert there(runs) == EVERY - UNUSED
    assert sorted(path.name for path in runs.iterdir()) == ["lsp", "purified", "record"]
    assert (runs / "lsp/images.npy").read_bytes() == before
    assert cleaned().stdout.splitlines()[-1] == "nothing needs 0 of them (0 B)"


def test_a_chain_that_nothing_needs_goes_as_a_whole(runs):
    shutil.rmtree(runs / "record")
    assert cleaned().stdout.splitlines()[-4:] == [
        "removed runs/purified/gray", "removed runs/purified/jpeg", "removed runs/lsp",
        "removed runs/signs"]           # first what was made of another
    assert there(runs) == set()


@pytest.mark.parametrize("how", ["bytes", "path", "absolute", "damaged"])
def test_what_unfinished_work_needs_stays(runs, how, tmp_path):
    """It knows its input by the digests of its files, and by where it is."""
    digest = json.loads((runs / "purified/jpeg/meta.json").read_text())["digests"]["images.npy"]
    run = {"fingerprint": "f" * 64, "inputs": {"train": {"images.npy": "0" * 64}}}
    shown = {"path": "data: runs/purified/jpeg\n",
             "absolute": f"data: folder:{tmp_path}/runs/purified/jpeg\n"}.get(how, "")
    if how == "bytes":
        run["inputs"]["train"]["images.npy"] = digest
    path = unfinished(runs / "records/x.partial", run, shown)
    if how == "damaged":
        (path / "config.yaml").write_text("data: runs/purified/jpeg\n")
        (path / "run.json").write_text("{")
    assert cleaned().status == 0
    assert there(runs) == EVERY - {"signs"}
    assert path.exists()
    line, = (line for line in run_command(listing.main, "runs").stdout.splitlines()
             if "purified/jpeg" in line and "set" in line)
    assert line.endswith("needed by runs/records/x.partial")


def test_what_a_damaged_artefact_needs_stays(runs):
    """By the fingerprints that stand in it; where it lies in its config.yaml is gone too."""
    meta = runs / "record/meta.json"
    (runs / "record/config.yaml").unlink()
    shutil.rmtree(runs / "purified/jpeg")
    gray = json.loads((runs / "purified/gray/meta.json").read_text())
    meta.write_text("{" + gray["fingerprint"])
    cleaned()
    assert there(runs) == {"lsp", "gray", "record"}


def test_what_a_committed_record_stands_on_stays(runs):
    shutil.move(runs / "record", "results/table/record")
    cleaned()
    assert there(runs) == {"lsp", "gray"}
    shown = run_command(listing.main, "runs").stdout
    assert "gray: set, digits > lsp > gray; behind a record in results/" in shown


def test_what_a_table_that_was_begun_will_read_stays(runs):
    """Until its records are there; then the plan keeps nothing."""
    signs, record = (artefact(json.loads((runs / name / "meta.json").read_text())["fingerprint"])
                     for name in ("signs", "record"))
    to_make = artefact("a" * 64)
    to_make.needs = (signs,)
    cells = [SimpleNamespace(record=to_make)]
    noted.note(["configs/tables/x.yaml", "--quick"], cells, sets=False)
    outcome = cleaned()
    assert "begun, with records to make: configs/tables/x.yaml --quick; its sets are kept" \
        in outcome.stdout
    assert there(runs) == EVERY - {"jpeg"}
    assert "needed by a table that was begun" in run_command(listing.main, "runs").stdout
    record.needs = (signs,)
    plan, = (runs / "plans").iterdir()
    plan.unlink()
    cells = [SimpleNamespace(record=record)]
    noted.note(["configs/tables/x.yaml", "--quick"], cells, sets=False)
    assert len(list((runs / "plans").iterdir())) == 1
    cleaned()
    assert there(runs) == EVERY - UNUSED


def test_an_edited_table_keeps_also_what_it_was_before(runs):
    """Its runner of then may still run."""
    for name in ("signs", "jpeg"):
        path, = (path for path in runs.rglob("meta.json") if path.parent.name == name)
        made = artefact(json.loads(path.read_text())["fingerprint"])
        to_make = artefact(name.ljust(64, "0"))
        to_make.needs = (made,)
        noted.note(["x.yaml"], [SimpleNamespace(record=to_make)], sets=False)
    cleaned()
    assert there(runs) == EVERY


def test_what_a_table_reads_and_does_not_make_stays(runs):
    """Such as a checkpoint that its step names."""
    path, = (path for path in runs.rglob("meta.json") if path.parent.name == "signs")
    to_make = artefact("a" * 64)
    to_make.job.inputs["checkpoint"] = json.loads(path.read_text())["fingerprint"]
    noted.note(["x.yaml"], [SimpleNamespace(record=to_make)], sets=False)
    cleaned()
    assert there(runs) == EVERY - {"jpeg"}


def artefact(fingerprint: str) -> SimpleNamespace:
    return SimpleNamespace(job=SimpleNamespace(fingerprint=fingerprint, inputs={}), needs=())


def test_a_damaged_plan_is_told_and_nothing_removed(runs):
    (runs / "plans").mkdir()
    (runs / "plans/x.json").write_text("{}")
    assert "runs/plans: a file there is damaged; remove it" in cleaned().error
    assert there(runs) == EVERY


def test_what_another_process_holds_is_left_alone(runs):
    """What it makes, what it makes that from, and what it began to remove or make right now."""
    path = unfinished(runs / "purified/new.partial", {"fingerprint": "f" * 64},
                      "data: runs/signs\n")
    held = lock.take(path)
    bare = lock.take(runs / "bare.partial")             # a command that has just begun
    work, = (work for work in disk.scan(runs).works if work.path.name == "jpeg")
    beside = lock.take(runs / "purified/jpeg.partial")
    try:
        shown = run_command(listing.main, "runs").stdout
        assert f"new.partial: unfinished; being made by another process ({os.getpid()} on" in shown
        assert not clean.remove_one(work)
        cleaned()
        assert there(runs) == EVERY
        assert {path.name, "bare.partial"} <= {found.name for found in runs.rglob("*.partial")}
    finally:
        for descriptor in (held, bare, beside):
            os.close(descriptor)
    cleaned()                             # they died: what is nobody's goes, unfinished work stays
    assert [found.name for found in runs.rglob("*.partial")] == [path.name]


def test_what_is_not_ours_is_left_alone(runs, tmp_path):
    (runs / "notes.txt").write_text("mine")
    (runs / "mine.partial").mkdir()
    (runs / "mine.partial/thesis.tex").write_text("mine")
    (runs / "signs/notes.txt").write_text("mine")       # in a set that nothing needs
    shutil.move(runs / "purified/jpeg", tmp_path / "away")
    (runs / "purified/jpeg").symlink_to(tmp_path / "away")
    (runs / "figures").mkdir()
    (runs / "figures/fig3-digits.png").write_bytes(b"drawn")        # is ours, and stays too
    outcome = cleaned()
    assert (runs / "figures/fig3-digits.png").exists()
    assert "3 files and links that no command here made, such as runs/" in outcome.stdout
    assert there(runs) == EVERY - {"jpeg"}
    assert (tmp_path / "away/images.npy").exists()
    for name in ("notes.txt", "mine.partial/thesis.tex", "signs/notes.txt"):
        assert (runs / name).read_text() == "mine"


@pytest.mark.parametrize(("folder", "message"), [
    ("link", r"^link is a link to .*real: others may work there; name that folder itself"),
    (".", "is no folder of work alone; name one such as runs"),
    (str(ROOT), "is no folder of work alone"), (str(ROOT.parent), "is no folder of work alone"),
    ("results", "is no folder of work alone"), ("results/table", "is no folder of work alone"),
    ("empty", "^empty holds nothing that these commands made"),
    ("runs/signs", "^runs/signs holds nothing that these"), ("nowhere", "nowhere: no such folder"),
])
def test_a_folder_that_it_does_not_know_is_refused(runs, folder, message, monkeypatch):
    Path("empty").mkdir()
    (Path("empty") / "thesis.tex").write_text("mine")
    shutil.copytree(runs, "results/table")
    shutil.copytree(runs, "real")
    Path("link").symlink_to("real")
    if Path(folder) in (ROOT, ROOT.parent):             # far too much to look through
        monkeypatch.setattr(clean, "scan", lambda folder: disk.Disk(folder, [], [], [], 0))
    with pytest.raises(UserError, match=message):
        clean.show(Path(folder), clean=True, yes=True)
    assert there(runs) == EVERY == there(Path("real")) == there(Path("results/table"))


@pytest.mark.parametrize(("answer", "left"), [("y\n", EVERY - UNUSED), ("n\n", EVERY),
                                              ("\n", EVERY), ("", EVERY)])
def test_it_asks(runs, answer, left, monkeypatch):
    stdin = io.StringIO(answer)
    stdin.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", stdin)
    outcome = run_command(listing.main, "runs", "--clean")
    assert "remove these 2 (" in outcome.stdout
    assert there(runs) == left


def test_where_nobody_can_answer_it_refuses(runs, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert "--clean asks before" in run_command(listing.main, "runs", "--clean").error
    assert there(runs) == EVERY


def test_what_was_taken_up_while_it_asked_stays(runs, monkeypatch):
    class Stdin(io.StringIO):
        def isatty(self):
            return True

        def readline(self):
            unfinished(runs / "x.partial", {"fingerprint": "f" * 64}, "data: runs/signs\n")
            return "y\n"

    monkeypatch.setattr("sys.stdin", Stdin())
    assert run_command(listing.main, "runs", "--clean").status == 0
    assert there(runs) == EVERY - {"jpeg"}


def test_what_was_begun_or_made_anew_after_a_look_stays(runs):
    """Between the last look and the removing: nobody holds a lock any more, but work is there."""
    (runs / "bare.partial").mkdir()
    (runs / "bare.partial/lock").write_bytes(lock.SIGN)
    works = {work.path.name: work for work in disk.scan(runs).works}
    shutil.rmtree(runs / "bare.partial")
    for name in ("bare.partial", "signs.partial"):
        unfinished(runs / name, {"fingerprint": "f" * 64})
    shutil.rmtree(runs / "purified/jpeg")
    shutil.copytree(runs / "lsp", runs / "purified/jpeg")       # other work of that name
    for name in ("bare.partial", "signs", "jpeg"):
        assert not clean.remove_one(works[name])
    assert {"run.json", "lock"} <= {path.name for path in (runs / "bare.partial").iterdir()}
    assert {"run.json", "lock"} <= {path.name for path in (runs / "signs.partial").iterdir()}
    assert there(runs) == EVERY
    assert not (runs / "purified/jpeg.partial").exists()


def test_a_death_while_removing_leaves_no_half_artefact(runs, monkeypatch):
    """What is left is nobody's: the line that made it makes it again, and the next --clean removes
    it."""
    def die(kind, path):
        if kind == "unlink":
            (path / "signs/meta.json").unlink(missing_ok=True)
            raise KeyboardInterrupt

    work, = (work for work in disk.scan(runs).works if work.path.name == "signs")
    with monkeypatch.context() as patch:
        patch.setattr(files, "operation", die)
        with pytest.raises(KeyboardInterrupt):
            clean.remove_one(work)
    assert not (runs / "signs").exists()
    assert (runs / "signs.partial").exists()
    shutil.copytree(runs, "copy")
    assert succeed(poison_main, "random_signs", "data=digits", "size=16", "--limit", "40",
                   "threads=1", "out=runs/signs").exists()
    assert run_command(listing.main, "runs", "copy", "--clean", "--yes").status == 0
    assert not Path("copy/signs.partial").exists()


def test_hashes_are_told_from_words():
    digest = hashlib.sha256(b"").hexdigest()
    assert disk.digests_in({"a": [digest, {"b": digest[1:]}], "c": "x" * 64}) == {digest}
