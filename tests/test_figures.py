"""Figures: their numbers against slow recomputations, on a tiny table made in this process."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import evaluate
import purify
import train_vae
from core import records
from core.imageset import ImageSet
from poisons.__main__ import main as poison_main
from scripts.pictures import charts, figures, strips, toy
from scripts.pictures.style import end_labels, pyplot
from scripts.tables import plan, spec
from scripts.tables.measure import Point, clean_of, curves, kld_reached, points, sets_of
from tests.conftest import CONFIGS, ROOT, run_command, succeed, write_imageset

MAINS = {"poison": poison_main, "train_vae": train_vae.main, "purify": purify.main,
         "evaluate": evaluate.main}
TABLE = f"""
title: tiny
settings: {{data: digits, split: "first:96", threads: 1, device: cpu}}
seeds: [0, 1]
evaluate:
  evaluate: {CONFIGS}/learners/em60.yaml
  standard.width: 4
  standard.epochs: 2
  standard.batch_size: 32
rows:
  clean:
    only: [none]
    steps: []
  lsp:
    poison: {CONFIGS}/poisons/lsp.yaml
columns:
  none: []
  jpeg:
    over: {{quality: [5, 50]}}
    steps:
      purify: {CONFIGS}/purifiers/jpeg.yaml
      jpeg.quality: "{{quality}}"
  vae:
    over: {{kld: [0.5, 3]}}
    steps:
      - train_vae: {CONFIGS}/purifiers/vae.yaml
        vae.train.kld_target: "{{kld}}"
        vae.train.epochs: 2
        vae.train.width: 8
        vae.train.latent_channels: 16
      - purify: {CONFIGS}/purifiers/vae.yaml
"""
STAGES = f"""
title: tiny stages
settings: {{data: digits, split: "first:96", threads: 1, device: cpu}}
evaluate:
  evaluate: {CONFIGS}/learners/em60.yaml
  standard.width: 4
  standard.epochs: 1
  standard.batch_size: 32
  standard.test_every: 0
rows:
  lsp:
    poison: {CONFIGS}/poisons/lsp.yaml
columns:
  none: []
  x1:
    - train_vae: {CONFIGS}/purifiers/dvae.yaml
      dvae.train.epochs: 2
      dvae.train.width: 8
      dvae.train.latent_channels: 16
    - purify: {CONFIGS}/purifiers/dvae.yaml
      dvae.stages: 1
      dvae.save_perturbation: true
  x3:
    - train_vae: {CONFIGS}/purifiers/dvae.yaml
      dvae.train.epochs: 2
      dvae.train.width: 8
      dvae.train.latent_channels: 16
    - purify: {CONFIGS}/purifiers/dvae.yaml
"""


def made(folder: Path, text: str) -> Path:
    """A folder with table.yaml and, under runs/, all its artefacts."""
    (folder / "table.yaml").write_text(text)
    before = Path.cwd()
    os.chdir(folder)
    try:
        for artefact in plan.wanted(planned(), {}):
            succeed(MAINS[artefact.step.command], *artefact.arguments)
    finally:
        os.chdir(before)
    return folder


def planned() -> list[plan.Cell]:
    return list(plan.Planner(spec.read_one("table.yaml")).cells())


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("sweep"), TABLE)


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("stages"), STAGES)


def figure(name: str, *words: object):
    return run_command(figures.main, name, "--table", "table.yaml", "--out", "figure.png", *words)


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


# --- numbers ---------------------------------------------------------------------------------


def test_points_are_what_the_folders_hold(sweep, monkeypatch, digits):
    monkeypatch.chdir(sweep)
    found = {(p.row, p.family, p.value): p for p in points(spec.read_one("table.yaml"), planned())}
    assert list(found) == [("clean", "none", ""), ("lsp", "none", ""), ("lsp", "jpeg", "5"),
                           ("lsp", "jpeg", "50"), ("lsp", "vae", "0.5"), ("lsp", "vae", "3")]
    clean = digits.images[:96] / 255.0

    def psnr(a: np.ndarray, b: np.ndarray) -> float:
        return 10 * math.log10(1 / np.mean((a - b) ** 2))

    by_cell: dict = {}
    for cell in planned():
        by_cell.setdefault((cell.row.name, cell.column.name), []).append(cell)
    for (row, family, value), point in found.items():
        [key] = [k for k in by_cell if k[0] == row and k[1].startswith(family)
                 and (not value or k[1].endswith(f"={value}"))]
        accuracies, to_clean, to_poisoned, klds = [], [], [], []
        for cell in by_cell[key]:
            record = json.loads((cell.record.out / "record.json").read_text())
            accuracies.append(100 * record["accuracy_last"])
            if row == "lsp":
                trained = np.load(Path(record_data(cell)) / "images.npy") / 255.0
                to_clean.append(psnr(trained, clean))
                if family != "none":
                    given = np.load(sets_of(cell.record)[0].out / "images.npy") / 255.0
                    to_poisoned.append(psnr(trained, given))
            if family == "vae":
                [weights] = [n.out for n in cell.record.needs[0].needs
                             if n.job.kind == "checkpoints"]
                lines = (weights / "log.jsonl").read_text().splitlines()
                klds.append(json.loads(lines[-1])["kld"])
        assert point.accuracies == accuracies
        assert len(accuracies) == 2
        for measured, slow in ((point.psnr_clean, to_clean), (point.kld, klds),
                               (point.psnr_poisoned, to_poisoned)):
            assert measured == (pytest.approx(np.mean(slow), abs=1e-9) if slow else None)
    assert found["lsp", "jpeg", "5"].psnr_poisoned < found["lsp", "jpeg", "50"].psnr_poisoned
    assert found["lsp", "vae", "0.5"].kld < found["lsp", "vae", "3"].kld


def record_data(cell: plan.Cell) -> str:
    """The set that a record's own line names."""
    return next(word for word in cell.record.arguments if word.startswith("data=")).split("=")[1]


