"""ImageSet: the format on disk, its verification, the row maps, and floats to pixels."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import as_set, digest, new_run, sign, write_imageset

from core.errors import UserError
from core.imageset import (
    SLICE_ROWS,
    ImageSet,
    content_digest,
    from_arrays,
    quantize,
    rows_at_once,
    to_floats,
)

LEVELS = np.arange(256, dtype=np.uint8)


# --- floats to pixels ------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["round", "floor"])
def test_all_levels_survive_the_way_to_float_and_back(rounding):
    floats = torch.from_numpy(LEVELS).float().div_(255)
    np.testing.assert_array_equal(quantize(floats, rounding).numpy(), LEVELS)


def test_rounding_is_to_the_nearest_level_half_to_even():
    values = np.random.default_rng(0).uniform(-0.5, 1.5, 10_000).astype(np.float32)
    expected = np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)
    np.testing.assert_array_equal(quantize(torch.from_numpy(values.copy())).numpy(), expected)
    halves = torch.tensor([0.5, 1.5, 2.5, 3.5]) / 255
    assert (halves * 255 == torch.tensor([0.5, 1.5, 2.5, 3.5])).all()   # exact in float32
    assert quantize(halves).tolist() == [0, 2, 2, 4]


def test_networks_get_every_level_exactly():
    """(B, 3, H, W) in [0, 1], in the memory order of the pixels, and back to them."""
    pixels = torch.arange(256 * 3, dtype=torch.int32).remainder(256).byte().view(2, 16, 8, 3)
    floats = to_floats(pixels)
    assert floats.shape == (2, 3, 16, 8)
    assert floats.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(floats[1, 2, 3, 4].item(), pixels[1, 3, 4, 2].item() / 255)
    assert torch.equal(quantize(floats.permute(0, 2, 3, 1).clone()), pixels)



def test_floor_truncates_after_the_clip():
    values = np.random.default_rng(0).uniform(-0.5, 1.5, 10_000).astype(np.float32)
    expected = (np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)   # released code's cast
    np.testing.assert_array_equal(quantize(torch.from_numpy(values.copy()), "floor").numpy(),
                                  expected)


def test_truncating_a_sum_with_8_loses_no_level_but_perhaps_at_0():
    """Released code truncates: 8/255 in float32 is 8 levels all the same."""
    floats = torch.from_numpy(LEVELS[:248]).float() / 255 + torch.tensor(8 / 255)
    found = quantize(floats, "floor").numpy().astype(int) - (LEVELS[:248].astype(int) + 8)
    assert not found[1:].any()
    assert found[0] in (0, -1)


def test_the_ends_are_clipped():
    floats = torch.tensor([-1e9, -1e-9, 0.0, 1.0, 1 + 1e-6, 1e9])
    assert quantize(floats).tolist() == [0, 0, 0, 255, 255, 255]


# --- on disk ---------------------------------------------------------------------------------


def make(images, labels) -> ImageSet:
    return from_arrays(images, labels, name="made", classes=[str(i) for i in range(10)],
                       root={"data": "made"}, test=None)


def test_a_saved_set_opens_with_numpy_alone(tmp_path, images, labels):
    out = tmp_path / "out"
    with new_run(out, config={"a": 1}) as run:
        made = make(images, labels).map_pixels(lambda part, rows: 255 - part, run)
        assert not out.exists()
        made.save(run)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.yaml", "images.npy", "labels.npy", "meta.json"]
    assert not (tmp_path / "out.partial").exists()

    found, found_labels = np.load(out / "images.npy"), np.load(out / "labels.npy")
    assert found.dtype == np.uint8
    assert found_labels.dtype == np.int64
    np.testing.assert_array_equal(found, 255 - images)
    np.testing.assert_array_equal(found_labels, labels)
    meta = json.loads((out / "meta.json").read_text())
    assert meta["digests"] == {name: digest(out / name) for name in ("images.npy", "labels.npy")}
    assert meta["classes"] == [str(i) for i in range(10)]
    [entry] = meta["lineage"]
    assert (entry["method"], entry["config"], entry["seed"]) == ("test", {"a": 1}, 0)


def test_a_saved_set_loads_equal(tmp_path, images, labels):
    with new_run(tmp_path / "out") as run:
        made = make(images, labels).map_pixels(lambda part, rows: part, run)
        made.save(run)
    loaded = ImageSet.load(tmp_path / "out")
    np.testing.assert_array_equal(loaded.images, images)
    np.testing.assert_array_equal(loaded.labels, labels)
    assert loaded.num_classes == 10
    assert loaded.image_shape == (16, 16)
    assert loaded.fingerprint == made.fingerprint != make(images, labels).fingerprint
    with pytest.raises(ValueError, match="read-only"):
        loaded.images[0] = 0


def test_a_folder_written_by_hand_loads(tmp_path, images, labels):
    path = write_imageset(tmp_path / "hand", images, labels, author="somebody")
    np.testing.assert_array_equal(ImageSet.load(path).images, images)


def damage(path: Path, change) -> None:
    """Change a file's bytes; the digests in meta.json stay as they were."""
    path.write_bytes(change(bytearray(path.read_bytes())))


