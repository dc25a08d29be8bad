"""Learning rates of every schedule against torch's own schedulers."""

import pytest
import torch
from conftest import new_run
from torch import nn
from torch.optim import lr_scheduler

from core import training
from core.training import Protocol, learning_rate

PER_EPOCH = 7


def torch_rates(make, steps: int, every: int) -> list[float]:
    """The rate of each step under one of torch's schedulers, stepped once in `every` steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimizer)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    return rates


def our_rates(total: int, **keys) -> list[float]:
    protocol = Protocol(learning_rate=0.1, **keys)
    return [learning_rate(protocol, step, total, PER_EPOCH) for step in range(total)]


def test_a_warm_up_climbs_straight_and_the_cosine_follows_it():
    """The rates of AUE's release at its epochs, but for its last rate of 1e-6."""
    aue = Protocol(epochs=200, learning_rate=0.5, warmup_epochs=10)
    found = [learning_rate(aue, epoch * PER_EPOCH, 200 * PER_EPOCH, PER_EPOCH)
             for epoch in (0, 4, 9, 10, 105, 199)]
    assert found == pytest.approx([0.05, 0.25, 0.5, 0.5, 0.25, 3.417e-5], rel=1e-3)
    by_step = Protocol(steps=40, learning_rate=0.1, warmup_epochs=2, schedule="multistep",
                       milestones=(20,))
    found = [learning_rate(by_step, step, 40, PER_EPOCH) for step in (0, 6, 13, 14, 19, 20)]
    assert found == pytest.approx([0.1 / 14, 0.05, 0.1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("epochs", [1, 2, 12, 60])
def test_cosine_is_torchs_stepped_once_an_epoch(epochs):
    steps = epochs * PER_EPOCH
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, epochs), steps, PER_EPOCH)
    assert our_rates(steps, schedule="cosine", epochs=epochs) == pytest.approx(expected, abs=1e-12)


def test_multistep_is_torchs():
    expected = torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [3, 5], 0.1), 8 * PER_EPOCH,
                           PER_EPOCH)
    found = our_rates(8 * PER_EPOCH, schedule="multistep", epochs=8, milestones=(3, 5))
    assert found == pytest.approx(expected, rel=1e-12)
    halved = torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [3, 5], 0.5), 8 * PER_EPOCH,
                         PER_EPOCH)
    assert our_rates(8 * PER_EPOCH, schedule="multistep", epochs=8, milestones=(3, 5),
                     gamma=0.5) == pytest.approx(halved, rel=1e-12)


def test_warm_multistep_is_torchs_linear_climb_then_multistep():
    """SEP's release counts its batches from one: the first does not stand at 1e-3."""
    expected = torch_rates(lambda o: lr_scheduler.LinearLR(o, 0.01, 1.0, PER_EPOCH),
                           PER_EPOCH + 1, 1)[1:]
    expected += torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [3, 5], 0.1), 8 * PER_EPOCH,
                            PER_EPOCH)[PER_EPOCH:]
    found = our_rates(8 * PER_EPOCH, schedule="warm_multistep", epochs=8, milestones=(3, 5))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("epochs", [1, 3, 12])
def test_onecycle_is_torchs_without_its_momentum(epochs):
    steps = epochs * PER_EPOCH
    expected = torch_rates(lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=steps, anneal_strategy="cos", cycle_momentum=False), steps, 1)
    found = our_rates(steps, schedule="onecycle", epochs=epochs)
    assert found == pytest.approx(expected, rel=1e-9)
    assert max(found) <= 0.1


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_onecycle_of_a_handful_of_steps_is_a_rate(steps):
    found = our_rates(steps, schedule="onecycle", epochs=1)
    assert all(0 < rate <= 0.1 for rate in found)


def test_protocols_that_count_steps_change_the_rate_by_step():
    """REM: 40,000 steps, the rate a tenth every 16,000."""
    protocol = Protocol(steps=40_000, schedule="multistep", milestones=(16_000, 32_000))
    found = [learning_rate(protocol, step, 40_000, 390)
             for step in (0, 15_999, 16_000, 31_999, 32_000, 39_999)]
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 30), 30, 1)
    assert our_rates(30, schedule="cosine", steps=30) == pytest.approx(expected, abs=1e-12)


def test_constant_is_constant():
    assert set(our_rates(3 * PER_EPOCH, schedule="constant", epochs=3)) == {0.1}


@pytest.mark.parametrize(("keys", "said"), [
    ({"epochs": 60, "schedule": "multistep", "milestones": (30, 60, 90)},
     "note: training ends after 60 epochs and does not come to milestones 60, 90\n"),
    ({"steps": 90, "schedule": "multistep", "milestones": (30, 90)},
     "note: training ends after 90 steps and does not come to milestones 90\n"),
    ({"epochs": 4, "warmup_epochs": 10},
     "note: training ends after 4 epochs and does not come to warmup_epochs 10\n"),
    ({"epochs": 60, "schedule": "multistep", "milestones": (30, 59)}, ""),
    ({"epochs": 60, "milestones": (90,)}, ""), ({"epochs": 4, "warmup_epochs": 4}, "")])
def test_what_a_schedule_never_comes_to_is_said(tmp_path, capsys, keys, said):
    """The rate of the last epoch is the one before it, and of four warm epochs the whole one."""
    with new_run(tmp_path / "out") as run:
        training.note_marks(Protocol(**keys), run)
    assert capsys.readouterr().err == said
    assert learning_rate(Protocol(epochs=4, warmup_epochs=4), 3, 4, 1) == 0.1
    falling = Protocol(epochs=60, schedule="multistep", milestones=(60,))
    assert learning_rate(falling, 59, 60, 1) == 0.1