def test_a_kld_that_was_never_there(few_path, tmp_path):
    """An artefact whose log has none, such as an auto-encoder's checkpoint."""
    folder = write_imageset(tmp_path / "made", np.load(few_path / "images.npy"),
                            np.load(few_path / "labels.npy"))
    (folder / "log.jsonl").write_text('{"loop": "stage1", "at": 0, "mse": 0.1}\n')
    assert kld_reached(folder) is None


def test_curves_are_the_records(sweep, monkeypatch):
    monkeypatch.chdir(sweep)
    found = curves(planned())
    curve = found["lsp", "vae kld=3"]
    assert curve.shape == (2, 2, 2)                     # seeds, epochs, (epoch, accuracy)
    cells = [c for c in planned() if (c.row.name, c.column.name) == ("lsp", "vae kld=3")]
    for seed, cell in zip(curve, cells, strict=True):
        record = records.load(cell.record.out)
        np.testing.assert_allclose(seed[:, 0], [1, 2])
        np.testing.assert_allclose(seed[:, 1], [100 * accuracy for _, accuracy in record["curve"]])
        assert seed[-1, 1] == pytest.approx(100 * record["accuracy_last"])


def test_a_line_is_in_order_and_leaves_out_what_has_no_place(sweep, monkeypatch):
    monkeypatch.chdir(sweep)
    found = points(spec.read_one("table.yaml"), planned())[::-1]
    line = charts.swept(found, "lsp", "jpeg", "psnr_poisoned")
    assert [point.value for point in line] == ["5", "50"]
    assert charts.swept(found, "lsp", "none", "psnr_clean") == []
    endless = [dataclasses.replace(line[0], psnr_poisoned=math.inf), line[1]]
    assert charts.swept(endless, "lsp", "jpeg", "psnr_poisoned") == [line[1]]


def test_strips_and_both_scales(stages, monkeypatch, digits):
    monkeypatch.chdir(stages)
    found = strips.strips_of(planned(), "data", slice(3, 6))
    assert [strip.label.splitlines()[0] for strip in found] == [
        "clean", "poisoned", "p_hat of stage 1", "x1", "x3"]
    clean, x0, p_hat, x1, _ = found
    np.testing.assert_array_equal(clean.images, digits.images[3:6] / 255)
    np.testing.assert_allclose(x0.residual, x0.images - clean.images)
    # x1 = clip(x0 - p_hat), rounded: p_hat is saved as float16
    np.testing.assert_allclose(x1.images, np.clip(x0.images - p_hat.residual, 0, 1), atol=0.004)
    for strip, cell in ((x0, planned()[0]), (x1, planned()[1])):
        accuracy = records.load(cell.record.out)["accuracy_last"]
        assert strip.label.endswith(f"\n{100 * accuracy:.1f} %")

    gain, common = strips.common_scale(found)
    values = np.concatenate([strip.residual.ravel() for strip in found[1:]])
    assert np.mean(np.abs(gain * values) > 0.5) == pytest.approx(0.02, abs=0.002)
    gains, own = strips.own_scales(found)
    for strip, shared, alone, gain_of in zip(found[1:], common, own, gains, strict=True):
        for i, residual in enumerate(strip.residual):
            np.testing.assert_allclose(shared[i], np.clip(0.5 + gain * residual, 0, 1))
            assert (alone[i].min(), alone[i].max()) == (0, pytest.approx(1))
            assert gain_of[i] == pytest.approx(1 / (residual.max() - residual.min()))
            np.testing.assert_allclose(alone[i], (residual - residual.min()) * gain_of[i])


