"""Commands at once: forks, cores and GPUs."""

import sys

import pytest
import tables
import torch
from conftest import content, succeed
from tables import planned

import purify
from poisons.__main__ import main as poison_main
from scripts.tables import claims, schedule

# fixtures
project, here, tiny = tables.project, tables.here, tables.tiny


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can fork safely")
def test_a_brief_step_is_made_without_a_new_python(tiny, monkeypatch):
    """In a fork of the runner: the bytes that its command makes."""
    cell = next(cell for cell in planned(tiny) if cell.column.family == "jpeg")
    [purified] = cell.record.needs
    [poison] = purified.needs
    assert (purified.brief, poison.brief, cell.record.brief) == (True, False, False)
    succeed(poison_main, *poison.arguments)
    monkeypatch.setattr(schedule.processes, "start", None)
    assert schedule.Scheduler([purified], 1, []).run() == {}
    again = succeed(purify.main, *purified.arguments, "out=again")
    assert content(again) == content(purified.out)
    assert "jpeg changed" in schedule.log_of(purified).read_text()


def test_beside_a_gpu_nothing_is_forked(monkeypatch):
    """CUDA cannot be begun in a fork of a process that has looked for it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not schedule.Scheduler([], 1, []).forks


def test_compiling_commands_share_the_cores(tiny, monkeypatch):
    """32 processes each, as torch would start, are too many."""
    started = []
    monkeypatch.setattr(schedule.processes, "start",
                        lambda words, env, **options: started.append(env))
    monkeypatch.setattr(schedule, "free_cores", lambda: 10)
    record = planned(tiny)[0].record
    key = "TORCHINDUCTOR_COMPILE_THREADS"
    monkeypatch.delenv(key, raising=False)
    claim = claims.take(record)
    schedule.Scheduler([record], 4, [])._launch(record, claim)
    monkeypatch.setenv(key, "7")
    schedule.Scheduler([record], 4, ["GPU-1"])._launch(record, claim)
    assert started == [{key: "2"}, {key: "7", "CUDA_VISIBLE_DEVICES": "GPU-1"}]
