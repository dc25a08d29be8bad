"""Figures: their numbers against slow recomputations, on a tiny table made in this process; what is
drawn of them."""

import dataclasses
import json
import math
import os
import signal
import threading
from pathlib import Path

import drawing
import numpy as np
import pytest
from conftest import CONFIGS, ROOT, run_command, until, write_imageset
from drawing import drawn, figure
from methods import make_missing

from core import records
from core.errors import UserError
from core.imageset import ImageSet
from scripts.pictures import bars, charts, figures, numbers, strips, style
from scripts.tables import measure, plan, spec, wording
from scripts.tables.measure import Point, clean_of, curves, kld_reached, points, sets_of
from scripts.tables.table import Choice

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

coarse = drawing.coarse                   # for every test here


def made(folder: Path, text: str) -> Path:
    """A folder with table.yaml and, under runs/, all its artefacts."""
    (folder / "table.yaml").write_text(text)
    before = Path.cwd()
    os.chdir(folder)
    try:
        make_missing(planned())
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


@pytest.mark.parametrize(("figure", "table", "out"), [
    ("fig5", "configs/tables/fig5.yaml", "fig5-digits"), ("fig5", "mine.yaml", "fig5-mine-digits"),
    ("le_fig3_images", "configs/tables/le_fig3.yaml", "le_fig3_images-digits"),
])
def test_a_figure_goes_to_runs_by_its_name_and_that_of_another_table(figure, table, out):
    assert figures.default_out(figure, table, "digits") == f"runs/figures/{out}.png"


def test_a_kld_that_was_never_there(few_path, tmp_path):
    """An artefact whose log has none, such as an auto-encoder's checkpoint; one without a log, as
    an imported one."""
    folder = write_imageset(tmp_path / "made", np.load(few_path / "images.npy"),
                            np.load(few_path / "labels.npy"))
    (folder / "log.jsonl").write_text('{"loop": "stage1", "at": 0, "mse": 0.1}\n')
    assert kld_reached(folder) is None
    imported = ROOT / "results/small/prior"
    assert not (imported / "log.jsonl").exists()
    assert kld_reached(imported) is None


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


def test_strips_of_a_table(stages, monkeypatch, digits):
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


def test_the_clean_set_of_a_purified_one(sweep, monkeypatch, digits):
    monkeypatch.chdir(sweep)
    purified = ImageSet.load(sets_of(planned()[-1].record)[-1].out)
    np.testing.assert_array_equal(clean_of(purified, "data").images, digits.images[:96])


PARTS = """
columns:
  first:
    purify: {jpeg}
    split: first:40
  last:
    purify: {jpeg}
    split: last:40
""".format(jpeg=CONFIGS / "purifiers/jpeg.yaml")


def test_parts_of_a_poisoned_set_are_held_against_their_own_rows(tmp_path, monkeypatch, digits):
    text = STAGES[:STAGES.index("columns:")].replace('split: "first:96", ', "") + PARTS.lstrip()
    monkeypatch.chdir(made(tmp_path, text))
    table = spec.read_one("table.yaml")
    poisoned = ImageSet.load(sets_of(planned()[0].record)[0].out).images.astype(float)
    for point, rows in zip(points(table, planned()), (slice(40), slice(1397, 1437)), strict=True):
        jpeg = ImageSet.load(sets_of(next(cell for cell in planned() if cell.column.name ==
                                          point.family).record)[-1].out).images
        error = np.square(poisoned[rows] - jpeg).mean((1, 2, 3))
        assert point.psnr_poisoned == pytest.approx(
            (10 * np.log10(255**2 / error)).mean(), abs=0.5)
        clean = digits.images[rows].astype(float)
        delta, left = poisoned[rows] - clean, jpeg - clean
        shares = (left * delta).sum((1, 2, 3)) / np.square(delta).sum((1, 2, 3))
        assert point.kept == pytest.approx(shares.mean(), abs=1e-4)
    with pytest.raises(UserError, match=r"last has other images than first \(split=last:40\)"):
        strips.strips_of(planned(), "data", slice(0, 2))


def test_a_purified_clean_set_is_called_by_its_purifier(tmp_path, monkeypatch):
    text = STAGES[:STAGES.index("rows:")] + "rows: {clean: []}\n" + PARTS.lstrip()
    monkeypatch.chdir(made(tmp_path, text))
    first = [cell for cell in planned() if cell.column.name == "first"]
    _, strip = strips.strips_of(first, "data", slice(0, 2))
    assert strip.label.splitlines()[0] == "first"