def flip_last(data):
    data[-1] ^= 1
    return data


def flip_header(data):
    data[20] ^= 1
    return data


@pytest.mark.parametrize("file", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("change", [flip_last, flip_header, lambda data: data[:-1],
                                    lambda data: data[:100], lambda data: b"",
                                    lambda data: data + b"\0"])
def test_a_damaged_array_is_refused_by_name(tmp_path, images, labels, file, change):
    path = write_imageset(tmp_path / "set", images, labels)
    damage(path / file, change)
    with pytest.raises(UserError, match=rf"set/{file}.*SHA-256.*remove .*set and repeat"):
        ImageSet.load(path)


@pytest.mark.parametrize("file", ["images.npy", "labels.npy", "meta.json"])
def test_a_missing_file_is_refused_by_name(tmp_path, images, labels, file):
    path = write_imageset(tmp_path / "set", images, labels)
    (path / file).unlink()
    with pytest.raises(UserError, match=file.replace(".", r"\.")):
        ImageSet.load(path)


def wrong(images, labels) -> dict[str, tuple]:
    bad_row = labels.copy()
    bad_row[17] = 10
    negative = labels.copy()
    negative[4] = -1
    return {
        "images are float32": (images.astype(np.float32), labels),
        "images are int64": (images.astype(np.int64), labels),
        r"images are uint8 \(60, 16, 16, 1\)": (images[..., :1], labels),
        r"images are uint8 \(60, 16, 16\)": (images[..., 0], labels),
        r"images are uint8 \(60, 16, 16, 4\)": (np.concatenate([images, images[..., :1]], 3),
                                                labels),
        "labels are int32": (images, labels.astype(np.int32)),
        "labels are float64": (images, labels.astype(float)),
        r"labels are int64 \(60, 1\)": (images, labels[:, None]),
        "60 images but 59 labels": (images, labels[:-1]),
        "59 images but 60 labels": (images[:-1], labels),
        "row 17 has label 10; labels must lie in 0..9": (images, bad_row),
        "row 4 has label -1": (images, negative),
        "the set is empty": (images[:0], labels[:0]),
    }


@pytest.mark.parametrize("words", list(wrong(np.zeros((60, 16, 16, 3)), np.zeros(60))))
def test_wrong_arrays_are_refused_in_memory_and_on_disk(tmp_path, images, labels, words):
    arrays = wrong(images, labels)[words]
    with pytest.raises(UserError, match=words):
        make(*arrays)
    with pytest.raises(UserError, match=f"set.*{words}"):
        ImageSet.load(write_imageset(tmp_path / "set", *arrays))    # its digests are right


def test_a_file_that_is_no_array_is_refused_even_with_the_right_digest(tmp_path, images, labels):
    path = write_imageset(tmp_path / "set", images, labels)
    meta = json.loads((path / "meta.json").read_text())
    (path / "images.npy").write_bytes(b"not an array")
    sign(path, meta)
    with pytest.raises(UserError, match=r"images\.npy is not a readable \.npy of plain numbers"):
        ImageSet.load(path)


def test_pickles_are_never_read(tmp_path, images, labels):
    path = write_imageset(tmp_path / "set", images, labels)
    meta = json.loads((path / "meta.json").read_text())
    np.save(path / "labels.npy", np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    sign(path, meta)
    with pytest.raises(UserError, match=r"labels\.npy is not a readable"):
        ImageSet.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"kind": "imageset"}', "\xff",
                                  '{"kind": "imageset", "format": 1}'])
