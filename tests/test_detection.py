"""--detect: the probes against slow loops and planted shortcuts, the limits, the verdict."""

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_command

from core.datasets import DataSettings, load
from core.errors import UserError
from core.imageset import from_arrays
from poisons.__main__ import main as poison_main
from scripts.detection import measured as detection_measured
from scripts.detection import probes, reference, verdict
from scripts.detection.probes import PROBES, sample, scores
from scripts.pictures import inspect_poison

QUICK = ("high-pass", "texture")        # the others take gradient steps


def large_set(images, labels):
    return from_arrays(images, labels, name="x", classes=[str(i) for i in range(labels.max() + 1)],
                       root={"data": "x"}, test=None)


@pytest.fixture(scope="module")
def digits():
    return sample(load(DataSettings("digits")), most=400)


# --- features --------------------------------------------------------------------------------


def test_high_pass_is_the_pixel_less_its_neighbourhood():
    images = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    found = probes.high_pass(images)
    for n, c, i, j in itertools.product(range(2), range(3), range(5), range(6)):
        around = images[n, c, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        assert found[n, c, i, j] == pytest.approx(float(images[n, c, i, j] - around.mean()),
                                                  abs=1e-6)


def test_texture_is_the_slow_loop_over_windows():
    images = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = probes.texture(images)
    assert found.shape == (2, 3, 45)
    for n, c in itertools.product(range(2), range(3)):
        products = np.zeros((9, 9))
        for i, j in itertools.product(range(3), range(2)):
            window = images[n, c, i : i + 3, j : j + 3].numpy().ravel()
            window = window - window.mean()
            window /= math.sqrt((window**2).sum()) + 6 / 255
            products += np.outer(window, window) / 6
        np.testing.assert_allclose(found[n, c], products[np.triu_indices(9)], atol=1e-12)


def test_texture_sees_neither_brightness_nor_where():
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    torch.testing.assert_close(probes.texture(images), probes.texture(images + 0.3))
    assert not torch.allclose(probes.texture(images), probes.texture(images.cumsum(2) / 8))


def test_clean_scores_are_of_parts_that_share_no_image(monkeypatch):
    """Three repeats of the same probe: what stands in the file, and what a set is too small for."""
    seen = []
    monkeypatch.setattr(reference, "CLEAN", Path("clean.csv"))
    monkeypatch.setattr(reference, "scores", lambda images, epochs, seed, names: seen.append(
        images) or dict.fromkeys(names, (0.1, 0.3, 0.2)[seed]))
    line = ["digits", "--probes", "texture", "--images"]
    assert run_command(reference.main, *line, 300).status == 0
    rows = {image.tobytes() for part in seen for image in part.images}
    assert [len(part) for part in seen] == [300] * 3
    assert len(rows) == 900
    [row] = csv.DictReader(Path("clean.csv").read_text().splitlines())
    assert row == {"set": "digits", "side": "16", "classes": "10", "images": "300",
                   "probe": "texture", "epochs": "", "repeats": "3", "mean": "0.2000",
                   "least": "0.1000", "most": "0.3000"}
    assert run_command(reference.main, *line, 5000).error == "--images 5000: digits has 1437"


# --- scores ----------------------------------------------------------------------------------


def test_every_probe_is_at_chance_where_there_is_nothing():
    images, labels = noise()
    found = scores(large_set(images, labels), epochs=3)
    assert list(found) == list(PROBES)
    assert max(found.values()) < 0.6                # of 40 or 200 held-out images; chance is 1/2


@pytest.mark.parametrize("probe", PROBES)
def test_every_probe_finds_a_planted_shortcut(probe):
    images, labels = noise()
    images[labels == 1, ::2] += 120                 # bright to some probes, striped to others
    assert scores(large_set(images, labels), epochs=60, probes=[probe])[probe] > 0.9


def noise() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (rng.integers(60, 120, (200, 8, 8, 3), dtype=np.uint8),
            np.arange(200, dtype=np.int64) % 2)


def test_held_out_images_are_not_trained_on():
    """As many random values as images: any line fits those that it saw."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 200)
    images = rng.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)
    found = scores(large_set(images, labels), epochs=30, probes=["linear", "high-pass"])
    assert all(0.25 < score < 0.75 for score in found.values())


def test_the_same_set_has_the_same_scores(digits):
    few = digits.subset(np.arange(200), "few")
    assert scores(few, 1) == scores(few, 1)


# --- limits and verdict ----------------------------------------------------------------------


def test_clean_digits_are_not_called_poisoned(digits):
    lines = verdict.compare(scores(digits, probes=QUICK), 400, 100, "digits")
    assert all(line.limit is not None and not line.above for line in lines)
    said = verdict.in_words(lines, "digits")
    assert said[0].startswith("no sign of poison")
    assert "does not depend on the label" in said[0]        # names what it cannot see
    assert said[1].endswith("missed aap, random_signs")


def test_a_planted_shortcut_is(digits):
    rng = np.random.default_rng(0)
    shortcut = rng.integers(-12, 13, (10, 16, 16, 3))[digits.labels]
    images = np.clip(digits.images.astype(int) + shortcut, 0, 255).astype(np.uint8)
    poisoned = large_set(images, digits.labels)
    lines = verdict.compare(scores(poisoned, probes=QUICK), 400, 100, "digits")
    assert [line.probe for line in lines if line.above][:1] == ["high-pass"]
    assert verdict.in_words(lines, "digits")[0].startswith("poisoned: high-pass")


def test_the_command_says_so():
    made = run_command(poison_main, "method=ops", "data=digits", "--limit", "400").path
    outcome = run_command(inspect_poison.main, made, "--detect", "--epochs", "1")
    assert outcome.status == 0, outcome.stderr
    head, _, *table, said, rates = outcome.stdout.splitlines()
    assert "400 images of 10 classes; beside clean digits" in head
    assert [line.split()[0] for line in table] == list(PROBES)
    assert "no clean score" in table[0]         # at one epoch there is no clean value
    assert said.startswith("poisoned: high-pass")
    assert "0 of 5 clean sets called poisoned, 19 of 21 poisons found" in rates


def test_without_a_clean_value_there_is_no_verdict(digits):
    found = dict.fromkeys(PROBES, 1.0)
    other = large_set(digits.images, digits.labels)
    assert verdict.reference_of(digits, None) == "digits"
    assert verdict.reference_of(other, None) is None
    assert verdict.reference_of(other, "digits") == "digits"
    for lines in (verdict.compare(found, 400, 100, None),
                  verdict.compare(found, 300, 100, "digits")):      # fewer than were measured
        assert not any(line.above for line in lines)
        assert verdict.in_words(lines, None)[0].startswith("no verdict")
    lines = verdict.compare(found, 400, 7, "digits")
    assert [line.limit is None for line in lines] == [True, True, False, False]


def test_a_limit_lies_between_those_of_the_sizes_beside_it():
    found = {"texture": 0.5}
    limits = [verdict.compare(found, images, 100, "cifar10")[0].clean
              for images in (500, 700, 1000, 1001, 2000)]
    assert limits[0] == pytest.approx(0.3547, abs=1e-4)     # clean.csv's
    assert limits == sorted(limits)


@pytest.mark.parametrize(("rows", "side", "classes", "message"), [
    (100, 8, 2, "100 images are too few; its probes need 200"),
    (200, 8, 1, "fewer than two have 10 images"),
    (200, 65, 2, "3 to 64 pixels a side, not 65x65"),
    (200, 2, 2, "3 to 64 pixels a side, not 2x2"),
])
def test_sets_that_say_nothing_are_refused(rows, side, classes, message):
    suspect = large_set(np.zeros((rows, side, side, 3), np.uint8),
                        np.arange(rows, dtype=np.int64) % classes)
    with pytest.raises(UserError, match=message):
        sample(suspect)


def test_a_comparison_that_means_nothing_is_refused(digits):
    with pytest.raises(UserError, match="did you mean 'digits'"):
        verdict.reference_of(digits, "digit")
    two = digits.subset(np.flatnonzero(digits.labels < 2), "two")
    assert verdict.reference_of(two, None) is None          # fewer classes are easier to tell
    with pytest.raises(UserError, match="10 classes of 32x32 pixels, the set 2 of 16x16"):
        verdict.reference_of(two, "cifar10")
    outcome = run_command(inspect_poison.main, "digits", "--detect", "--epochs", "0")
    assert outcome.status == 2
    assert "argument --epochs: must be at least 1" in outcome.stderr


# --- what was measured -----------------------------------------------------------------------


def measured(path=verdict.MEASURED) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_set_is_measured_again(tmp_path, monkeypatch):
    """Its row has the committed scores, and the others stay."""
    path = tmp_path / "measured.csv"
    kept = [row for row in measured() if row["name"] != "all 1,437"]
    path.write_bytes(verdict.MEASURED.read_bytes())
    monkeypatch.setattr(detection_measured, "MEASURED", path)
    outcome = run_command(detection_measured.main, "clean", "all 1,437=digits", "--probes", *QUICK)
    assert outcome.status == 0, outcome.stderr
    [row] = [row for row in measured(path) if row["name"] == "all 1,437"]
    [before] = [row for row in measured() if row["name"] == "all 1,437"]
    for key in ("like", "kind", "images", "above"):
        assert row[key] == before[key]
    for probe in QUICK:
        assert float(row[probe]) == pytest.approx(float(before[probe]), abs=0.003)
    assert [row for row in measured(path) if row["name"] != "all 1,437"] == kept
    outcome = run_command(detection_measured.main, "clean", "digits")
    assert outcome.error == "digits: write NAME=SET"


def test_no_clean_set_was_called_poisoned():
    clean = [row for row in measured() if row["kind"] == "clean"]
    assert {row["like"] for row in clean} == {"digits", "photos", "cifar10"}
    assert not any(row["above"] for row in clean)


def test_the_verdicts_that_were_measured_are_todays():
    for row in measured():
        found = {probe: float(row[probe]) for probe in PROBES if row[probe]}
        lines = verdict.compare(found, int(row["images"]), 100, row["like"])
        assert " ".join(line.probe for line in lines if line.above) == row["above"], row["name"]
