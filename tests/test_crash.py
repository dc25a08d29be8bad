"""Nothing is lost: every command dies at its file operations and ends with the same bytes."""

import pytest
from conftest import ROOT, process


@pytest.fixture
def drive(tmp_path, monkeypatch):
    def driven(command, *arguments):
        monkeypatch.chdir(ROOT)
        driver = process("-m", "tests.crash_driver", command, tmp_path / "work", *arguments)
        stdout, stderr = driver.communicate(timeout=3600)
        assert driver.returncode == 0, stdout + stderr
        return stdout

    return driven


def test_poison_survives_a_sample_of_deaths(drive):
    assert "same bytes each time" in drive("poison", "--every", "4", "--kills", "1")


@pytest.mark.parametrize("left", ["names", "bytes"])
def test_poison_survives_a_sample_of_power_cuts(left, drive):
    assert "same bytes each time" in drive("poison", "--every", "12", "--cut", left)


@pytest.mark.slow
@pytest.mark.parametrize("left", ["names", "bytes"])
@pytest.mark.parametrize("command", ["poison", "tap", "sep", "train_vae", "purify", "chain",
                                     "evaluate"])
def test_commands_survive_every_power_cut(command, left, drive):
    assert "same bytes each time" in drive(command, "--cut", left)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["poison", "tap", "rem", "sep", "train_vae", "purify", "chain",
                                     "evaluate", "train_ddpm", "jcdp"])
def test_every_command_survives_every_death(command, drive):
    assert "same bytes each time" in drive(command)
