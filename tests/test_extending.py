"""docs/extending.md: what it adds is put into a copy of the repository, and its lines run there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, checkout
from methods import POISONS, needed_paths

from core import files
from core.imageset import ImageSet
from core.records import load

PAGE = (ROOT / "docs/extending.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
HERE = {path for name in ("smoothing", "cutout")
        for path in (f"learners/{name}.py", f"configs/learners/{name}.yaml")}
# Runs the lines in one process, as `python ...` would each: cut to a few rows and an epoch.
DRIVER = """
import contextlib, io, shlex, sys
sys.path.insert(0, ".")
import evaluate, purify
from poisons.__main__ import main as poison
from scripts.pictures import figures
from scripts.tables import run_table

MAINS = {"-m poisons": poison, "purify.py": purify.main, "evaluate.py": evaluate.main,
         "scripts/figures.py": figures.main, "scripts/run_table.py": run_table.main}
CUT = {"-m poisons": ["--limit", "200", "threads=1"], "purify.py": ["threads=1"],
       "evaluate.py": ["threads=1", "{method}.epochs=1", "{method}.width=2"]}
for line in sys.stdin.read().splitlines():
    words = shlex.split(line.removeprefix("python "))
    program, words = (" ".join(words[:2]), words[2:]) if words[0] == "-m" else (words[0], words[1:])
    method = words[0].rsplit("/")[-1].removesuffix(".yaml")
    words += [word.format(method=method) for word in CUT.get(program, [])]
    if MAINS[program](words):
        sys.exit(f"failed: {line}")
for program in ("-m poisons", "purify.py", "evaluate.py"):
    with contextlib.suppress(SystemExit):
        MAINS[program](["--help"])
"""


def written() -> dict[str, str]:
    """Path -> text of the files that the page shows whole: their first line is their path."""
    shown = [text.split("\n", 1) for kind, text in BLOCKS if kind in ("python", "yaml")]
    return {first.removeprefix("# "): rest for first, rest in shown}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The code with everything that the page adds."""
    folder = checkout(tmp_path_factory.mktemp("extended"))
    for path, text in written().items():
        (folder / path).write_text(text)
    for kind, text in BLOCKS:
        if kind == "diff":
            subprocess.run(["git", "apply", "-"], input=text, text=True, cwd=folder, check=True)
    return folder


def test_what_is_in_the_repository_is_shown_as_it_is_and_the_rest_is_new():
    for path, text in written().items():
        assert (ROOT / path).exists() == (path in HERE), path
        if path in HERE:
            assert (ROOT / path).read_text() == text


def test_a_data_set_takes_four_lines_in_one_file():
    [diff] = [text for kind, text in BLOCKS if kind == "diff"]
    assert len(re.findall(r"^\+ ", diff, re.MULTILINE)) == 4
    assert len(re.findall(r"^(?:\+\+\+|---) ", diff, re.MULTILINE)) == 2
    assert not re.findall(r"^- ", diff, re.MULTILINE)


def test_the_lines_of_the_page_run(project):
    done = subprocess.run([sys.executable, "-c", DRIVER], input="\n".join(LINES), text=True,
                          cwd=project, capture_output=True, check=False,
                          env={**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    for name in ("class_signs", "box", "cutout", "smoothing"):
        assert re.search(rf"\b{name}\b", done.stdout), f"--help does not know {name}"
    signs, box, photos = (files.read_json(project / f"runs/{name}/meta.json")["lineage"][-1]
                           for name in ("signs", "signs-box", "photos-lsp"))
    assert signs["config"] == {"epsilon": 32 / 255, "patch": 4, "rounding": "round"}
    assert box["config"] == {"radius": 1}
    assert (photos["config"]["radius"], photos["config"]["patch"]) == (2.6083, 4)
    images = ImageSet.load(project / "runs/signs-box")
    assert images.images.shape == (200, 16, 16, 3)
    for name in ("smoothing", "cutout"):
        record = load(project / f"runs/signs-box-{name}")
        assert record["learner"] == name
        assert [step["method"] for step in record["train"]["lineage"]] == ["class_signs", "box"]
    assert (project / "signs.png").stat().st_size
    # The table's plan, on digits and for each radius: what its cells share is there once. The
    # table has one seed, and keeps it.
    planned = [line for line in done.stdout.splitlines() if line.endswith(" --wait")]
    assert sum("configs/poisons/class_signs.yaml data=digits" in line for line in planned) == 1
    assert sum("box.radius=2" in line for line in planned) == 2    # of the clean set and of it
    assert all("cutout.test_every=0" in line for line in planned if "evaluate.py" in line)


@pytest.fixture(scope="module")
def called(project, tmp_path_factory) -> list[str]:
    """The commands that smoke.sh gives, heard by a `python` that does nothing."""
    folder = tmp_path_factory.mktemp("heard")
    (folder / "python").write_text('#!/bin/sh\necho "$@" >> "$HEARD"\n')
    (folder / "python").chmod(0o755)
    heard = folder / "heard"
    subprocess.run(["bash", "scripts/smoke.sh", str(folder / "out")], cwd=project, check=True,
                   capture_output=True,
                   env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}",
                        "HEARD": str(heard)})
    return heard.read_text().splitlines()


def test_smoke_runs_what_was_added(called):
    for path in written():
        if path.startswith("configs/") and "tables" not in path:
            assert any(f"{path} --smoke" in line for line in called), path


@pytest.mark.parametrize("name", [name for name in POISONS if needed_paths("poisons", name)])
def test_smoke_gives_a_poison_what_it_must_read(name, called):
    lines = [line for line in called if f"configs/poisons/{name}.yaml " in line]
    assert lines
    for line in lines:
        for key in needed_paths("poisons", name):
            assert f" {name}.{key}=" in line, line