def test_a_row_or_column_without_a_set_has_no_strips(stages, monkeypatch):
    """It is trained on the clean images themselves."""
    monkeypatch.chdir(stages)
    Path("clean.yaml").write_text(STAGES.replace("rows:\n", "rows:\n  clean: []\n"))
    table = spec.read_one("clean.yaml", Choice(columns=("none",)))
    cells = plan.cells_of([table])
    make_missing(cells)
    assert list(strips.stages(table, cells, slice(0, 2))) == ["lsp"]
    lonely = spec.read_one("clean.yaml", Choice(rows=("clean",), columns=("none",)))
    with pytest.raises(UserError, match="there is nothing to show"):
        strips.stages(lonely, plan.cells_of([lonely]), slice(0, 2))


def test_curves_of_other_epochs(monkeypatch, capsys, tmp_path):
    """Columns may be tested after other epochs, and come back as printed; seeds may not."""
    table = spec.read_one("fig3")
    one, other = ((row.name, column.name) for row, column in zip(table.rows[:2], table.columns[:2],
                                                              strict=True))
    found = {one: np.array([[[1, 10.0], [2, 20.0]]]), other: np.array([[[2, 30.0], [4, 40.0]]])}
    numbers.print_curves(found)
    path = tmp_path / "numbers.md"
    path.write_text(capsys.readouterr().out)
    assert path.read_text().splitlines()[0] == "| trained on | epoch 1 | epoch 2 | epoch 4 |"
    again = numbers.read_curves(path, table)
    assert {key: curve.tolist() for key, curve in again.items()} == {
        key: curve.tolist() for key, curve in found.items()}
    group = [(None, {"curve": [[1, 0.1], [2, 0.2]]}), (None, {"curve": [[1, 0.1], [3, 0.2]]})]
    monkeypatch.setattr(measure, "records_of", lambda cells: {("lsp", "none"): group})
    with pytest.raises(UserError, match="lsp x none: its seeds were tested after different epochs"):
        measure.curves([])


def test_numbers_come_back_as_they_were_printed(sweep, monkeypatch, capsys):
    monkeypatch.chdir(sweep)
    table = spec.read_one("table.yaml")
    measured = points(table, planned())
    numbers.print_points(measured)
    Path("points.md").write_text("# Title\n\n" + capsys.readouterr().out)
    for point, read in zip(measured, numbers.read_points(Path("points.md"), table), strict=True):
        assert (read.row, read.family, read.value) == (point.row, point.family, point.value)
        assert wording.spread(read.accuracies) == wording.spread(point.accuracies)
        for key in ("psnr_poisoned", "psnr_clean", "kld"):
            there = getattr(point, key)
            assert getattr(read, key) == (None if there is None else pytest.approx(there, abs=.005))
    found = curves(planned())
    numbers.print_curves(found)
    Path("curves.md").write_text(capsys.readouterr().out)
    for key, curve in numbers.read_curves(Path("curves.md"), table).items():
        np.testing.assert_allclose(curve.mean(0), found[key].mean(0), atol=0.05)
        np.testing.assert_allclose(curve.std(0, ddof=1), found[key].std(0, ddof=1), atol=0.05)


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
                             f"{point.psnr_clean:.2f} | {point.kept:.2f} | "
                             f"{wording.spread(point.accuracies)} |")


