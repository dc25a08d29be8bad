"""Nothing is lost: every command dies at its file operations and ends with the same bytes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def drive(command, tmp_path, *arguments):
    line = [sys.executable, "-m", "tests.crash_driver", command, tmp_path / "work", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_poison_survives_a_sample_of_deaths(tmp_path):
    assert "same bytes each time" in drive("poison", tmp_path, "--every", "4", "--kills", "1")


@pytest.mark.parametrize("left", ["names", "bytes"])
def test_poison_survives_a_sample_of_power_cuts(left, tmp_path):
    assert "same bytes each time" in drive("poison", tmp_path, "--every", "12", "--cut", left)


@pytest.mark.slow
@pytest.mark.parametrize("left", ["names", "bytes"])
@pytest.mark.parametrize("command", ["poison", "tap", "sep", "train_vae", "purify", "chain",
                                     "evaluate"])
def test_commands_survive_every_power_cut(command, left, tmp_path):
    assert "same bytes each time" in drive(command, tmp_path, "--cut", left)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["poison", "tap", "rem", "sep", "train_vae", "purify", "chain",
                                     "evaluate", "train_ddpm", "jcdp"])
def test_every_command_survives_every_death(command, tmp_path):
    assert "same bytes each time" in drive(command, tmp_path)
