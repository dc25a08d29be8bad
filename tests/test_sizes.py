"""Every attack, purifier, trainer and learner, small, on images of 64 and (slow) of 224 pixels."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import succeed, write_imageset
from methods import HALVES, line_of, run_small

from core import memory
from core.errors import UserError
from core.imageset import ImageSet
from poisons.noise import require_on_card

ROWS = 16
# Of 224 pixels, four steps of the smallest DDPM take minutes.
SHORT_DDPM = ["ddpm.train.steps=1", "ddpm.train.batch_size=2"]
pytestmark = pytest.mark.usefixtures("short_refit")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """size -> the path of a set of smooth images, a few of each of six classes."""
    made = {}

    def of_size(size):
        if size not in made:
            coarse = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3), np.uint8)
            images = coarse.repeat(size // 8, 1).repeat(size // 8, 2)
            made[size] = write_imageset(tmp_path_factory.mktemp(f"of{size}") / "clean", images,
                                        np.arange(ROWS) % 6)
            main, line = line_of("purifiers", "ddpm", "train", made[size], tiny=True)
            succeed(main, *line, *SHORT_DDPM, f"out={made[size].parent / 'ddpm'}")
        return made[size]

    return of_size


@pytest.mark.parametrize(("room", "name", "half"), HALVES)
@pytest.mark.parametrize("size", [64, pytest.param(224, marks=pytest.mark.slow)])
def test_every_module_runs_at_full_size(room, name, half, size, clean, tmp_path):
    short = SHORT_DDPM if (name, half) == ("ddpm", "train") else []
    outcome = run_small(room, name, half, clean(size), tmp_path / "out", *short)
    assert outcome.status == 0, outcome.stderr
    if room != "learners" and not half:
        assert ImageSet.load(tmp_path / "out").images.shape == (ROWS, size, size, 3)
    if room == "learners":
        record = json.loads((tmp_path / "out" / "record.json").read_text())
        assert 0 <= record["accuracy_last"] <= 1


@pytest.mark.parametrize("name", ["cp", "tue", "aue", "mi_ue"])
def test_noise_of_every_image_that_memory_cannot_hold_is_refused(name, clean, tmp_path,
                                                                 monkeypatch):
    monkeypatch.setattr(memory, "left", lambda: 1_000_000)
    kind = ["cp.kind=samplewise"] if name == "cp" else []
    outcome = run_small("poisons", name, "", clean(64), tmp_path / "out", *kind)
    assert outcome.status == 1
    instead = " or one noise a class (method=cp)" if name in ("cp", "tue") else ""
    assert outcome.error == (f"{name}: three copies of the noise of 16 images of 64x64 are 2.4 MB, "
                             "and 1.0 MB of memory are left; take fewer images (split=first:N)"
                             + instead)


def test_noise_of_every_image_that_a_gpu_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_500_000, 80_000_000))
    said = ("the noise", "take fewer images")
    require_on_card(1_500_000, *said, torch.device("cuda"))
    require_on_card(1_500_001, *said, torch.device("cpu"))
    with pytest.raises(UserError, match=r"the noise is 1\.5 MB, and 1\.5 MB of the GPU's memory "
                                        "are left; take fewer images"):
        require_on_card(1_500_001, *said, torch.device("cuda"))


def test_noise_of_every_image_that_the_disk_cannot_hold_is_refused(clean, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    outcome = run_small("poisons", "em", "", clean(64), tmp_path / "out")
    assert outcome.status == 1
    assert "noise0.npy: two copies of the noise of 16 images are 0.8 MB, and its" in outcome.error
