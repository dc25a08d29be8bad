"""Printed tables: marks, gaps, seconds, published numbers, several data sets."""

import csv
import dataclasses
import io
import json
import math
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import tables
import torch
from conftest import ROOT, as_floats, as_set, run_command
from methods import make_missing
from tables import beside, planned

from core import imageset
from core.distance import build_lpips
from core.imageset import ImageSet
from core.methods import list_methods
from scripts.tables import entries, measure, noted, plan, published, render, spec
from scripts.tables.measure import share_kept
from scripts.tables.table import FORMS

# fixtures
project, here, tiny, several = tables.project, tables.here, tables.tiny, tables.several


def test_several_data_sets_print_as_one_table(several):
    tables = spec.read(str(several))
    cells = plan.cells_of(tables)
    found = [entry for table in tables for entry in entries.collect(table, cells)]
    head, lines = render.long(found)
    assert head == ("data", "poison", "defence", "accuracy (%)")
    assert [line[:3] for line in lines] == [["digits", "lsp", "none"],
                                            ["digits", "lsp", "photos prior"],
                                            ["photos", "lsp", "none"],
                                            ["photos", "lsp", "digits prior"]]
    head, lines = render.wide(found)
    assert head == ("data", "poison", "none", "photos prior", "digits prior")
    assert [line[:2] for line in lines] == [["digits", "lsp"], ["photos", "lsp"]]


@pytest.mark.parametrize("path", sorted((ROOT / "configs/tables").glob("*.yaml")),
                         ids=lambda path: path.stem)
def test_what_a_column_is_reported_as_is_published(path):
    """A mistyped `reported:` would leave the numbers out without a word."""
    if path.stem in FORMS:
        pytest.skip("not a table")
    known = {name for fact in published.read()
             for name in (fact["attack"], published.filed_under(fact))}
    for table in spec.read(str(path)):
        for line in (*table.rows, *table.columns):
            for name in line.reported:
                assert name == line.family or name in known, name


def test_the_table_prints_what_the_records_say(tiny):
    make_missing(planned(tiny))
    accuracies: dict = {}
    for cell in planned(tiny):
        record = json.loads((cell.record.out / "record.json").read_text())
        accuracies.setdefault((cell.row.name, cell.column.name), []).append(
            100 * record["accuracy_last"])

    outcome = run_command(render.main, tiny, "--format", "csv")
    lines = [line.split(",") for line in outcome.stdout.splitlines()]
    assert lines[0][:5] == ["poison", "defence", "accuracy (%)", "sd", "runs"]
    shown = {(line[0], line[1]): line for line in lines[1:]}
    for key, values in accuracies.items():
        assert shown[key][2:5] == [f"{statistics.mean(values):.1f}",
                                   f"{statistics.stdev(values):.1f}", "2"]
    best = max(("jpeg quality=10", "jpeg quality=50"),
               key=lambda name: statistics.mean(accuracies["lsp", name]))
    oracle = shown["lsp", "iss_best"]
    assert oracle[2:5] == shown["lsp", best][2:5]
    assert f"† best of these: {best}" in oracle
    # LE, Table 3: 15.0 for undefended LSP on CIFAR-10
    reported = lines[0].index("reported")
    assert shown["lsp", "none"][reported].startswith("15.0 LE ")
    gap = float(shown["lsp", "none"][lines[0].index("gap")])
    assert gap == pytest.approx(statistics.mean(accuracies["lsp", "none"]) - 15.0, abs=0.051)

    for words in (["--format", "latex"], ["--wide"], []):
        text = run_command(render.main, tiny, *words).stdout
        assert f"{statistics.mean(accuracies['clean', 'none']):.1f}" in text
    assert text.splitlines()[1].count("---") == text.splitlines()[0].count("|") - 1

    [purified] = next(c.record for c in planned(tiny) if c.column.name == best).needs
    [poison] = purified.needs
    errors = (ImageSet.load(purified.out).images / 255.0 - ImageSet.load(poison.out).images / 255.0)
    psnr = -10 * math.log10((errors**2).mean())         # of the whole set
    outcome = run_command(render.main, tiny, "--distances")
    assert "cells" not in outcome.stderr
    text = outcome.stdout
    [line] = [line for line in text.splitlines() if f"jpeg {best[-2:]} |" in line]
    assert line.split(" | ")[2] == f"{psnr:.2f}"
    head, *lines = csv.reader(io.StringIO(
        run_command(render.main, tiny, "--distances", "--format", "csv").stdout))
    [line] = [line for line in lines if line[1] == f"jpeg {best[-2:]}"]
    assert line[head.index("PSNR to poisoned (dB)")] == f"{psnr:.2f}"
    assert line[head.index("runs")] == "2"

    shutil.rmtree(purified.out)             # of one of the cells
    outcome = run_command(render.main, tiny, "--distances")
    assert "note: 2 of 8 cells have not all their sets here. python " in outcome.stderr
    assert f"{tiny} --sets makes them" in outcome.stderr


