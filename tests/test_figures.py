"""Figures: their numbers against slow recomputations, on a tiny table made in this process; what is
drawn of them."""

import argparse
import dataclasses
import functools
import json
import math
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIGS, ROOT, run_command, until, write_imageset
from methods import make_missing

from core import records
from core.errors import UserError
from core.imageset import ImageSet
from scripts.pictures import bars, charts, figures, numbers, strips, style, toy
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


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Fewer dots to save, and no figure that stays open: what stands where is the same."""
    monkeypatch.setattr(style, "DOTS", 40)
    yield
    style.pyplot().close("all")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("sweep"), TABLE)


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("stages"), STAGES)


def figure(name: str, *words: object):
    return run_command(figures.main, name, "--table", "table.yaml", "--out", "figure.png", *words)


def drawn(monkeypatch) -> list:
    """The figures that are saved from here on, instead of their files."""
    found = []
    monkeypatch.setattr(figures, "save", lambda figure, path: found.append(figure))
    return found


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


def test_no_two_series_look_alike():
    families = ["gray", "jpeg", "vae", "dvae", "bdr", "jcdp", "avatar", "none", "clean"]
    looks = style.looks_of(families)
    assert len(set(looks.values())) == len(looks) == len(families)
    assert looks["none"] == (style.BAD, "s")
    assert looks["jpeg"] == style.LOOKS["jpeg"]
    assert len({colour for colour, _ in style.looks_of(families[:3]).values()}) == 3


def test_a_learner_is_not_the_undefended_network():
    """A countermeasure in training leaves the set as it is, but not the accuracy."""
    plain, own = Point("em", "none", "", [20.0], None, 22.0, None), \
        Point("em", "ueraser", "", [80.0], None, 22.0, None, learner=True)
    assert charts.untouched([own, plain], "em") == [plain]


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
        "pathlib.Path('started').touch()\n"
        "try:\n    time.sleep(60)\n"
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


def test_labels_do_not_cover_each_other():
    figure = style.sheet(3)
    axis = figure.subplots()
    axis.set(xlim=(0, 1), ylim=(0, 100))
    points = [(x, y, f"{y:g}") for x, y in ((0.5, 50), (0.51, 51), (0.52, 49), (0.999, 99.9),
                                                 (0.001, 20))]
    style.label_points(axis, points * 9, [54])
    boxes = [text.get_window_extent() for text in axis.texts]
    assert 4 <= len(boxes) < 45         # what finds no place is left out
    for i, box in enumerate(boxes):
        assert axis.bbox.x0 <= box.x0
        assert box.x1 <= axis.bbox.x1
        assert box.y1 <= axis.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
        line = axis.transData.transform((0, 54))[1]
        assert not box.y0 < line < box.y1


def test_the_figures_of_the_paper_have_their_tables():
    for name in figures.PAPER:
        table = f"{name.removesuffix('_images')}.yaml"
        assert spec.read_one(str(CONFIGS / "tables" / table)).rows


# --- what is drawn ---------------------------------------------------------------------------


SWEPT = f"""
title: swept
settings: {{data: digits}}
seeds: [SEEDS]
evaluate: {{evaluate: {CONFIGS}/learners/em60.yaml}}
rows:
  clean: {{only: [none], steps: []}}
  em: {{poison: {CONFIGS}/poisons/em.yaml}}
  lsp: {{poison: {CONFIGS}/poisons/lsp.yaml}}
columns:
  none: []
  vae:
    over: {{kld: [1, 2, 4]}}
    steps: {{purify: {CONFIGS}/purifiers/jpeg.yaml, jpeg.quality: "{{kld}}"}}
