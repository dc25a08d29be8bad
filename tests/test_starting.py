"""How commands and shell lines start where nothing is installed yet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, checkout

from core.commands import COMMANDS

PROGRAMS = [*(command.words for command in COMMANDS.values()),
            *((f"scripts/{path.name}",) for path in sorted(ROOT.glob("scripts/*.py"))
              if path.name not in ("__init__.py", "start.py"))]
LINES = sorted(path.name for path in ROOT.glob("scripts/*.sh"))


@pytest.mark.parametrize("words", PROGRAMS, ids=" ".join)
def test_a_package_that_is_not_installed_is_said_in_one_sentence(words):
    done = subprocess.run([sys.executable, "-S", *words], cwd=ROOT, capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"]}, check=False)      # -S: no packages
    assert done.returncode == 1
    assert done.stderr.startswith("error: the Python package '")
    assert len(done.stderr.splitlines()) == 1
    assert "`bash scripts/setup.sh` installs" in done.stderr


def test_a_module_that_no_package_of_ours_is_keeps_its_traceback(tmp_path):
    (tmp_path / "mine.py").write_text("import core, nothing_of_that_name\n")
    done = subprocess.run([sys.executable, tmp_path / "mine.py"], capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A checkout without an environment."""
    return checkout(tmp_path_factory.mktemp("bare"))


@pytest.fixture
def heard(bare, tmp_path):
    """Runs a shell line where Python only writes down what it is asked for; returns how the line
    ended, and what that was."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    for name in ("python", "python3"):
        (folder / name).write_text(
            f'#!/bin/sh\necho "$*" >> {log}\ncase "$*" in ${{FAILS:-none}}*) exit 1;; esac\n'
            'exit ${EXIT:-1}\n')
        (folder / name).chmod(0o755)

    def run(*words: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        log.write_text("")
        done = subprocess.run(["bash", *words], cwd=bare / "scripts", capture_output=True,
                              text=True, check=False,
                              env={"PATH": f"{folder}:/usr/bin:/bin", **environment})
        return done, log.read_text().splitlines()

    return run


@pytest.mark.parametrize("line", LINES)
def test_help_needs_no_installation(heard, line):
    done, asked = heard(line, "--help")
    assert (done.returncode, asked) == (0, [])
    assert f"bash scripts/{line}" in done.stdout or "bash scripts/table.sh NAME" in done.stdout
    assert "#" not in done.stdout.replace("# root", "")


@pytest.mark.parametrize("words", [
    ("le_table3.sh", "--quick", "--dry-run"), ("table.sh", "le_table3", "--status"),
    ("small.sh", "--dry-run"), ("slurm.sh", "le_table3", "--status")], ids=" ".join)
def test_what_makes_nothing_installs_nothing(heard, words):
    done, asked = heard(*words)
    assert done.returncode == 1
    assert [line.partition(" ")[0] for line in asked] == ["scripts/run_table.py"]


@pytest.mark.parametrize("word", ["--dry-run", "--status"])
@pytest.mark.parametrize("script", [line for line in LINES
                                    if "[--dry-run" in (ROOT / "scripts" / line).read_text()])
def test_what_makes_nothing_ends_before_what_would(heard, script, word):
    tables = ("le_table3",) if script == "table.sh" else ()
    done, asked = heard(script, *tables, word, EXIT="0")
    assert done.returncode == 0
    assert asked
    assert all(line.startswith("scripts/run_table.py ") and word in line.split() for line in asked)


@pytest.mark.parametrize(("fails", "status"), [
    ("none", 0), ("scripts/table.py", 1), ("scripts/figures.py", 1),
    ("scripts/run_table.py configs/tables/le_table5.yaml", 1)])
def test_what_fails_in_a_line_of_many_is_told_by_its_status(heard, fails, status):
    """And the rest is done."""
    done, asked = heard("small.sh", EXIT="0", FAILS=fails, INSTALL="no")
    assert done.returncode == status
    programs = [line.split()[0] for line in asked]
    assert programs.count("scripts/table.py") == programs.count("scripts/figures.py") == 4


def test_what_makes_something_installs_first(heard):
    done, asked = heard("le_table3.sh", "--quick")
    assert done.returncode == 1
    assert asked[0].startswith("-c import sys")             # whether it is new enough