def test_psnr_to_the_clean_image(sweep, monkeypatch):
    monkeypatch.chdir(sweep)
    [saved] = [drawn(monkeypatch)]
    assert figure("fig2b", "--to", "clean").status == 0
    assert saved[0].axes[-1].get_xlabel() == "PSNR to the clean image (dB)"


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
                        "LPIPS to clean", "kept of the poison", "accuracy (%)"]
    lpips = {line[1]: float(line[4]) for line in lines[2:] if line[0] == "lsp"}
    assert 0 < lpips["jpeg 5"] < lpips["jpeg 50"] < lpips["none"]      # it takes the poison out
    kept = {line[1]: line[5] for line in lines[2:] if line[0] == "lsp"}
    assert kept.pop("none") == ""
    assert 0 < float(kept["jpeg 5"]) < float(kept["jpeg 50"]) < 1
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
    monkeypatch.setattr(spec, "TABLES", CONFIGS / "tables")
    outcome = figure("fig2b", "threads=1", "--quick")
    assert "cells of table.yaml lack" in outcome.error  # nobody made them
    assert called == [["table.yaml", "--quick", "--sets", "threads=1"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_lets_the_table_save(tmp_path, monkeypatch, number):
    """The figure is interrupted while a stand-in for run_table.py works."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/run_table.py").write_text(
        "import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "import pathlib, sys, time\n"
        "try:\n    pathlib.Path('started').touch()\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.2)\n"
        "    pathlib.Path('saved').write_text(' '.join(sys.argv[1:]))\n")
    monkeypatch.setattr(figures, "ROOT", tmp_path)

    def interrupt() -> None:
        until(Path("started").exists)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        figures.run_table(["a", "b"])
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


def test_the_figures_of_the_paper_have_their_tables():
    for name in figures.PAPER:
        table = f"{name.removesuffix('_images')}.yaml"
        assert spec.read_one(str(CONFIGS / "tables" / table)).rows


# --- quickstart ------------------------------------------------------------------------------


def test_the_quickstart_shows_every_seed(monkeypatch):
    found = {"clean": [99.0, 98.0, 100.0], "LSP": [20.0, 30.0, 10.0], "LSP, D-VAE": [97.0]}
    axis = style.sheet(2).subplots()
    bars.show_bars(axis, found)
    assert [bar.get_width() for bar in axis.patches] == [97, 20, 99]
    assert [len(dots.get_offsets()) for dots in axis.collections] == [3, 3]
    assert {text.get_text() for text in axis.texts} == {"99.0 ± 1.0 (3)", "20.0 ± 10.0 (3)", "97.0",
                                                        "chance"}
    assert axis.get_xlim() == (0, 100)
    assert "bar: mean, dot: a seed" in axis.get_xlabel()


def test_the_quickstart_prints_means_and_spreads(capsys):
    def record(last: float, own: float) -> dict:
        return {"accuracy_last": last, "train_accuracy": own}

    bars.print_quickstart({"clean": [record(0.99, 0.995)],
                           "LSP": [record(0.2, 1), record(0.3, 0.9), record(0.1, 0.98)]})
    assert capsys.readouterr().out.splitlines()[:5] == [
        "| trained on | clean test accuracy (%) | on its own training set (%) |", "|---|---|---|",
        "| clean | 99.0 | 99.5 |", "| LSP | 20.0 ± 10.0 (3) | 96.0 |", ""]


def test_the_picture_of_the_quickstart(tmp_path, few, few_path):
    """Its images at one gain, over the bars; rows 0 to 7 of the first seed."""
    for name, images in (("lsp", few.images // 2 + 64), ("dvae", few.images // 4)):
        write_imageset(tmp_path / "seed1" / name, images, few.labels)
    found = {name: [{"accuracy_last": 0.5}] for name in ("clean", "LSP", "LSP, D-VAE")}
    figure = bars.draw_quickstart(tmp_path, found)
    tiles, accuracies = figure.axes
    assert [label.get_text() for label in tiles.get_yticklabels()] == [
        "clean", "LSP", "− clean", "LSP, D-VAE", "− clean"]
    np.testing.assert_array_equal(tiles.images[0].get_array()[17:33, 17:33],
                                  few.images[1] // 2 + 64)
    assert tiles.get_title(loc="left") == strips.gain_text(1)
    assert len(accuracies.patches) == 3
    assert "1 seed" in figure.get_suptitle()


def test_a_quickstart_without_records_is_refused(tmp_path):
    outcome = run_command(figures.main, "quickstart", tmp_path)
    assert outcome.error.endswith("no records; run scripts/quickstart.sh first")


# --- committed pictures ----------------------------------------------------------------------


def test_every_committed_picture_has_its_line_beside_it():
    """The README of its folder names it, and a text names its folder."""
    pages = {path: path.read_text() for path in (ROOT / "docs").rglob("*.md")}
    for picture in sorted((ROOT / "results").rglob("*.png")):
        beside = picture.parent / "README.md"
        assert beside.exists(), beside
        assert f"`{picture.name}`" in beside.read_text(), f"{beside}: {picture.name}"
        place = str(picture.parent.relative_to(ROOT))
        assert any(place in page for page in (*pages.values(), (ROOT / "README.md").read_text()))
