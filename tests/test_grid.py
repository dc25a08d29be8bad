"""The grid of images and residuals."""

from pathlib import Path

from conftest import run_command, write_imageset

from scripts.pictures import figures, strips


def grid(*sets: object):
    return run_command(figures.main, "grid", *sets, "--out", "grid.png", "--images", 3)


def test_sets_of_one_name_are_rows_of_their_own(few, tmp_path):
    paths = [write_imageset(tmp_path / at / "lsp", image, few.labels)
             for at, image in (("a", few.images), ("b", 255 - few.images))]
    found = figures.load_alike([str(path) for path in paths])
    assert [label for label, _ in found] == [str(path) for path in paths]
    found_strips = strips.image_strips(few, found, slice(0, 3))
    assert len(found_strips) == 1 + 2 * 2
    assert (found_strips[3][1] != found_strips[1][1]).all()
    named = figures.load_alike([f"a=b={paths[0]}", str(paths[1])])
    assert [label for label, _ in named] == ["a=b", "lsp"]      # its folder: it has no method
    assert grid(*paths).status == 0
    assert Path("grid.png").read_bytes().startswith(b"\x89PNG")


def test_sets_of_other_images_are_refused(few, tmp_path):
    whole = write_imageset(tmp_path / "whole", few.images, few.labels)
    part = write_imageset(tmp_path / "part", few.images[:100], few.labels[:100])
    after = write_imageset(tmp_path / "after", few.images, few.labels,
                           root={"data": "digits", "split": "after:9"})
    for other, words in ((part, "images (100, 16, 16, 3), but"), (after, "after:9")):
        outcome = grid(whole, other)
        assert outcome.status == 1
        assert other.name in outcome.error
        assert words in outcome.error
    assert not Path("grid.png").exists()