def test_the_clean_set_of_a_purified_one(sweep, monkeypatch, digits):
    monkeypatch.chdir(sweep)
    purified = ImageSet.load(sets_of(planned()[-1].record)[-1].out)
    np.testing.assert_array_equal(clean_of(purified, "data").images, digits.images[:96])


# --- commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fig2a", "fig2b", "fig3", "fig5"])
def test_a_figure_prints_its_numbers_and_is_drawn(sweep, monkeypatch, name):
    monkeypatch.chdir(sweep)
    outcome = figure(name)
    assert outcome.status == 0, outcome.stderr
    assert is_png(Path("figure.png"))
    lines = outcome.stdout.splitlines()
    assert len(lines) == 2 + 6                          # a head and the six cells
    if name != "fig3":
        point = points(spec.read_one("table.yaml"), planned())[-1]
        assert lines[-1] == (f"| lsp | vae 3 | {point.kld:.2f} | {point.psnr_poisoned:.2f} | "
                             f"{point.psnr_clean:.2f} | {records.spread(point.accuracies)} |")


def test_psnr_to_the_clean_image(sweep, monkeypatch):
    monkeypatch.chdir(sweep)
    assert figure("fig2b", "--to", "clean").status == 0


def test_fig4_is_drawn(stages, monkeypatch):
    monkeypatch.chdir(stages)
    outcome = figure("fig4", "--images", 2, "--first", 5)
    assert outcome.status == 0, outcome.stderr
    assert is_png(Path("figure.png"))
    assert len(outcome.stdout.splitlines()) == 2 + 4    # all strips but clean
    assert "no such rows" in figure("fig4", "--first", 96).error


def test_a_sweep_is_drawn(sweep, monkeypatch):
    """PSNR and LPIPS to the clean set, of a table whose columns vary one thing."""
    monkeypatch.chdir(sweep)
    Path("one.yaml").write_text(TABLE[: TABLE.index("  vae:\n")])
    outcome = figure("guidance", "--table", "one.yaml")
    assert outcome.status == 0, outcome.stderr
    assert is_png(Path("figure.png"))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]]
             for line in outcome.stdout.splitlines()]
    assert lines[0] == ["poison", "purifier", "PSNR to poisoned (dB)", "PSNR to clean (dB)",
                        "LPIPS to clean", "accuracy (%)"]
    lpips = {line[1]: float(line[4]) for line in lines[2:] if line[0] == "lsp"}
    assert 0 < lpips["jpeg 5"] < lpips["jpeg 50"] < lpips["none"]      # it takes the poison out
    assert "plots one variable of `over` that has several values, not kld, quality" in \
        figure("guidance").error


def test_a_sweep_starts_at_nought():
    """Unguided purification, strength 0, is a point of the line; what is unknown is none."""
    points = [Point("em", "jcdp", value, [90.0], 20.0, 20.0, None) for value in ("0.3", "0", "1")]
    line = charts.swept([*points, Point("em", "none", "", [10.0], None, 20.0, None)], "em", "jcdp",
                        "strength")
    assert [point.strength for point in line] == [0.0, 0.3, 1.0]
    assert charts.swept(points, "em", "jcdp", "kld") == []


def test_curves_of_the_last_epoch_alone_are_refused(stages, monkeypatch):
    monkeypatch.chdir(stages)
    assert "evaluate with standard.test_every: 1" in figure("fig3").error


@pytest.mark.parametrize(("name", "sets"), [("fig2a", " --sets"), ("fig3", "")])
def test_missing_cells_are_counted_and_the_line_that_makes_them_is_named(name, sets):
    Path("table.yaml").write_text(TABLE)
    outcome = figure(name, "threads=1")
    assert outcome.status == 1
    assert outcome.error.startswith(f"{name}: 12 of 12 cells of table.yaml lack their record")
    assert outcome.error.endswith(
        f"python scripts/run_table.py table.yaml{sets} threads=1 makes them")
    assert not Path("figure.png").exists()


def test_a_record_without_its_sets_is_enough_for_curves_only(sweep, monkeypatch, tmp_path):
    monkeypatch.chdir(sweep)
    last = sets_of(planned()[-1].record)[-1].out
    aside = tmp_path / "aside"
    last.rename(aside)
    try:
        assert figure("fig3").status == 0
        assert figure("fig2a").error.startswith("fig2a: 1 of 12 cells of table.yaml lack")
    finally:
        aside.rename(last)


