"""What an inspection prints and draws."""

import numpy as np
import pytest
from conftest import run_command

from scripts.pictures import inspect_poison


def test_an_inspection_prints_and_draws(tmp_path):
    from poisons.__main__ import main as poison_main

    poison = run_command(poison_main, "method=ops", "data=digits").path
    outcome = run_command(inspect_poison.main, poison, "--out", tmp_path / "ops.png")
    assert outcome.status == 0, outcome.stderr
    assert (tmp_path / "ops.png").read_bytes()[:4] == b"\x89PNG"
    lines = {line[:22].strip(): line[22:].strip() for line in outcome.stdout.splitlines()[1:]}
    assert lines["L0 (most)"] == "1 pixels"
    assert float(lines["nearest class mean"].split("%")[0]) > 95
    beside = run_command(inspect_poison.main, poison, "digits", "--out", tmp_path / "other.png")
    assert beside.stdout == outcome.stdout          # CLEAN is what data= takes
    (tmp_path / "folder").mkdir()
    assert "is no regular file" in run_command(inspect_poison.main, poison, "--out",
                                               tmp_path / "folder").error
    same = run_command(inspect_poison.main, poison, poison)
    assert "does not differ from the set it is compared with" in same.error
    clean = run_command(inspect_poison.main, "digits")
    assert clean.error.startswith("digits does not differ from the set it is compared with: name ")


def test_the_spectrum_of_a_wave():
    """A cosine of 4 periods in 16 pixels has all its power at a quarter cycle a pixel."""
    wave = np.cos(2 * np.pi * 4 * np.arange(16) / 16)
    images = np.broadcast_to(wave[None, None, :, None], (3, 16, 16, 3))
    radius, power = inspect_poison.radial([images])
    assert radius[power.argmax()] == 0.25
    assert power.max() == pytest.approx(1)
