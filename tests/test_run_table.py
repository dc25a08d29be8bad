"""run_table.py by real commands: each artefact once, failures, kills, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import forked_ranks
import pytest
import tables
from conftest import ROOT, run_command, until
from methods import make_missing
from tables import changed, planned

from core.errors import UserError
from scripts.tables import noted, plan, processes, render, run_table
from scripts.tables.table import Choice

# fixtures
project, here, tiny = tables.project, tables.here, tables.tiny


@pytest.fixture
def forks(monkeypatch):
    """Commands run in forks of this process: to import torch takes longer than what they do."""
    forked_ranks.load()

    def start(line, *, stdout, **options):
        return processes.fork(lambda: forked_ranks.run(line), line, **options)

    monkeypatch.setattr(processes, "start", start)


def start(path: Path, *words: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "scripts/run_table.py", str(path), *words],
                            stderr=subprocess.PIPE, text=True, **options)


def finished_at(folder: Path) -> dict[str, int]:
    return {str(path.parent): path.stat().st_mtime_ns for path in folder.rglob("meta.json")}


def test_a_table_is_made_once(tiny, forks):
    """From nothing, then again, then with one more column by YAML alone."""
    changed(tiny, "seeds: [0, 1]", "seeds: [0]")
    changed(tiny, "[10, 50]", "[10]")
    changed(tiny, ', "jpeg quality=50"', "")
    first = run_command(run_table.main, tiny, "--jobs", "2")
    assert first.status == 0, first.stderr
    before = finished_at(Path("runs"))
    assert len(before) >= 5
    cells = planned(tiny)
    assert all(cell.record.done for cell in cells)
    assert plan.wanted(cells, {}) == []
    clean = json.loads((cells[0].record.out / "record.json").read_text())
    assert clean["device"]["threads"] == 1
    written, = noted.read(noted.PLANS)                  # for those who clean
    assert written.line == f"{tiny} threads=1"
    assert written.until == {cell.record.job.fingerprint for cell in cells}
    sets = {made for cell in cells for made in cell.record.needs}
    sets |= {poison for made in sets for poison in made.needs}
    assert written.artefacts == written.until | {made.job.fingerprint for made in sets} \
        | {clean[side]["fingerprint"] for side in ("train", "test")}    # which it reads

    again = run_command(run_table.main, tiny, "--jobs", "2")
    assert again.status == 0, again.stderr
    assert "0 artefacts to make" in again.stderr
    assert finished_at(Path("runs")) == before

    changed(tiny, "  none: []", "  none: []\n  gray:\n    purify: configs/purifiers/gray.yaml")
    more = run_command(run_table.main, tiny, "--rows", "clean")
    assert more.status == 0, more.stderr
    new = set(finished_at(Path("runs"))) - set(before)
    assert len(new) == 2                                # a set and a record
    assert all("gray" in name for name in new)

    changed(tiny, "[0]", "[5]")                         # whose like has been timed
    outcome = run_command(run_table.main, tiny, "--rows", "clean", "--dry-run")
    assert re.search(r"; 2 artefacts to make; estimate [\d.]+ \w+$", outcome.stderr, re.MULTILINE)
    outcome = run_command(run_table.main, tiny, "--rows", "clean", "--dry-run", "--jobs", "2")
    assert re.search(r"estimate [\d.]+ \w+, one job at a time$", outcome.stderr, re.MULTILINE)


def test_a_failed_cell_does_not_stop_the_others(tiny, forks):
    changed(tiny, "  lsp:\n", "  broken:\n    poison: configs/poisons/lsp.yaml\n"
                              "    data: /nowhere/at-all\n  lsp:\n")
    with pytest.raises(UserError, match="/nowhere/at-all"):
        planned(tiny)                                      # found before anything is made
    # Of 300 pixels a side there are 3 features: too few for ten classes.
    changed(tiny, "data: /nowhere/at-all", "lsp.patch: 300")
    outcome = run_command(run_table.main, tiny, "--rows=broken,clean", "--columns=none",
                          "--seeds=3")
    assert outcome.status == 1
    said = outcome.stderr
    assert said.index("FAILED: poison") < said.index("] clean x none, seed 3: ")
    assert "\nbroken x none, seed 3: lsp.patch" in said
    assert "1 of 2 cells failed" in said


def test_what_fails_behind_a_committed_record_is_its_cells(tiny, monkeypatch):
    """With --sets, for figures."""
    monkeypatch.setattr(run_table, "Scheduler", lambda missing, *_: SimpleNamespace(
        run=lambda: {missing[0]: "the disk is full"}))
    outcome = run_command(run_table.main, tiny, "--sets", "--rows=lsp", "--columns=none",
                          "--seeds=4")
    assert "lsp x none, seed 4: the disk is full" in outcome.stderr
    assert outcome.error.startswith("1 of 1 cells failed")


def test_what_is_committed_is_made_anew_where_that_is_asked(tiny, monkeypatch):
    choice = Choice(rows=("lsp",), columns=("none",), seeds=(0,))
    [cell] = planned(tiny, choice)
    monkeypatch.setattr(run_table.records, "committed",
                        lambda: {cell.record.job.fingerprint: Path("results/one")})
    monkeypatch.setattr(run_table, "say_made_otherwise", lambda *_: None)
    line = [tiny, *choice.words, "--dry-run"]
    assert run_command(run_table.main, *line).stdout == ""
    made = run_command(run_table.main, *line, "--anew").stdout.splitlines()
    assert [re.search(r"python (\S+)", step)[1] for step in made] == ["-m", "evaluate.py"]


def test_an_edited_record_is_named(tiny):
    choice = Choice(rows=("clean",), columns=("none",), seeds=(0,))
    [cell] = planned(tiny, choice)
    make_missing([cell])
    record = cell.record.out / "record.json"
    text = record.read_text()
    record.write_text(text.replace('"accuracy_last": 0.', '"accuracy_last": 0.9'))
    try:
        outcome = run_command(run_table.main, tiny, *choice.words)
        assert outcome.status == 1
        assert re.search(r"clean x none, seed 0: .*record\.json does not match", outcome.stderr)
        shown = run_command(render.main, tiny, *choice.words)
        assert f"note: {cell.record.out} is no whole record of clean x none, seed 0" in shown.stderr
    finally:
        record.write_text(text)


@pytest.mark.slow
def test_two_at_once_and_a_kill_make_the_same(tiny):
    """kill -9 of everything in the middle; then two processes on the same table."""
    changed(tiny, "lsp.patch: 8", "lsp.patch: 4")       # a set of artefacts of its own
    victim = start(tiny, start_new_session=True)
    until(lambda: any("lsp" in name for name in finished_at(Path("runs"))), seconds=120)
    time.sleep(3)
    subprocess.run(["pkill", "-9", "-s", str(victim.pid)], check=False)
    subprocess.run(["pkill", "-9", "-f", str(tiny)], check=False)
    victim.wait()
    both = [start(tiny), start(tiny)]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    assert not list(Path("runs").rglob("*.partial"))
    assert all(cell.record.done for cell in planned(tiny))


def test_ctrl_c_saves_and_says_so(tiny):
    changed(tiny, "standard.epochs: 1", "standard.epochs: 2000")
    record = planned(tiny)[0].record.out
    process = start(tiny)
    log = Path(f"runs/logs/records-{record.name}.log")
    until(lambda: log.exists() and "epoch" in log.read_text(), seconds=120)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "the same line resumes" in stderr
    assert list(record.with_name(f"{record.name}.partial").glob("state/*.pt"))


def test_finished_records_of_another_precision_are_said(tiny, monkeypatch):
    """As a committed record says of itself; an `auto` asks for nothing."""
    cells = planned(tiny)
    made = Path("made")
    made.mkdir(exist_ok=True)
    (made / "meta.json").write_text('{"device": {"precision": "bf16"}}')
    monkeypatch.setattr(run_table.records, "committed",
                        lambda: {cell.record.job.fingerprint: made for cell in cells})
    assert "made with" not in run_command(run_table.main, tiny, "--dry-run").stderr
    assert (f"made is already done, made with precision=bf16, not fp32: another out= makes it anew "
            f"({len(cells)} such records)\n") in run_command(
                run_table.main, tiny, "--dry-run", "precision=fp32").stderr


@pytest.mark.parametrize(("script", "heard"), [
    ("le_table3", ["run_table.py le_table3", "table.py le_table3"]),
    ("le_table4", ["run_table.py le_table4 le_table4_moco le_table4_byol", "table.py le_table4",
                   "table.py le_table4_moco", "table.py le_table4_byol"]),
    ("small", ["run_table.py dvae_cifar10 --small"])])
def test_a_mistake_in_the_line_of_a_script_is_said_once(tmp_path, script, heard):
    """Heard by a `python` that refuses everything."""
    (tmp_path / "python").write_text(
        '#!/bin/sh\necho "$@" >> "$HEARD"\necho "error: no row of that name" >&2\nexit 1\n')
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", ROOT / f"scripts/{script}.sh", "--rows", "nobody"], capture_output=True, text=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "HEARD": str(tmp_path / "heard"),
             "INSTALL": "no", "VIRTUAL_ENV": "any"}, check=False)
    assert (done.returncode, done.stderr) == (1, "error: no row of that name\n")
    called = (tmp_path / "heard").read_text().replace("configs/tables/", "").replace(".yaml", "")
    assert [line.removeprefix("scripts/").partition(" --rows nobody")[0]
            for line in called.splitlines()] == heard