"""
HEAD = ("| poison | purifier | KLD reached (nats) | PSNR to poisoned (dB) | PSNR to clean (dB) | "
        "LPIPS to clean | accuracy (%) |")
NUMBERS = f"""
{HEAD}
|---|---|---|---|---|---|---|
| clean | none  |  |  |  |  | 99.4 |
| em | none  |  |  | 20.42 | 0.1000 | 74.4 |
| em | vae 1 | 1.00 | 19.90 | 19.30 | 0.0300 | 93.3 |
| em | vae 2 | 1.98 | 21.09 | 20.28 | 0.0200 | 92.5 |
| em | vae 4 | 3.82 | 22.21 | 20.89 | 0.0100 | 90.6 |
| lsp | none  |  |  | 19.22 | 0.1000 | 40.0 |
| lsp | vae 1 | 1.00 | 18.25 | 19.79 | 0.0300 | 98.3 |
"""
CURVES = """
| trained on | epoch 1 | epoch 2 | epoch 3 |
|---|---|---|---|
| clean x none | 22.8 | 42.5 | 61.1 |
| em x none | 65.6 | 10.0 | 44.7 |
| em x vae kld=1 | 54.2 | 16.7 | 22.2 |
"""


def several(text: str) -> str:
    """Numbers as of three seeds."""
    lines = text.splitlines()
    return "\n".join(lines[:3] + [re.sub(r"(\d+\.\d)(?= \|)", r"\1 ± 2.5 (3)", line)
                                  for line in lines[3:]])


@functools.cache
def from_numbers(name: str, text: str, seeds: str = "0") -> object:
    """The figure that is drawn from printed numbers, laid out; once, and the tests look at it."""
    Path("table.yaml").write_text(SWEPT.replace("SEEDS", seeds))
    Path("numbers.md").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        found = drawn(patch)
        outcome = figure(name, "--numbers", "numbers.md")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout == ""         # they are there already
    found[0].draw_without_rendering()
    return found[0]


CHARTS = [("fig2a", NUMBERS), ("fig2b", NUMBERS), ("guidance", NUMBERS), ("fig3", CURVES)]


@pytest.mark.parametrize(("name", "text"), CHARTS)
def test_no_line_goes_through_the_noise_of_one_seed(name, text):
    """Points alone; three seeds are joined, and their spread is drawn and said."""
    one, three = from_numbers(name, text), from_numbers(name, several(text), "0, 1, 2")
    for drawing, joined, words in ((one, False, "1 seed"), (three, True, "3 seeds: mean and")):
        series = [line for axis in drawing.axes for line in axis.lines
                  if line.get_marker() not in ("None", "", "|", "_") and len(line.get_xdata()) > 1]
        assert series
        assert {line.get_linestyle() == "-" for line in series} == {joined}
        assert words in drawing.get_suptitle()
        spread = [part for axis in drawing.axes for part in axis.collections]
        assert bool(spread) == joined


@pytest.mark.parametrize(("name", "text"), CHARTS)
def test_accuracy_is_drawn_on_the_whole_range(name, text):
    axes = [axis for axis in from_numbers(name, text).axes
            if axis.get_ylabel() == "clean test accuracy (%)"]
    assert axes
    for axis in axes:
        assert axis.get_ylim() == (0, 104)
        assert axis.get_yticks()[[0, -1]].tolist() == [0, 100]


@pytest.mark.parametrize(("name", "text"), CHARTS)
def test_series_differ_without_their_colours(name, text):
    for axis in from_numbers(name, text).axes:
        lines = [getattr(handle, "lines", [handle])[0]
                 for handle in axis.get_legend_handles_labels()[0]]
        looks = [(line.get_marker(), line.get_markerfacecolor() == "white", line.get_linestyle(),
                  str(line._unscaled_dash_pattern)) for line in lines]
        assert len(set(looks)) == len(looks) > 1


@pytest.mark.parametrize(("name", "text"), CHARTS)
def test_every_chart_fits_its_page(name, text):
    """Text of at least 9 points on a page of README width; nothing is cut or covered."""
    figure = from_numbers(name, text)
    assert figure.get_figwidth() == style.WIDTH
    boxes = []
    for axis in figure.axes:
        ticks = [tick.label1 for one in (axis.xaxis, axis.yaxis)
                 for tick in one._update_ticks() if tick.label1.get_visible()]
        for item in (axis.title, axis._left_title, axis.xaxis.label, axis.yaxis.label, *ticks,
                     *axis.texts):
            if item.get_text() and item.get_visible():
                assert item.get_fontsize() >= 9
                boxes.append((item.get_text(), item.get_window_extent()))
    for i, (text_, box) in enumerate(boxes):
        assert box.x0 >= 0, text_
        assert box.x1 <= figure.bbox.x1 + 1, text_
        for other, beside in boxes[:i]:
            assert not box.shrunk(0.9, 0.9).overlaps(beside.shrunk(0.9, 0.9)), (text_, other)


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


@pytest.mark.parametrize(("text", "words"), [
    ("", "expected a table with the columns"), ("|a|\n|-|\n|b|", "expected a table with"),
    (NUMBERS.replace("em | vae 4 |", "em | vae 5 |"), "numbers.md:8: table.yaml has no 'vae 5'"),
    (NUMBERS.replace("| lsp | none", "| lps | none"), "no 'lps'; did you mean 'lsp'?"),
    (NUMBERS.replace("| 90.6 |", "|"), "numbers.md:8: 6 cells under 7 heads"),
    (NUMBERS.replace("22.21", "infinite"), "numbers.md:8: 'infinite' is no number"),
    (NUMBERS.replace("22.21", "much"), "numbers.md:8: 'much' is no number"),
    (NUMBERS.replace("90.6", "90.6 ± x (3)"), "'x' is no number"),
    (NUMBERS.replace("90.6", "about 90"), "'about 90' is no accuracy"),
])
def test_numbers_that_are_none_are_refused(text, words):
    Path("table.yaml").write_text(SWEPT.replace("SEEDS", "0"))
    Path("numbers.md").write_text(text)
    outcome = figure("fig2a", "--numbers", "numbers.md")
    assert outcome.status == 1
    assert words in outcome.error
    assert "no-such.md: No such file" in figure("fig2a", "--numbers", "no-such.md").error


def test_an_infinite_psnr_is_read_back_and_said_to_be_missing(capsys):
    table = spec.read_one(str(CONFIGS / "tables/fig2b.yaml"))
    measured = [Point("em", "none", "", [50.0], None, 20.0, None),
                Point("em", "jpeg", "5", [60.0], math.inf, 20.0, None, kept=math.nan),
                Point("em", "jpeg", "10", [70.0], 21.0, math.inf, None, kept=0.5)]
    numbers.print_points(measured)
    Path("numbers.md").write_text(capsys.readouterr().out)
    _, first, second = numbers.read_points(Path("numbers.md"), table)
    assert (first.psnr_poisoned, second.psnr_clean) == (math.inf, math.inf)
    assert math.isnan(first.kept)
    charts.draw_trade_off(table, [first, second], "digits", argparse.Namespace(to="poisoned"))
    assert capsys.readouterr().err == \
        "note: not in this figure, for their PSNR is infinite: em x jpeg 5\n"


@pytest.mark.parametrize(("cells", "said"), [
    ("| 50.0 ± 1.0 (2) | 60.0 |", "its cells are of different numbers of seeds"),
    ("| | |", "it has no accuracy")])
def test_curves_that_are_none_are_refused(cells, said):
    Path("table.yaml").write_text(SWEPT.replace("SEEDS", "0"))
    Path("curves.md").write_text(
        f"| trained on | epoch 1 | epoch 2 |\n|-|-|-|\n| lsp x none {cells}\n")
    with pytest.raises(UserError, match=rf"curves\.md:3: {said}"):
        numbers.read_curves(Path("curves.md"), spec.read_one("table.yaml"))


def test_a_point_without_a_number_is_left_out():
    """NaN and infinity, as of a run that diverged or a set that is its own clean one."""
    table = spec.read_one(str(CONFIGS / "tables/fig2b.yaml"))
    measured = [Point("clean", "none", "", [math.nan], None, None, None),
                Point("em", "none", "", [50.0], None, math.inf, None),
                Point("em", "jpeg", "5", [math.nan], math.inf, 20.0, None),
                Point("em", "jpeg", "10", [math.nan], 21.0, 20.0, None),
                Point("em", "jpeg", "30", [70.0], 22.0, 20.0, None)]
    to = argparse.Namespace(to="poisoned")
    drawing = charts.draw_trade_off(table, measured, "digits", to)
    assert [text.get_text() for text in drawing.axes[0].texts] == ["30"]
    style.save(drawing, Path("figure.png"))


@pytest.mark.parametrize("draw", [charts.draw_rate, charts.draw_trade_off, charts.draw_sweep])
def test_a_column_that_nothing_varies_is_said_to_be_left_out(draw, capsys):
    table = spec.read_one(str(CONFIGS / "tables/fig2a.yaml"))
    measured = [Point("em", "none", "", [50.0], None, 20.0, None, 0.1),
                Point("em", "gray", "", [60.0], 22.0, 20.0, None, 0.1),
                *(Point("em", "vae", kld, [70.0], 22.0, 20.0, float(kld), 0.1)
                  for kld in ("1", "2"))]
    draw(table, measured, "digits", argparse.Namespace(to="poisoned"))
    said = capsys.readouterr().err
    assert said == "note: not in this figure, which plots what `over` varies: em x gray\n"


def test_a_chart_of_nothing_says_so():
    table = spec.read_one(str(CONFIGS / "tables/fig2a.yaml"))
    lonely = [Point("em", "none", "", [50.0], None, 20.0, None)]
    curve = {("em", "none"): np.ones((1, 2, 2))}
    for draw, found, shows in ((charts.draw_rate, lonely, "a column `vae` with `over`, behind a "),
                               (charts.draw_trade_off, lonely, "columns with `over`, behind a "),
                               (charts.draw_epochs, curve, "rows with two columns and more, one ")):
        with pytest.raises(UserError) as error:
            draw(table, found, "digits", argparse.Namespace(to="poisoned"))
        assert f"there is nothing to plot: this figure shows {shows}" in str(error.value)
        assert str(error.value).endswith("and the columns there are none, vae")


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