def test_what_is_kept_of_a_poison_is_its_share_in_what_is_left(monkeypatch):
    """Three tenths of each image's poison, and something beside that lies across it; images that
    are not poisoned do not count."""
    clean = np.full((6, 4, 4, 3), 100, np.uint8)
    delta = np.zeros((6, 4, 4, 3), int)
    delta[:4, ::2] = np.array([10, -10, 20, 30]).reshape(4, 1, 1, 1)
    across = np.zeros_like(delta)
    across[:, 1::2] = 50                                # where no poison is
    sets = [as_set((clean + part).astype(np.uint8), np.arange(6) % 2, classes=2)
            for part in (0, delta, 3 * delta // 10 + across)]
    monkeypatch.setattr(imageset, "SLICE_ROWS", 4)
    assert share_kept(*sets) == pytest.approx(0.3)
    assert math.isnan(share_kept(sets[0], sets[0], sets[2]))


def test_lpips_of_a_table_is_the_mean_over_its_first_images(monkeypatch):
    """In the network's range, -1 to 1; images below 32 pixels a side are enlarged."""
    monkeypatch.setattr(measure, "LPIPS_ROWS", 5)
    monkeypatch.setattr(imageset, "SLICE_ROWS", 2)
    random = np.random.default_rng(0)
    for side in (32, 16):
        sets = [as_set(random.integers(0, 256, (7, side, side, 3), np.uint8), np.arange(7) % 2,
                       classes=2) for _ in range(2)]
        distance = build_lpips("squeeze", None, 32 if side == 16 else None, (side, side))
        a, b = (2 * as_floats(one.images[:5]) - 1 for one in sets)
        with torch.no_grad():
            expected = distance(a, b).mean().item()
        assert measure.mean_lpips(*sets) == pytest.approx(expected, rel=1e-5)


def found(row: str, column: str, *accuracies: float) -> entries.Entry:
    return entries.Entry("", row, column, list(accuracies), (None, None, None), "", None, [])


def test_the_gap_of_a_linear_probe_is_of_its_best_epoch_as_the_published_number():
    last = dataclasses.replace(found("cp_s", "none", 40.0, 42.0), reported={
        "accuracy": 44.9, "source": "CP", "table": "README"})
    assert last.gap == pytest.approx(41 - 44.9)
    probed = [{"accuracy_best": 0.45, "probe": {"data": "clean"}},
              {"accuracy_best": 0.47, "probe": {"data": "clean"}}]
    best = dataclasses.replace(last, best=entries.probes_best(probed))
    assert best.mean == 41
    assert best.gap == pytest.approx(46 - 44.9)
    assert best.oracle == "gap of best epoch: 46.0 ± 1.4 (2)"
    plain = {"accuracy_best": 0.9}
    assert entries.probes_best([plain, {**plain, "probe": None}]) == ()
    assert last.oracle == dataclasses.replace(best, reported=None).oracle == ""


def test_a_derived_column_has_numbers_of_its_network_alone(here):
    """Published ones are ResNet-18's; of another network none is beside the best of its cells."""
    for words, reported in (((), True), (("standard.architecture=resnet50",), False)):
        table = spec.read_one("le_table3", overrides=("data=cifar10", *words))
        found = entries.collect(table, plan.cells_of([table]), lambda cell: None)
        [best] = [e for e in found if (e.row, e.column) == ("em", "iss_best")]
        assert bool(best.reported or best.also) is reported


def test_distances_of_no_set_say_what_makes_them(here):
    outcome = run_command(render.main, "le_table3", "data=cifar10", "--distances")
    assert outcome.status == 0
    assert re.search(r"none of its \d+ cells has its record and sets here\. python "
                     r"scripts/run_table\.py le_table3 data=cifar10 --sets makes them",
                     outcome.stdout)
    assert run_command(render.main, "le_table3", "data=cifar10", "--distances", "--format",
                       "csv").stdout == ""


def test_a_derived_column_waits_for_its_cells(tiny):
    """The best of what happens to be there would be another number once the rest is."""
    cells = planned(tiny)
    record = {"accuracy_last": 0.5, "train": {"lineage": []}, "seconds": 1.0,
              "purifier_trained_on": []}

    def derived(*there: plan.Cell) -> entries.Entry:
        [entry] = [e for e in entries.collect(
            cells[0].table, cells, lambda cell: Path(cell.record.out.name) if cell in there
            else None) if e.column == "iss_best" and e.row == "lsp"]
        return entry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries.records, "load", lambda place: record)
        jpegs = [cell for cell in cells if cell.column.family == "jpeg"]
        assert derived(*jpegs).accuracies == [50.0, 50.0]
        assert derived(*jpegs[1:]).accuracies == []             # one seed of one quality lacks
        assert derived().accuracies == []


def test_a_wide_table_marks_an_oracles_column_whatever_its_last_row_lacks():
    cells = [dataclasses.replace(found(row, "iss_best", *values), chosen="jpeg" * len(values))
             for row, values in (("em", [60.0]), ("lsp", []))]
    for order in (cells, cells[::-1]):
        head, _ = render.wide(order)
        assert head[-1] == "iss_best † (oracle)"


def test_a_row_whose_poison_does_not_poison_is_marked(tiny):
    table = spec.read_one(str(tiny))
    clean = found("clean", "none", 90.0, 92.0)
    assert entries.marks_of(table, [clean, found("lsp", "none", 86.2)]) == \
        {"lsp": "‡ no: 4.8 points, undefended"}
    assert entries.marks_of(table, [clean, found("lsp", "none", 86.0)]) == {}
    assert entries.marks_of(table, [found("lsp", "none", 91.0)]) == {}      # clean is not there yet
    assert entries.marks_of(table, [clean, found("lsp", "jpeg quality=10", 91.0)]) == {}
    marked = [clean, found("lsp", "none", 90.0)]
    marked[1] = dataclasses.replace(marked[1], mark="‡ no")
    assert [line[0] for line in render.wide(marked)[1]] == ["clean", "lsp ‡"]
    head, lines = render.long(marked)
    assert (head[-1], lines[0][-1], lines[1][-1]) == ("does it poison?", "", "‡ no")


def test_a_smaller_form_says_what_it_is(tiny):
    for words, text in ((["--quick"], "A demonstration, not the paper's experiment: digits, 1,437 "
                         "training images; resnet18 of width 4; n = 0\n\ntiny: none"),
                        (["standard.epochs=2"], "few, 320 training images; resnet18 of width 4; "
                         "n = 0; with standard.epochs=2\n\ntiny: none")):
        assert run_command(render.main, tiny, *words).stdout.startswith(text)
    outcome = run_command(render.main, tiny, "--quick", "--format", "csv")
    assert outcome.stdout.startswith("poison,")             # whose readers expect the head first
    assert "A demonstration" in outcome.stderr
    assert run_command(render.main, tiny, "--quick", "--format", "latex").stdout.startswith(
        "% A demonstration")


def test_a_table_without_a_record_says_what_makes_it_and_shows_no_empty_grid(tiny):
    """But the published numbers of its cells."""
    said = (f"tiny: none of its 4 cells has a record yet. python scripts/run_table.py {tiny} "
            "--seeds=7 makes them (")
    outcome = run_command(render.main, tiny, "--seeds", "7")
    assert outcome.stdout.startswith(said), outcome.stdout
    rows = [line for line in outcome.stdout.splitlines() if line.startswith("| ")][2:]
    assert rows
    assert not [row for row in rows if " LE " not in row and " ISS " not in row]
    assert "; what stands below is published\n" in outcome.stdout
    wide = run_command(render.main, tiny, "--seeds=7", "--wide").stdout
    assert wide.startswith(said)
    assert wide.endswith(")\n\n")


def test_a_table_without_a_record_says_which_lines_of_it_were_run_here(tiny, tmp_path, monkeypatch):
    """What was typed to run_table.py has to be typed here too."""
    monkeypatch.setattr(noted, "PLANS", tmp_path)
    for words in ([str(tiny), "--seeds=7"], [str(tiny), "--seeds=7", "standard.width=2"],
                  ["other.yaml"], ["configs/tables/le_table3.yaml", "--quick"]):
        noted.note(words, [], sets=False)
    said = run_command(render.main, tiny, "--seeds", "7").stdout.splitlines()[0]
    assert f"); what was run here of it: {tiny} --seeds=7 standard.width=2" in said
    assert "other.yaml" not in said
    assert said.count("standard.width=2") == 1
    by_name = run_command(render.main, "le_table3", "--seeds", "7").stdout
    assert "what was run here of it: configs/tables/le_table3.yaml --quick" in by_name


def test_a_line_can_be_without_published_numbers(tiny):
    tables.changed(tiny, "  none: []", "  none: {reported: [], steps: []}")
    shown = run_command(render.main, tiny, "--seeds=7").stdout
    assert "15.0 LE" not in shown
    assert "none of its 4 cells has a record yet" in shown


def test_seconds_are_of_each_kind_of_work():
    """Training the purifier with what it goes on from, purifying, training the classifier; the
    poison's are no defence's."""
    prior = {"seconds": 20.0, "after": {"seconds": 400.0, "after": None}}
    steps = [{"method": "lsp", "seconds": 1.0}, {"method": "gray", "seconds": 2.0},
             {"method": "jcdp", "seconds": 50.0, "trained_on": prior}]

    def seconds(*lineage: dict) -> tuple:
        return entries.seconds_of({"train": {"lineage": list(lineage)}, "seconds": 7.0})

    assert seconds(*steps) == (420.0, 52.0, 7.0)
    assert seconds(steps[0]) == (None, None, 7.0)
    assert seconds(*steps[:2]) == (None, 2.0, 7.0)
    prior["after"].pop("seconds")                       # a checkpoint of before seconds were kept
    assert seconds(*steps) == (None, 52.0, 7.0)


def test_a_published_number_says_whose_it_is():
    attacks = spec.read_one(str(ROOT / "configs/tables/attacks.yaml"), overrides=("data=cifar10",))
    own, others = beside(attacks, ("ops",), ("none",))
    assert published.in_words(own) == "15.56 OPS paper"       # and not ISS's 36.55
    shown = list(map(published.in_words, others))
    assert {"36.55 ISS README-main", "14.69 (leaderboard) APBench site-cifar10"} <= set(shown)
    own, others = beside(attacks, ("em",), ("none",), network="mobilenet_v2")
    assert {fact["arch"] for fact in [own, *others] if fact} == {"mobilenetv2"}
    _, others = beside(attacks, ("rem",), ("none",))
    assert "17.47 (simplified, leaderboard) APBench site-cifar10" in map(published.in_words, others)


def test_a_probe_is_beside_the_same_learners_probe():
    """And not beside supervised training on the same poison."""
    for name, learner, reported in (("le_table4", "simclr", 44.9), ("le_table4_moco", "moco", 55.1),
                                    ("le_table4_byol", "byol", 59.6)):
        table = spec.read_one(name, overrides=("data=cifar10",))
        clean, released = (published.conditions(learner, {"probe": {"data": data}})
                           for data in ("clean", "released"))
        own, _ = beside(table, ("cp_s",), ("none",), **clean)
        assert own["accuracy"] == reported
        assert beside(table, ("cp_s",), ("none",), **released) == (None, [])
        assert beside(table, ("cp_s",), ("none",)) == (None, [])
    assert {fact["eval"] for fact in published.read() if "eval" in fact} <= {
        published.conditions(learner, {})["evaluated"] for learner in list_methods("learners")}


def test_a_tables_source_is_beside_its_cells():
    """Also where its authors only measured again; without one, papers' own numbers are."""
    table = spec.read_one("bridgepure_table1", overrides=("data=cifar10",))
    own, others = beside(table, ("rem",), ("none",))
    assert published.in_words(own) == "20.96 ± 1.7 BridgePure T1"
    assert "20.5 LE T1" in map(published.in_words, others)
    own, _ = beside(dataclasses.replace(table, source=""), ("rem",), ("none",))
    assert own["kind"] == "paper"


def test_a_table_has_the_numbers_of_its_own_table_of_the_paper():
    """LE's clean accuracies differ from table to table."""
    for name, reported in (("le_table1", "78.8 LE T1"), ("le_table3", "74.5 LE T3")):
        table = spec.read_one(name, overrides=("data=cifar100",))
        own, _ = beside(table, ("clean",), ("none",))
        assert published.in_words(own) == reported


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_a_table_of_re_runs_has_its_sources_number_beside_every_poison(data):
    table = spec.read_one("bridgepure_table1", overrides=(f"data={data}",))
    has = {(fact["attack"], published.filed_under(fact)) for fact in published.read()
           if fact["source"] == "BridgePure" and fact["dataset"] == data}
    for row in table.rows:
        for column in table.columns:
            own, _ = beside(table, row.reported, column.reported)
            if row.name != "clean":
                assert (row.reported[0], column.reported[0]) in has, (row.name, column.name)
                assert own["source"] == "BridgePure", (row.name, column.name)


def test_numbers_of_another_name_say_it_and_are_beside_none():
    """LE states no radius of its adversarial training, and not which form of CP it took."""
    table = spec.read_one("le_table1", overrides=("data=cifar10",))
    [column] = [column for column in table.columns if column.name == "at eps8"]
    own, others = beside(table, ("rem",), column.reported)
    shown = [*map(published.in_words, others)]
    assert own is None
    assert "85.47 ± 0.17 BridgePure T1" in shown
    assert "49.2 (as at) LE T1" in shown
    assert not any(number.startswith("39.45") for number in shown)      # 4/255
    table = spec.read_one("le_table4", overrides=("data=cifar10",))
    [row] = [row for row in table.rows if row.name == "cp_c"]
    _, others = beside(table, row.reported, ("jcdp",), evaluated="simclr-linear")
    assert [*map(published.in_words, others)] == ["86.6 (as cp) LE Sec4.3-text"]


def test_published_numbers_are_kept_whole():
    """Facts of the papers' tables, under our names."""
    known = published.read()
    assert len(known) > 1000
    for fact in known:
        assert {"source", "table", "dataset", "attack", "defence", "arch", "accuracy",
                "kind"} <= set(fact)
        assert 0 < fact["accuracy"] <= 100
        assert fact["kind"] in ("paper", "independent", "leaderboard")

    def of(**wanted):
        return [fact["accuracy"] for fact in known
                if all(fact[key] == value for key, value in wanted.items())]

    base = {"source": "LE", "table": "T1", "dataset": "cifar10"}
    assert of(**base, attack="em_classwise", defence="none") == [20.7]
    assert of(**base, attack="tap", defence="jcdp") == [90.8]
    assert of(source="OPS", attack="ops", defence="none", arch="resnet18") == [15.56]
    assert of(source="CUDA", dataset="cifar10", attack="rem", defence="at_4") == [48.16]
    assert of(**{**base, "table": "T3"}, attack="lsp", defence="gray") == [82.5]
    assert of(source="BridgePure", dataset="cifar10", attack="lsp", defence="dvae",
              arch="resnet18")