def test_quick_makes_what_is_missing_with_the_same_words(monkeypatch):
    Path("table.yaml").write_text(TABLE)
    called = []
    monkeypatch.setattr(figures, "run_table", called.append)
    monkeypatch.setattr(spec, "QUICK", CONFIGS / "tables/quick.yaml")
    outcome = figure("fig2b", "threads=1", "--quick")
    assert "cells of table.yaml lack" in outcome.error  # nobody made them
    assert called == [["table.yaml", "--quick", "--sets", "threads=1"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_the_table_save(tmp_path, number):
    """The figure is interrupted while a stand-in for run_table.py works."""
    script = tmp_path / "run_table.py"
    by_hand = "import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
    script.write_text(by_hand + "import pathlib, sys, time\n"
                      "pathlib.Path('started').touch()\n"
                      "try:\n    time.sleep(60)\n"
                      "except KeyboardInterrupt:\n    time.sleep(1)\n"
                      "    pathlib.Path('saved').write_text(' '.join(sys.argv[1:]))\n")
    code = ("import sys; from scripts.pictures import figures; figures.__file__ = sys.argv[1]; "
                      "figures.run_table(['a', 'b'])")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "pictures/figures.py")],
                               env={**os.environ, "PYTHONPATH": str(ROOT)},
                               stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not Path("started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert Path("saved").read_text() == "a b"


@pytest.mark.parametrize("words", [
    ["--images", "0"], ["--images", "-3"], ["--images", str(10**11)], ["--first", "-5"],
    ["--first", "100000"]])
def test_a_grid_is_of_rows_that_are_there_and_fit(few_path, tmp_path, words):
    outcome = run_command(figures.main, "grid", few_path, "--out", tmp_path / "grid.png", *words)
    assert outcome.status == 1
    assert "--first" in outcome.stderr
    assert not (tmp_path / "grid.png").exists()


def test_unknown_words_are_a_usage_error():
    Path("table.yaml").write_text(TABLE)
    assert figure("fig2a", "--fast").status == 2
    assert "'fast' is not key=value" in figure("fig2a", "fast").error


def test_labels_do_not_cover_each_other():
    plot, axis = pyplot().subplots(figsize=(4, 4))
    axis.set_ylim(0, 100)
    end_labels(axis, 1, [(50, "b", "k"), (49, "a", "k"), (90, "c", "k")])
    places = [text.xy[1] for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == ["a", "b", "c"]
    assert places[0] == 49
    assert places[1] > 52
    assert places[2] == 90
    pyplot().close(plot)


def test_the_figures_of_the_paper_have_their_tables():
    for name in figures.PAPER:
        table = f"{name.removesuffix('_images')}.yaml"
        assert spec.read_one(str(CONFIGS / "tables" / table)).rows


# --- toy -------------------------------------------------------------------------------------


def test_toy_1_formula_and_simulation():
    published = {(0, 1): 0.9772, (0.1, 0.1): 0.5707, (0.3, 0.3): 0.6979, (0.3, 0.1): 0.5238,
                 (0.3, 0.03): 0.5021, (1, 0.1): 0.5071}
    assert tuple(published) == toy.PAIRS
    for (a, s), expected in published.items():
        assert toy.formula(a, s) == pytest.approx(expected, abs=5e-5)
        assert toy.simulated_accuracy(a, s) == pytest.approx(expected, abs=0.005)


def test_toy_2_the_poison_goes_when_its_nats_are_too_dear():
    rates = {0.01: 30.2, 0.05: 20.0, 0.15: 13.9, 0.25: 11.2, 0.5: 7.8, 1: 4.3}
    for beta in toy.BETAS:
        point = toy.through_vae(beta, 0.3, 0.1)
        assert point.accuracy < 0.55 if beta <= 0.15 else point.accuracy > 0.96
        assert point.rate == (pytest.approx(rates[beta], abs=0.1) if beta else math.inf)
        if beta == 0.25:
            assert point.residual_poison == pytest.approx(0.057, abs=0.003)
            assert point.residual_image == pytest.approx(0.005, abs=0.002)
    assert toy.poison_variance(0.3, 0.1) == pytest.approx(0.093, abs=0.0005)


def test_toy_3_entropies():
    published = {0.2: (0.336, 0.527), 0.1: (-0.194, 0.689), 0.05: (-0.884, 0.693)}
    for sigma, expected in published.items():
        assert toy.mixture_entropy(0.3, sigma) == pytest.approx(expected, abs=5e-4)
    # far apart: the entropy of one part plus log 2
    assert toy.mixture_entropy(9, 1)[0] == pytest.approx(
        math.log(2 * math.pi * math.e) / 2 + math.log(2))


@pytest.mark.slow
def test_the_toy_prints_and_draws():
    outcome = run_command(toy.main, "--out", "toy.png")
    assert outcome.status == 0, outcome.stderr
    assert is_png(Path("toy.png"))
    assert "| formula | 0.977 | 0.571 | 0.698 | 0.524 | 0.502 | 0.507 |" in outcome.stdout
