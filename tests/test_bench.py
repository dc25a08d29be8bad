"""scripts/bench: which benches there are, and one of them run through."""

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from conftest import run_command

import scripts.bench
from scripts.bench import bench, clock

NAMES = ["resnet", "adversarial", "evaluate", "pgd", "dvae", "unet", "rem", "free", "batches",
         "streamed", "views", "levers"]


def test_every_bench_of_every_file_is_in_the_table():
    files = [importlib.import_module(f"scripts.bench.{found.name}")
             for found in pkgutil.iter_modules(scripts.bench.__path__)]
    written = {function for file in files
               for _, function in inspect.getmembers(file, inspect.isfunction)
               if inspect.signature(function).return_annotation == Iterator[clock.Row]}
    assert list(bench.BENCHES) == NAMES
    assert set(bench.BENCHES.values()) == written


def test_a_bench_prints_its_rows_and_writes_them():
    outcome = run_command(bench.main, "batches", "--smoke", "threads=1", "--json", "out.json")
    assert outcome.status == 0, outcome.stderr
    rate = re.search(r"^\| augmented batches of 128 \| ([\d,]+) \| [\d.]+ \| ", outcome.stdout,
                     re.MULTILINE)
    written = json.loads(Path("out.json").read_text())
    [row] = written["rows"]
    assert rate[1] == f"{row['rate']:,.0f}"
    assert set(row) == {"name", "rate", "ratio", "share", "memory_gb", "note"}
    assert written["peak_flops"] > 0


def test_views_are_measured_at_both_sizes():
    outcome = run_command(bench.main, "views", "--smoke", "threads=1")
    assert outcome.status == 0, outcome.stderr
    assert re.findall(r"^\| views of (\d+)x", outcome.stdout, re.MULTILINE) == ["32", "224"]


def test_a_large_set_is_streamed_beside_a_batch_that_is_there():
    outcome = run_command(bench.main, "streamed", "--smoke", "threads=1")
    assert outcome.status == 0, outcome.stderr
    assert re.search(r"^\| streamed batches of 16 at 224x224, trained on \| [\d,.]+ \| [\d.]+ \| ",
                     outcome.stdout, re.MULTILINE)


def test_an_unknown_bench_names_the_nearest():
    outcome = run_command(bench.main, "resnets")
    assert outcome.status == 2
    assert "did you mean 'resnet'?" in outcome.stderr