def test_a_damaged_meta_is_refused_by_name(tmp_path, images, labels, text):
    path = write_imageset(tmp_path / "set", images, labels)
    (path / "meta.json").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match="set"):
        ImageSet.load(path)


@pytest.mark.parametrize("key", ["classes", "name", "root", "test", "lineage", "fingerprint",
                                 "digests", "kind", "format"])
def test_a_meta_without_one_of_its_keys_is_refused(tmp_path, images, labels, key):
    path = write_imageset(tmp_path / "set", images, labels)
    meta = json.loads((path / "meta.json").read_text())
    del meta[key]
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="set"):
        ImageSet.load(path)


def test_another_format_or_kind_is_refused(tmp_path, images, labels):
    path = write_imageset(tmp_path / "set", images, labels)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "format": 2}))
    with pytest.raises(UserError, match="format 2, but this code reads format 1"):
        ImageSet.load(path)
    (path / "meta.json").write_text(json.dumps({**meta, "kind": "checkpoint"}))
    with pytest.raises(UserError, match="is a checkpoint, not"):
        ImageSet.load(path)


def test_an_unfinished_set_says_so(tmp_path):
    (tmp_path / "set.partial").mkdir()
    with pytest.raises(UserError, match="unfinished: repeat the command"):
        ImageSet.load(tmp_path / "set")


# --- row by row ------------------------------------------------------------------------------


@pytest.fixture
def large() -> ImageSet:
    """More rows than two slices hold."""
    rng = np.random.default_rng(3)
    rows = 2 * SLICE_ROWS + 77
    return make(rng.integers(0, 256, (rows, 2, 3, 3), dtype=np.uint8),
                rng.integers(0, 10, rows))


def test_map_rows_hands_out_every_row_once_as_floats(tmp_path, large):
    seen = np.zeros(len(large), int)
    before = large.images.copy()

    def function(part, rows):
        seen[rows] += 1
        assert part.dtype == torch.float32
        assert len(part) == rows.stop - rows.start <= SLICE_ROWS
        np.testing.assert_array_equal(part.numpy(), before[rows].astype(np.float32) / 255)
        return part.mul_(0.5)           # a function may overwrite what it is given

    with new_run(tmp_path / "out") as run:
        mapped = large.map_rows(function, run)
        assert (seen == 1).all()
        np.testing.assert_array_equal(large.images, before)
        expected = np.rint(before.astype(np.float32) / np.float32(255) * np.float32(0.5)
                           * np.float32(255))
        np.testing.assert_array_equal(mapped.images, expected.astype(np.uint8))
        np.testing.assert_array_equal(mapped.labels, large.labels)


def test_map_rows_computes_in_exact_float32(tmp_path, images, labels):
    """TF32 and algorithms chosen by a race would make train_vae.py and purify.py disagree."""
    cudnn = torch.backends.cudnn

    def settings():
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark

    seen = []
    with new_run(tmp_path / "out") as run, cudnn.flags(enabled=True, benchmark=True):
        torch.set_float32_matmul_precision("high")
        make(images, labels).map_rows(lambda part, rows: seen.append(settings()) or part, run)
        assert seen == [("highest", False, False)]
        assert settings() == ("high", True, True)
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_diverged_is_named(tmp_path, large, bad):
    def function(part, rows):
        if rows.start <= 1500 < rows.stop:
            part[1500 - rows.start, 1, 1, 0] = bad
        return part

    with new_run(tmp_path / "out") as run, pytest.raises(UserError, match="row 1500 has non-fin"):
        large.map_rows(function, run)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("function", "passes"), [
    (lambda part: part * 255, False), (lambda part: part - 1000, False),
    (lambda part: part * 3e38, False), (lambda part: part + 1, True), (lambda part: -part, True)])
def test_grey_levels_are_no_images_of_0_to_1(tmp_path, large, function, passes):
    """They would be white all over; a sum that goes over 1 is clipped."""
    with new_run(tmp_path / "out", method="mine") as run:
        if passes:
            made = large.map_rows(lambda part, rows: function(part), run)
            assert set(np.unique(made.images[0])) <= {0, 255}
        else:
            with pytest.raises(UserError, match=r"rows 0 to .* a mean of .* 'mine' gives grey"):
                large.map_rows(lambda part, rows: function(part), run)


