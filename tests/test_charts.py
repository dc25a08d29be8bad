"""Charts: what is drawn of printed numbers, and what printed numbers are refused."""

import argparse
import functools
import math
import re
from pathlib import Path

import drawing
import numpy as np
import pytest
from conftest import CONFIGS
from drawing import drawn, figure

from core.errors import UserError
from scripts.pictures import charts, numbers, style
from scripts.tables import spec
from scripts.tables.measure import Point

coarse = drawing.coarse                   # for every test here


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


def read_back(text: str) -> tuple[object, list[Point]]:
    """The table, and the points that are printed of it."""
    Path("table.yaml").write_text(SWEPT.replace("SEEDS", "0"))
    Path("numbers.md").write_text(text)
    table = spec.read_one("table.yaml")
    return table, numbers.read_points(Path("numbers.md"), table)


CHARTS = [("fig2a", NUMBERS), ("fig2b", NUMBERS), ("guidance", NUMBERS), ("fig3", CURVES)]


@pytest.mark.parametrize(("name", "text"), CHARTS)
def test_no_line_goes_through_the_noise_of_one_seed(name, text):
    """Points alone; three seeds are joined, and their spread is drawn and said."""
    one, three = from_numbers(name, text), from_numbers(name, several(text), "0, 1, 2")
    planned = from_numbers(name, text, "0, 1, 2")       # of three seeds, one of which is drawn
    for chart, joined, words in ((one, False, "1 seed"), (three, True, "3 seeds: mean and"),
                                 (planned, False, "1 seed")):
        series = [line for axis in chart.axes for line in axis.lines
                  if line.get_marker() not in ("None", "", "|", "_") and len(line.get_xdata()) > 1]
        assert series
        assert {line.get_linestyle() == "-" for line in series} == {joined}
        assert words in chart.get_suptitle()
        spread = [part for axis in chart.axes for part in axis.collections]
        assert bool(spread) == joined


def points_of(axis) -> dict[str, list[list[float]]]:
    """The points of every series, by its name in the legend."""
    return {one.get_label(): one.lines[0].get_xydata().tolist() for one in axis.containers}


def levels_of(axis) -> dict[str, float]:
    """The height of every broken line."""
    return {one.get_label(): one.get_ydata()[0] for one in axis.lines
            if one.get_marker() == "None"}


def test_the_points_lie_where_the_numbers_say():
    left, right = from_numbers("fig2a", NUMBERS).axes[:2]
    assert points_of(left)["EM"] == [[1, 19.9], [1.98, 21.09], [3.82, 22.21]]
    assert points_of(left)["EM, to clean"] == [[1, 19.3], [1.98, 20.28], [3.82, 20.89]]
    assert points_of(right)["EM"] == [[1, 93.3], [1.98, 92.5], [3.82, 90.6]]
    assert levels_of(right) == {"clean images": 99.4, "EM, not purified": 74.4,
                                "LSP, not purified": 40.0}


def test_the_points_of_figure_2b_lie_where_the_numbers_say():
    """Ordered by their PSNR, each with its strength beside it."""
    em, lsp = from_numbers("fig2b", NUMBERS).axes
    [points] = points_of(em).values()
    assert points == [[19.9, 93.3], [21.09, 92.5], [22.21, 90.6]]
    assert sorted(text.get_text() for text in em.texts) == ["1", "2", "4"]
    assert levels_of(em) == {"clean images": 99.4, "not purified": 74.4}
    assert list(points_of(lsp).values()) == [[[18.25, 98.3]]]
    assert levels_of(lsp) == {"clean images": 99.4, "not purified": 40.0}
    to_clean = charts.draw_trade_off(*read_back(NUMBERS), "digits",
                                     argparse.Namespace(to="clean")).axes[0]
    assert list(points_of(to_clean).values()) == [[[19.3, 93.3], [20.28, 92.5], [20.89, 90.6]]]


def test_the_points_of_a_sweep_lie_where_the_numbers_say():
    """Values stand at equal distances, and two series beside each other."""
    figure = from_numbers("guidance", NUMBERS)
    ticks = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert ticks == ["1", "2", "4"]
    expected = {"psnr_clean": ([19.3, 20.28, 20.89], [19.79]),
                "lpips_clean": ([0.03, 0.02, 0.01], [0.03]),
                "accuracy": ([93.3, 92.5, 90.6], [98.3])}
    for axis, (em, lsp) in zip(figure.axes, expected.values(), strict=True):
        points = {name: np.array(of) for name, of in points_of(axis).items()}
        assert points["EM"] == pytest.approx(np.stack([[-0.05, 0.95, 1.95], em], 1))
        assert points["LSP"] == pytest.approx(np.stack([[0.05], lsp], 1))
    assert levels_of(figure.axes[-1]) == {"clean images": 99.4, "EM, not purified": 74.4,
                                          "LSP, not purified": 40.0}


def test_the_points_of_figure_3_lie_where_the_numbers_say():
    """Of one seed beside each other; of several at their epoch, within one standard deviation."""
    heights = {"clean images": [22.8, 42.5, 61.1], "not purified": [65.6, 10.0, 44.7],
               "VAE, kld 1": [54.2, 16.7, 22.2]}
    [axis] = from_numbers("fig3", CURVES).axes
    assert {line.get_label(): list(line.get_ydata()) for line in axis.lines} == heights
    assert [line.get_xdata()[0] for line in axis.lines] == pytest.approx([0.88, 1, 1.12])
    [axis] = from_numbers("fig3", several(CURVES), "0, 1, 2").axes
    for line, band in zip(axis.lines, axis.collections, strict=True):
        assert list(line.get_xdata()) == [1, 2, 3]
        assert line.get_ydata() == pytest.approx(heights[line.get_label()])
        edges = band.get_paths()[0].vertices
        for epoch, mean in zip((1, 2, 3), heights[line.get_label()], strict=True):
            at = edges[edges[:, 0] == epoch, 1]
            assert (at.min(), at.max()) == pytest.approx((mean - 2.5, mean + 2.5))


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
    ("| | |", "it has no accuracy"),
    ("| 50.0 | 60.0 |", "table.yaml has no 'lps x none'; did you mean 'lsp x none'?")])
def test_curves_that_are_none_are_refused(cells, said):
    Path("table.yaml").write_text(SWEPT.replace("SEEDS", "0"))
    row = "lps" if "lps" in said else "lsp"
    Path("curves.md").write_text(
        f"| trained on | epoch 1 | epoch 2 |\n|-|-|-|\n| {row} x none {cells}\n")
    with pytest.raises(UserError, match=re.escape(f"curves.md:3: {said}")):
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
    chart = charts.draw_trade_off(table, measured, "digits", to)
    assert [text.get_text() for text in chart.axes[0].texts] == ["30"]
    style.save(chart, Path("figure.png"))


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
