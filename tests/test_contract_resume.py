"""Every method dies in its middle, and the same line ends with the bytes of a run that did not."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Death, operations, write_imageset
from crash_driver import content
from methods import HALVES, line_of, run_small

import core.run

ROWS = 40
pytestmark = pytest.mark.usefixtures("short_refit")


@pytest.fixture(scope="module")
def clean_for(digits, tmp_path_factory) -> Callable[[str], Path]:
    """The set for a method: digits of 8x8 pixels, or of 16x16 where a patch is of 8 or more."""
    place, labels = tmp_path_factory.mktemp("resume"), digits.labels[:ROWS]
    small, large = (write_imageset(place / f"{16 // by}" / "clean",
                                   digits.images[:ROWS, ::by, ::by], labels) for by in (2, 1))
    return lambda name: large if name in ("lsp", "cutout") else small


@pytest.fixture(autouse=True)
def save_always(monkeypatch):
    """A state after every step, as many places to die."""
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0)


def run(case, clean: Path, out: Path, die_at: int | None = None) -> tuple[int, str]:
    """Run a method in a folder, or die at its operation number `die_at` on the disk: how many it
    did, and what it said."""
    out.mkdir(exist_ok=True)
    # A folder that is named alike is written down alike.
    with operations(die_at) as seen, contextlib.chdir(out):
        outcome = run_small(*case, clean, Path("out"))
    assert outcome.status == 0, outcome.stderr
    return len(seen), outcome.stderr


@pytest.mark.parametrize("parts", [
    pytest.param([0.5], id="half"),
    pytest.param([part / 12 for part in range(1, 12)], id="twelfths", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", HALVES, ids=["-".join(filter(None, case)) for case in HALVES])
def test_a_method_that_died_in_its_middle_goes_on(case, parts, clean_for, tmp_path):
    clean = clean_for(case[1])
    line_of(*case, clean, tiny=True)                    # makes what it reads
    total, _ = run(case, clean, tmp_path / "straight")
    straight = content(tmp_path / "straight" / "out")
    for part in parts:
        out = tmp_path / f"died-at-{part:.2f}"
        with pytest.raises(Death):
            run(case, clean, out, die_at=round(part * total))
        again, said = run(case, clean, out)
        assert content(out / "out") == straight
        if part == 0.5:                     # near the ends nothing is begun, or all is done
            assert "resuming" in said
            assert again < total
