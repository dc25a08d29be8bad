"""The noise of crafting on disk: rows of a file, and two files that rounds take in turn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attacks import random_set
from conftest import as_set, new_run

from core.files import RowFile
from core.imageset import ImageSet
from poisons import noise as noise_files
from poisons import random_signs


@pytest.fixture(scope="module")
def small() -> ImageSet:
    return random_set(42, 0, 256)


@pytest.mark.parametrize("rounding", ["round", "floor"])
@pytest.mark.parametrize("levels", [8, 16, 32])
def test_random_signs_are_whole_levels_however_they_are_rounded(tmp_path, rounding, levels):
    """Of all 256 levels: x/255 less 8/255 may lie just below a level in float32."""
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(8, 0).repeat(3, 3)
    config = random_signs.Config(epsilon=levels / 255, rounding=rounding)
    with new_run(tmp_path / "run") as run:
        found = random_signs.poison(as_set(ramp), config, run).images.astype(int)
    whole = ramp.astype(int)
    up, down = (whole + levels).clip(max=255), (whole - levels).clip(min=0)
    assert ((found == up) | (found == down)).all()
    assert 0.4 < (found == up).mean() < 0.6


def test_rows_come_back_from_a_file_that_numpy_can_open(tmp_path):
    rows = np.random.default_rng(0).normal(size=(9, 4, 2, 3)).astype(np.float16)
    file = RowFile(tmp_path / "noise.npy", (9, 4, 2, 3), "float16")
    assert not file.read(slice(0, 9)).any()
    file.write(5, rows[5:])
    file.write(1, rows[1:3])
    expected = np.where(np.isin(np.arange(9), [1, 2, 5, 6, 7, 8])[:, None, None, None], rows, 0)
    again = RowFile(tmp_path / "noise.npy", (9, 4, 2, 3), "float16")
    for opened in (file, again):
        for start in range(9):
            for stop in range(start, 10):
                found = opened.read(slice(start, stop))
                assert found.dtype == np.float16
                np.testing.assert_array_equal(found, expected[start:stop])
        opened.close()
    np.testing.assert_array_equal(np.load(tmp_path / "noise.npy"), expected)


def test_rows_read_are_the_readers_own(tmp_path):
    file = RowFile(tmp_path / "noise.npy", (2, 3), "float32")
    file.read(slice(0, 2))[:] = 1
    assert not file.read(slice(0, 2)).any()
    file.close()


def test_one_process_alone_writes_the_start(tmp_path, small):
    """Of several, one that comes late would clear what the first learns from already."""
    with new_run(tmp_path / "out") as run:
        waited = []

        def begin(leads: bool) -> np.ndarray:
            run.world = SimpleNamespace(leads=leads, barrier=lambda: waited.append(leads))
            noise = noise_files.TwoFiles(small, run)
            noise.begin(0, lambda rows: torch.ones(rows.stop - rows.start, 3, 8, 8))
            found, _ = noise.files(0)
            return found.read(slice(0, len(small)))

        assert not begin(False).any()
        assert (begin(True) == 1).all()
        assert (begin(False) == 1).all()
        assert waited == [False, True, False]


def test_rounds_take_the_two_noises_in_turn(tmp_path, small):
    """Round r writes what round r + 1 reads, and never what it reads itself."""
    with new_run(tmp_path / "out") as run:
        noise = noise_files.TwoFiles(small, run)
        value = torch.zeros(2, 3, 8, 8)
        for round_ in range(4):
            old, new = noise.files(round_)
            assert torch.equal(noise_files.load_noise(old, slice(3, 5), run), value)
            value = torch.rand(2, 3, 8, 8).half().float()
            noise_files.store_noise(new, 3, value)
            assert not torch.equal(noise_files.load_noise(old, slice(3, 5), run), value)
        assert torch.equal(noise_files.load_noise(noise.files(4)[0], slice(3, 5), run), value)
