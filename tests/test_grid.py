"""The grid of images and residuals, and the tiles that other pictures share with it."""

import dataclasses
import json
from pathlib import Path

import drawing
import numpy as np
import pytest
from conftest import run_command, write_imageset

from core.imageset import ImageSet
from scripts.pictures import figures, grid, inspect_poison, strips, style

RECORD = {"test": {}, "settings": {}, "learner": "standard", "protocol": "em60",
          "config": {"test_every": 0}}


coarse = drawing.coarse                   # for every test here


def make_grid(*sets: object, images: int = 3):
    return run_command(figures.main, "grid", *sets, "--out", "grid.png", "--images", images)


def some(shape: tuple[int, ...], classes: int = 10, name: str = "digits") -> ImageSet:
    """Random images in memory."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, shape, np.uint8)
    return ImageSet(images, rng.integers(0, classes, len(images)),
                    {"name": name, "fingerprint": "clean", "lineage": [],
                     "classes": [f"class {i}" for i in range(classes)]})


def shifted(clean: ImageSet, by: int, fingerprint: str = "x") -> ImageSet:
    images = np.clip(clean.images.astype(int) + by, 0, 255).astype(np.uint8)
    return dataclasses.replace(clean, images=images,
                               meta={**clean.meta, "fingerprint": fingerprint})


def labels_of(figure) -> list[str]:
    return [label.get_text() for axis in figure.axes for label in axis.get_yticklabels()]


# --- sets ------------------------------------------------------------------------------------


def test_sets_of_one_name_are_rows_of_their_own(few, tmp_path):
    paths = [write_imageset(tmp_path / at / "lsp", image, few.labels)
             for at, image in (("a", few.images), ("b", 255 - few.images))]
    found = grid.load_alike([str(path) for path in paths])
    assert [label for label, _ in found] == [str(path) for path in paths]
    clean, first, second = grid.grid_strips(few, found, [[]] * 3, slice(0, 3))
    assert clean.residual is None
    assert not first.residual.any()
    np.testing.assert_allclose(second.residual, 1 - 2 * clean.images, atol=1e-9)
    named = grid.load_alike([f"a=b={paths[0]}", str(paths[1])])
    assert [label for label, _ in named] == ["a=b", "lsp"]      # its folder: it has no method
    assert make_grid(*paths).status == 0
    assert Path("grid.png").read_bytes().startswith(b"\x89PNG")


def test_sets_of_other_images_are_refused(few, tmp_path):
    whole = write_imageset(tmp_path / "whole", few.images, few.labels)
    part = write_imageset(tmp_path / "part", few.images[:100], few.labels[:100])
    after = write_imageset(tmp_path / "after", few.images, few.labels,
                           root={"data": "digits", "split": "after:9"})
    for other, words in ((part, "images (100, 16, 16, 3), but"), (after, "after:9")):
        outcome = make_grid(whole, other)
        assert outcome.status == 1
        assert other.name in outcome.error
        assert words in outcome.error
    assert not Path("grid.png").exists()


# --- one gain --------------------------------------------------------------------------------


def test_all_residuals_of_a_figure_share_one_gain():
    clean = some((8, 8, 8, 3))
    sets = [("weak", shifted(clean, 4)), ("strong", shifted(clean, 60))]
    found = grid.grid_strips(clean, sets, [[]] * 3, slice(0, 8))
    gain = strips.common_gain(found)
    assert gain == strips.common_gain(found[2:]) < strips.common_gain(found[:2]) == 20
    values = np.concatenate([strip.residual.ravel() for strip in found[1:]])
    assert np.mean(np.abs(gain * values) > 0.5) <= 0.02
    rows = strips.tile_rows(found, gain)
    assert [row.label for row in rows] == ["clean", "weak", "− clean", "strong", "− clean"]
    for row, strip in zip((rows[2], rows[4]), found[1:], strict=True):
        np.testing.assert_allclose(row.tiles, np.clip(0.5 + gain * strip.residual, 0, 1))
    figure = grid.draw_grid(clean, sets, slice(0, 8))
    assert f"residuals (− clean) × {gain:g} around mid-grey" in figure.get_suptitle()


def test_a_few_images_have_their_residuals_beside_them():
    clean = strips.Strip("clean", np.zeros((4, 8, 8, 3)), None)
    other = strips.Strip("x", np.ones((4, 8, 8, 3)), np.full((4, 8, 8, 3), 0.1))
    only = strips.Strip("p_hat", None, np.full((4, 8, 8, 3), -0.1))
    rows = strips.tile_rows([clean, other, only], 2, beside=True)
    assert [(row.label, len(row.tiles)) for row in rows] == [("clean", 8), ("x", 8), ("p_hat", 8)]
    halves = [[tiles.mean() for tiles in np.split(row.tiles, 2)] for row in rows]
    np.testing.assert_allclose(halves, [[0, 1], [1, 0.7], [1, 0.3]])    # 1: white, nothing there


def test_the_tiles_of_a_row_are_its_images():
    images = some((3, 8, 8, 3)).images
    axis = style.sheet(2).subplots()
    strips.show_rows(axis, [strips.Row("a", images / 255), strips.Row("b", 1 - images / 255)])
    canvas = axis.images[0].get_array()
    np.testing.assert_array_equal(canvas[:8, 9:17], images[1])
    np.testing.assert_array_equal(canvas[9:17, 18:26], 255 - images[2])
    assert (canvas[8] == 255).all()
    strips.show_rows(axis, [strips.Row("a", images[:2] / 255)], halves=True)
    canvas = axis.images[1].get_array()
    np.testing.assert_array_equal(canvas[:, 12:], images[1])
    assert (canvas[:, 8:12] == 255).all()


# --- accuracies ------------------------------------------------------------------------------


def record(fingerprint: str, accuracy: float, rows: int = 8, **other) -> dict:
    return {**RECORD, "fingerprint": f"{fingerprint}{accuracy}{other}", "accuracy_last": accuracy,
            "train": {"fingerprint": fingerprint, "rows": rows}, **other}


def test_accuracies_are_of_one_protocol_on_the_whole_set():
    clean = some((8, 8, 8, 3))
    sets = [clean, shifted(clean, 9, "a"), shifted(clean, 9, "b")]
    found = [record("clean", 0.99), record("a", 0.25), record("a", 0.35, config={"test_every": 1}),
             record("b", 0.5, protocol="cpu12"), record("a", 0.9, rows=4),
             record("a", 0.8, settings={"smoke": True}), record("elsewhere", 0.7)]
    accuracies, protocol = grid.accuracies_of(sets, found)
    assert protocol == "em60"
    np.testing.assert_allclose(accuracies[0], [99])
    np.testing.assert_allclose(accuracies[1], [25, 35])
    assert accuracies[2] == []
    assert [grid.spread_text(values) for values in accuracies] == [
        "\n99.0 %", "\n30.0 ± 7.1 %", ""]
    assert "%: clean test accuracy, em60, 1 to 2 seeds" in grid.grid_title("d", "rows 0 to 1",
                                                                          accuracies, protocol)
    elsewhere = record("a", 0.9, test={"fingerprint": "other test images"})
    assert grid.accuracies_of(sets, [*found, elsewhere])[0] == accuracies
    assert grid.accuracies_of(sets, []) == ([[], [], []], "")
    assert grid.grid_title("d", "row 0", [[], []], "") == "d, row 0"


def test_a_grid_shows_the_accuracies_of_finished_records(monkeypatch):
    clean = some((8, 8, 8, 3))
    monkeypatch.setattr(grid, "finished", lambda folders: [record("clean", 0.99),
                                                           record("x", float("nan"))])
    figure = grid.draw_grid(clean, [("LSP", shifted(clean, 9))], slice(0, 5))
    assert labels_of(figure) == ["clean\n99.0 %", "LSP\nnan %", "− clean"]
    assert figure.get_suptitle().startswith("digits, rows 0 to 4; %: clean test accuracy, em60")


def test_a_record_that_is_none_is_passed_over(tmp_path):
    for name, text in (("a", "{"), ("b", json.dumps(RECORD)), ("c.partial", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(text)
    assert list(grid.finished([tmp_path, tmp_path / "no-such"])) == []


# --- whatever is given -----------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "sets", "name"), [
    ((1, 16, 16, 3), 1, "one image"),
    ((8, 8, 8, 3), 30, "thirty sets"),
    ((4, 224, 224, 3), 1, "large images"),
    ((8, 8, 24, 3), 2, "wide images"),
    ((8, 8, 8, 3), 1, "$\\frac{ 50 % of \u4e2d\u6587 \U0001f600 " + "long " * 40),
])
def test_a_grid_of_whatever_is_given(shape, sets, name, recwarn):
    clean = some(shape, name=name)
    figure = grid.draw_grid(clean, [(f"{name} {i}", shifted(clean, 9)) for i in range(sets)],
                            slice(0, 8))
    style.save(figure, Path("grid.png"))
    beside = shape[0] <= strips.BESIDE
    assert len(labels_of(figure)) == 1 + sets * (1 if beside else 2)
    assert figure.get_figwidth() == style.WIDTH
    assert not [str(warning.message) for warning in recwarn]       # such as of a missing glyph


def test_grey_images_stay_grey():
    clean = some((3, 8, 8, 3))
    clean.images[:] = clean.images[..., :1]
    grey = shifted(clean, 20)
    tiles = strips.tile_rows(grid.grid_strips(clean, [("g", grey)], [[], []], slice(0, 3)), 5)
    assert all(np.ptp(row.tiles, axis=-1).max() < 1e-9 for row in tiles)


def test_too_large_a_picture_is_refused():
    rows = [strips.Row("x", np.broadcast_to(0.5, (100, 224, 224, 3)))] * 61
    with pytest.raises(ValueError, match="61 rows of 100 images of 224x224 pixels are too large"):
        strips.size_of(rows)


@pytest.mark.parametrize(("text", "shown"), [
    ("LSP", "LSP"), ("a$b", r"a\$b"), ("\u4e2d", r"\u4e2d"), ("\x1b[2J", r"\x1b[2J"),
    ("größe", "größe"), ("one two three", "one two\nthree"), ("abcdefghijkl", "abcdefghij\nkl"),
    ("one two three four five six seven eight", "one two\nthree four\nfive six…"), ("", "")])
def test_text_from_outside_is_shown_as_it_is(text, shown):
    assert style.plain_label(text, 10) == shown


# --- inspect_poison --------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "shown"), [(1, 1), (10, 10), (100, 20)])
def test_the_tile_of_a_class_bears_its_name(classes, shown):
    figure = style.sheet(2)
    names = [f"$name {i}" for i in range(classes)]
    inspect_poison.show_means(figure, np.ones((classes, 8, 8, 3)), names)
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert [title.replace("\n", " ") for title in titles] == [
        rf"\$name {i}" for i in range(shown)]
    assert ("each class" if classes == shown else "the first 20 of 100 classes") in \
        figure.get_suptitle()


def test_an_inspection_of_few_grey_images(recwarn):
    clean = some((1, 8, 8, 3), classes=100)
    clean.images[:] = 90
    poison = shifted(clean, 3)
    poison.meta["lineage"] = [{"method": "ar"}]
    spectra = inspect_poison.Spectra.of(clean, poison)
    figure = inspect_poison.draw(poison, clean, spectra, inspect_poison.class_means(clean, poison))
    style.save(figure, Path("x.png"))
    assert figure.get_suptitle() == "AR on digits, 1 image"
    assert not [str(warning.message) for warning in recwarn]