@pytest.mark.parametrize("wrong", [lambda part: part[: len(part) // 2],
                                   lambda part: part.repeat_interleave(2, 0),
                                   lambda part: part.permute(0, 3, 1, 2)])
def test_a_method_that_loses_or_adds_rows_is_named(tmp_path, large, wrong):
    """Its rows would lie under the labels of others."""
    with new_run(tmp_path / "out", method="mine") as run, \
            pytest.raises(ValueError, match=r"^mine: rows 0 to \d+ are \(.*\), and became \("):
        large.map_rows(lambda part, rows: wrong(part), run)


def test_lineage_grows_and_the_rest_of_meta_stays(tmp_path, images, labels):
    first = make(images, labels)
    with new_run(tmp_path / "a", method="one") as run:
        second = first.map_pixels(lambda part, rows: part, run)
    with new_run(tmp_path / "b", method="two", seed=5) as run:
        third = second.map_pixels(lambda part, rows: part, run)
    assert [step["method"] for step in third.meta["lineage"]] == ["one", "two"]
    assert third.meta["lineage"][0] == second.meta["lineage"][0]
    assert first.meta["lineage"] == []
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3
    for key in ("name", "classes", "root", "test"):
        assert third.meta[key] == first.meta[key]


def test_first_and_without_labels(images, labels):
    made = make(images, labels)
    short = made.first(7)
    np.testing.assert_array_equal(short.images, images[:7])
    np.testing.assert_array_equal(short.labels, labels[:7])
    assert made.first(60) is made
    assert made.first(1000) is made
    assert made.without_labels().labels is None
    assert made.without_labels().first(3).labels is None
    assert made.labels is not None


def test_a_content_fingerprint_follows_pixels_labels_shape_and_classes(images, labels):
    other_pixels, other_labels = images.copy(), labels.copy()
    other_pixels[3, 2, 1, 0] ^= 1
    other_labels[:2] = other_labels[1::-1]
    assert other_labels[0] != labels[0]
    fingerprints = {make(images, labels).fingerprint, make(other_pixels, labels).fingerprint,
                    make(images, other_labels).fingerprint,
                    make(images.reshape(60, 8, 32, 3), labels).fingerprint,
                    from_arrays(images, labels, name="made", classes=["x"] * 11,
                                root={}, test=None).fingerprint}
    assert len(fingerprints) == 5
    assert make(images.copy(), labels.copy()).fingerprint == make(images, labels).fingerprint
    assert all(len(bytes.fromhex(text)) == hashlib.sha256().digest_size for text in fingerprints)


# --- large images ----------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "rows"), [(8, 1024), (32, 1024), (64, 1024), (96, 256),
                                            (224, 256), (2000, 256)])
def test_of_large_images_fewer_rows_are_in_memory(side, rows):
    assert rows_at_once((side, side)) == rows


def test_a_large_set_goes_through_the_same_rows_in_smaller_slices(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    wide = as_set(rng.integers(0, 256, (600, 4, 4, 3), dtype=np.uint8), classes=1)
    whole = [slice(0, 600)]
    assert list(wide.slices()) == whole
    digest = content_digest(wide.images, wide.labels, 1)
    monkeypatch.setattr("core.imageset.SLICE_ROWS", 256)
    parts = [slice(0, 256), slice(256, 512), slice(512, 600)]
    assert list(wide.slices()) == parts
    assert content_digest(wide.images, wide.labels, 1) == digest
    seen = []
    with new_run(tmp_path / "out") as run:
        made = wide.map_rows(lambda images, rows: seen.append(rows) or 1 - images, run)
    assert seen == parts
    np.testing.assert_array_equal(made.images, 255 - wide.images)


def test_a_set_that_does_not_fit_on_the_disk_is_said_before_the_work(tmp_path, few, monkeypatch):
    monkeypatch.setattr("core.memory.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with new_run(tmp_path / "out") as run, \
            pytest.raises(UserError, match=r"320 images are 0\.2 MB, and its disk has 0"):
        few.map_rows(lambda images, rows: pytest.fail("it began"), run)
