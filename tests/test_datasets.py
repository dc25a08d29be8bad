"""Data sets: digits, torchvision's real loaders, folders and .npz files."""

import hashlib
import io
import pickle
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIGS, ROOT, run_command, save_image, succeed
from PIL import Image
from sklearn.datasets import load_digits

import evaluate
import purify
import train_vae
from core import datasets
from core.datasets import DataSettings, load
from core.errors import UserError
from core.origins import load_test
from poisons.__main__ import main as poison
from scripts.tables import plan, spec

LSP, GRAY, EM60 = (CONFIGS / name for name in (
    "poisons/lsp.yaml", "purifiers/gray.yaml", "learners/em60.yaml"))

# --- digits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 32])
def test_digits_are_scikit_learns_enlarged_bilinearly(size):
    """Pillow's bilinear filter uses half-pixel centres too, and shares no code with torch."""
    train = load(DataSettings("digits", size=size))
    test = load(DataSettings("digits", split="test", size=size))
    assert train.images.shape == (1437, size, size, 3)
    assert test.images.shape == (360, size, size, 3)
    assert (train.images[..., :1] == train.images).all()        # grey copied to three channels

    grey, labels = load_digits(return_X_y=True)
    levels = [Image.fromarray(image.reshape(8, 8).astype(np.float32) / 16)
              .resize((size, size), Image.Resampling.BILINEAR) for image in grey]
    expected = {(np.rint(np.asarray(level) * 255).astype(np.uint8).tobytes(), label)
                for level, label in zip(levels, labels, strict=True)}
    found = {(image[..., 0].tobytes(), label) for part in (train, test)
             for image, label in zip(part.images, part.labels, strict=True)}
    assert len(found & expected) > 0.97 * len(expected)     # half levels may round either way
    assert len(found) == len(expected)


def test_digits_train_and_test_are_disjoint_and_balanced():
    train, test = load(DataSettings("digits")), load(DataSettings("digits", split="test"))
    total = np.bincount(load_digits(return_X_y=True)[1])
    counts = np.bincount(test.labels)
    np.testing.assert_array_equal(np.bincount(train.labels) + counts, total)
    assert np.abs(counts - total * 360 / 1797).max() <= 1       # stratified
    rows = {image.tobytes() for image in train.images}
    assert not rows & {image.tobytes() for image in test.images}


def test_digits_are_the_same_every_time():
    first, second = load(DataSettings("digits")), load(DataSettings("digits"))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != load(DataSettings("digits", size=32)).fingerprint
    assert first.fingerprint != load(DataSettings("digits", split="test")).fingerprint


def test_digits_and_their_split_are_scikit_learns():
    """Which is not imported: that takes longer than a small step."""
    from sklearn.model_selection import train_test_split

    labels = load_digits(return_X_y=True)[1]
    train, test = train_test_split(np.arange(1797), test_size=360, stratify=labels, random_state=0)
    for found, rows in ((load(DataSettings("digits")), train),
                        (load(DataSettings("digits", "test")), test)):
        np.testing.assert_array_equal(found.labels, labels[np.sort(rows)])
    code = ("import sys; from core.datasets import DataSettings as Of, load; load(Of('digits')); "
            "load(Of('photos')); sys.exit('sklearn' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(("name", "size", "split", "fingerprint"), [
    ("digits", 16, "train", "fc8aba2c3886"), ("digits", 16, "test", "e5462e51043b"),
    ("digits", 32, "train", "d1bf8a55d601"), ("digits", 32, "test", "34d8758f9fca"),
    ("photos", 16, "train", "46e53674cd7e"), ("photos", 32, "test", "ed85eb550fbd")])
def test_embedded_sets_are_those_that_results_are_of(name, size, split, fingerprint):
    assert load(DataSettings(name, split, size)).fingerprint.startswith(fingerprint)


# --- torchvision -----------------------------------------------------------------------------


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def tiny_cifar(tmp_path, monkeypatch):
    """A real cifar-10-batches-py folder of 100 images, whose digests torchvision is told of."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (100, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, 100)
    names = [f"data_batch_{i}" for i in range(1, 5)] + ["test_batch"]
    for i, name in enumerate(names):
        rows = slice(20 * i, 20 * i + 20)
        (folder / name).write_bytes(pickle.dumps({"data": planes[rows].reshape(20, 3072),
                                                  "labels": labels[rows].tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "train_list", [[n, md5(folder / n)] for n in names[:4]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names",
                                          "md5": md5(folder / "batches.meta")})
    return planes.transpose(0, 2, 3, 1), labels


def test_cifar10_comes_through_torchvision_in_order(tmp_path, tiny_cifar):
    images, labels = tiny_cifar
    train = load(DataSettings("cifar10", root=str(tmp_path / "root")))
    np.testing.assert_array_equal(train.images, images[:80])
    np.testing.assert_array_equal(train.labels, labels[:80])
    assert train.meta["classes"] == list("abcdefghij")
    test = load_test(train, DataSettings("cifar10", root=str(tmp_path / "root")))
    np.testing.assert_array_equal(test.images, images[80:])
    np.testing.assert_array_equal(test.labels, labels[80:])


def test_svhn_is_turned_to_height_width_channel(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    stored = rng.integers(1, 11, (30, 1)).astype(np.uint8)      # the release writes 10 for digit 0
    splits = {}
    for split, pixels in (("train", images), ("test", 255 - images)):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": pixels.transpose(1, 2, 3, 0), "y": stored})
        splits[split] = ["http://nowhere.invalid/", path.name, md5(path)]
    monkeypatch.setattr(SVHN, "split_list", splits)
    train = load(DataSettings("svhn", root=str(tmp_path)))
    np.testing.assert_array_equal(train.images, images)
    np.testing.assert_array_equal(train.labels, stored[:, 0] % 10)
    test = load_test(train, DataSettings("svhn", root=str(tmp_path)))
    np.testing.assert_array_equal(test.images, 255 - images)
    assert train.images.flags.c_contiguous
    assert train.num_classes == 10


def test_cifar100_has_its_fine_labels_and_a_test_split_of_its_own(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    parts = {name: (rng.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8),
                    rng.integers(0, 100, 20)) for name in ("train", "test")}
    for name, (planes, labels) in parts.items():
        (folder / name).write_bytes(pickle.dumps({
            "data": planes.reshape(20, 3072), "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist()}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]}))
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5(folder / "test")]])
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names",
                                           "md5": md5(folder / "meta")})
    settings = DataSettings("cifar100", root=str(tmp_path))
    train = load(settings)
    for found, (planes, labels) in zip((train, load_test(train, settings)), parts.values(),
                                       strict=True):
        np.testing.assert_array_equal(found.images, planes.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(found.labels, labels)
        assert found.images.flags.c_contiguous


@pytest.mark.parametrize(("name", "file"), [
    ("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"),
    ("svhn", "train_32x32.mat")])
def test_a_missing_set_without_a_network_says_what_to_put_where(tmp_path, monkeypatch, name, file):
    for reason in (urllib.error.URLError("Temporary failure in name resolution"), TimeoutError()):
        def refuse(*_, reason=reason, **__):
            raise reason

        monkeypatch.setattr(urllib.request, "urlopen", refuse)
        with pytest.raises(UserError) as caught:
            load(DataSettings(name, root=str(tmp_path / "here")))
        message = str(caught.value)
        assert str(tmp_path / "here") in message
        assert file in message
        assert "name resolution" in message or "TimeoutError" in message
        assert "\n" not in message


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load(DataSettings("cifra10"))
    with pytest.raises(UserError, match="no data: write data="):
        load(DataSettings())


# --- folders ---------------------------------------------------------------------------------


def test_numbered_folders_sort_as_numbers(tmp_path):
    for number in (10, 2, 0, 1):
        save_image(tmp_path / "tree" / str(number), "a.png", np.full((8, 8, 3), number, np.uint8))
    found = load(DataSettings(f"folder:{tmp_path / 'tree'}", size=8))
    assert found.meta["classes"] == ["0", "1", "2", "10"]
    for image, label in zip(found.images, found.labels, strict=True):
        assert (image == int(found.meta["classes"][label])).all()


def test_named_folders_sort_by_name_and_files_inside_too(tmp_path):
    for name, level in (("cat/b.png", 20), ("cat/a.png", 10), ("bird/z.png", 5)):
        folder, file = (tmp_path / "tree" / name).parent, name.split("/")[1]
        save_image(folder, file, np.full((8, 8, 3), level, np.uint8))
    (tmp_path / "tree" / "README.txt").write_text("not a class")
    found = load(DataSettings(f"folder:{tmp_path / 'tree'}", size=8))
    assert found.meta["classes"] == ["bird", "cat"]
    assert found.images[:, 0, 0, 0].tolist() == [5, 10, 20]


def test_every_kind_of_image_becomes_rgb(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    grey = rng.integers(0, 256, (12, 12), dtype=np.uint8)
    alpha = np.full((12, 12, 1), 128, np.uint8)
    tree = tmp_path / "tree" / "a"
    save_image(tree, "1_rgb.png", rgb)
    save_image(tree, "2_grey.png", grey)
    save_image(tree, "3_rgba.png", np.concatenate([rgb, alpha], axis=2))
    save_image(tree, "4_grey_alpha.png", np.stack([grey, alpha[..., 0]], axis=2))
    save_image(tree, "5_one_bit.png", grey, mode="1")
    save_image(tree, "6_palette.png", np.repeat(grey[..., None] // 128 * 255, 3, axis=2), mode="P")
    save_image(tree, "7_sixteen_bit.png", grey.astype(np.uint16) * 257)
    found = load(DataSettings(f"folder:{tmp_path / 'tree'}", size=12)).images
    grey3 = np.repeat(grey[..., None], 3, axis=2)
    for row, expected in enumerate([rgb, grey3, rgb, grey3]):
        np.testing.assert_array_equal(found[row], expected)
    assert set(np.unique(found[4])) == {0, 255}
    np.testing.assert_array_equal(found[5], grey3 // 128 * 255)
    assert np.abs(found[6].astype(int) - grey3).max() <= 1      # 16 bits keep their upper half


def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    """A wide image whose thirds are red, green and blue: the crop must be the green one."""
    wide = np.zeros((20, 60, 3), np.uint8)
    for channel in range(3):
        wide[:, 20 * channel : 20 * channel + 20, channel] = 255
    save_image(tmp_path / "tree" / "a", "wide.png", wide)
    save_image(tmp_path / "tree" / "a", "xtall.png", wide.transpose(1, 0, 2))
    found = load(DataSettings(f"folder:{tmp_path / 'tree'}", size=10)).images
    assert found.shape == (2, 10, 10, 3)
    assert (found[:, 2:8, 2:8] == [0, 255, 0]).all()


@pytest.mark.parametrize("data", [b"", b"not an image", None])
def test_a_broken_image_is_named(tmp_path, data):
    tree = tmp_path / "tree" / "a"
    save_image(tree, "good.png", np.zeros((8, 8, 3), np.uint8))
    if data is None:                    # cut in the middle of its pixels
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        save_image(tree, "bad.jpg", noise)
        data = (tree / "bad.jpg").read_bytes()[:900]
    (tree / "bad.jpg").write_bytes(data)
    with pytest.raises(UserError, match=r"tree/a/bad\.jpg: not a readable image"):
        load(DataSettings(f"folder:{tmp_path / 'tree'}", size=8))


def test_trees_that_hold_no_classes_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(DataSettings(f"folder:{tmp_path / 'none'}", size=8))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: expected one folder of images per class"):
        load(DataSettings(f"folder:{tmp_path / 'empty'}", size=8))
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"hollow: expected one folder of images per class"):
        load(DataSettings(f"folder:{tmp_path / 'hollow'}", size=8))
    save_image(tmp_path / "half" / "a", "1.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "half" / "void").mkdir()
    with pytest.raises(UserError, match="void"):
        load(DataSettings(f"folder:{tmp_path / 'half'}", size=8))


def test_a_folder_needs_a_size(tmp_path):
    save_image(tmp_path / "tree" / "a", "1.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="size"):
        load(DataSettings(f"folder:{tmp_path / 'tree'}"))


# --- .npz ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_an_npz_takes_any_whole_labels(tmp_path, images, labels, dtype):
    np.savez(tmp_path / "set.npz", images=images, labels=labels.astype(dtype))
    found = load(DataSettings(str(tmp_path / "set.npz")))
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.labels.dtype == np.int64
    assert found.num_classes == 10


@pytest.mark.parametrize(("arrays", "words"), [
    (lambda x, y: {"images": x}, "labels"),
    (lambda x, y: {"x": x, "labels": y}, "images"),
    (lambda x, y: {"images": x / 255, "labels": y}, "images are float64"),
    (lambda x, y: {"images": x.transpose(0, 3, 1, 2), "labels": y}, "must be uint8"),
    (lambda x, y: {"images": x, "labels": y.astype(float)}, "labels are float64"),
    (lambda x, y: {"images": x, "labels": np.full(60, np.nan)}, "labels are float64"),
    (lambda x, y: {"images": x, "labels": y.astype(str)}, "labels are <U"),
    (lambda x, y: {"images": x, "labels": y > 4}, "labels are bool"),
    (lambda x, y: {"images": x, "labels": y[:, None]}, "labels are int64"),
    (lambda x, y: {"images": x, "labels": y - 1}, "has label -1"),
    (lambda x, y: {"images": x, "labels": y * 0 - 1}, "row 0 has label -1"),
    (lambda x, y: {"images": x, "labels": y + 10**12}, "label"),
    (lambda x, y: {"images": x, "labels": y[:40]}, "60 images but 40 labels"),
    (lambda x, y: {"images": x[:0], "labels": y[:0]}, "empty"),
    (lambda x, y: {"images": x[:, :0], "labels": y}, "empty"),
    (lambda x, y: {"images": x[:, :, :0], "labels": y}, "empty"),
    (lambda x, y: {"images": x.astype(object), "labels": y}, "not a readable"),
    (lambda x, y: {"images": x, "labels": np.int64(3)}, "labels are int64"),
])
def test_a_wrong_npz_is_refused_by_name(tmp_path, images, labels, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays(images, labels))
    with pytest.raises(UserError, match=words) as caught:
        load(DataSettings(str(tmp_path / "bad.npz")))
    assert "bad" in str(caught.value)


def test_an_npz_with_two_arrays_of_one_name_is_refused(tmp_path, images, labels):
    buffer = io.BytesIO()
    np.save(buffer, 255 - images)
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    with zipfile.ZipFile(tmp_path / "set.npz", "a") as archive:
        archive.writestr("images", buffer.getvalue())
    with pytest.raises(UserError, match="two arrays of one name"):
        load(DataSettings(str(tmp_path / "set.npz")))


def test_an_npz_is_known_by_its_name_in_any_case(tmp_path, images, labels):
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    (tmp_path / "set.npz").rename(tmp_path / "SET.NPZ")
    assert len(load(DataSettings(str(tmp_path / "SET.NPZ")))) == len(images)


def test_an_unreadable_npz_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"none\.npz: no such file"):
        load(DataSettings(str(tmp_path / "none.npz")))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(UserError, match=r"bad\.npz is not a readable"):
        load(DataSettings(str(tmp_path / "bad.npz")))


# --- missing classes ---------------------------------------------------------------------------


@pytest.fixture
def by_class(tmp_path, images):
    """60 images of ten classes, ordered by class."""
    np.savez(tmp_path / "ordered.npz", images=images, labels=np.repeat(np.arange(10), 6))
    return tmp_path / "ordered.npz"


@pytest.mark.parametrize("words", [["--limit", "12"], ["split=first:12"], ["split=after:48"]])
@pytest.mark.parametrize("command", ["poison", "purify", "train", "evaluate"])
def test_every_command_says_which_classes_are_missing(by_class, images, labels, command, words):
    """A model that never saw eight of ten classes scores as if the set were poisoned."""
    np.savez("test.npz", images=images, labels=labels)
    main, *settings = {
        "poison": (poison, LSP, "lsp.patch=4"), "purify": (purify.main, GRAY),
        "train": (train_vae.main, CONFIGS / "purifiers/vae.yaml", "--dry-run"),
        "evaluate": (evaluate.main, EM60, "--dry-run", "test=test.npz")}[command]
    outcome = run_command(main, *settings, f"data={by_class}", "out=out", *words)
    assert outcome.status == 0, outcome.stderr
    [line] = [line for line in outcome.stderr.splitlines() if "classes" in line]
    assert line.startswith(f"note: the 12 rows of {by_class} hold 2 of 10 classes, and a model")
    missing = "0, 1, 2, 3, 4, 5, 6, 7" if "after" in words[0] else "2, 3, 4, 5, 6, 7, 8, 9"
    assert f"cannot know {missing}; split=spread:12 takes" in line


def test_a_set_with_all_classes_needs_no_note(by_class):
    outcome = run_command(purify.main, GRAY, f"data={by_class}", "split=spread:10", "out=out")
    assert outcome.status == 0
    assert "classes" not in outcome.stderr


def test_a_set_that_was_cut_before_is_noted_too(by_class):
    """The artefact remembers ten classes, and has images of one."""
    succeed(purify.main, GRAY, f"data={by_class}", "--limit", 6, "out=cut")
    outcome = run_command(purify.main, GRAY, "data=cut", "out=again")
    assert "the 6 rows of cut hold 1 of 10 classes" in outcome.stderr
    assert "spread" not in outcome.stderr       # of this there are no others


def test_a_planned_table_notes_missing_classes(by_class, capsys):
    Path("table.yaml").write_text(
        f"title: t\nsettings: {{data: {by_class}, test: {by_class}}}\nseeds: [0]\n"
        f"rows: {{lsp: {{poison: {LSP}, limit: 6}}}}\n"
        f"columns: {{none: []}}\nevaluate: {{evaluate: {EM60}}}\n")
    list(plan.Planner(spec.read_one("table.yaml")).cells())
    assert "the 6 rows of" in capsys.readouterr().err


# --- names and sizes -------------------------------------------------------------------------


def test_a_class_folder_is_pointed_to_its_prefix(tmp_path):
    save_image(tmp_path / "tree" / "a", "1.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"for a folder per class write folder:.*tree"):
        load(DataSettings(str(tmp_path / "tree")))


@pytest.mark.parametrize("source", ["cifar10", "IMAGESET", "NPZ"])
def test_a_size_is_refused_where_the_set_has_its_own(tmp_path, few_path, images, labels, source):
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    source = {"IMAGESET": str(few_path), "NPZ": str(tmp_path / "set.npz")}.get(source, source)
    with pytest.raises(UserError, match=r"size: .* has a size of its own"):
        load(DataSettings(source, size=32))


@pytest.mark.parametrize("size", [8, 24])
def test_digits_come_in_two_sizes(size):
    with pytest.raises(UserError, match="size: digits come in 16 or 32 pixels"):
        load(DataSettings("digits", size=size))


def test_describe():
    assert datasets.describe(load(DataSettings("digits"))) == "16x16 images of 10 classes"


# --- photos ----------------------------------------------------------------------------------


def test_photos_are_tiles_of_the_two_photographs():
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    train = load(DataSettings("photos", size=32))
    test = load(DataSettings("photos", size=32, split="test"))
    assert (len(train), len(test)) == (416, 104)
    np.testing.assert_array_equal(train.images[1], china[:32, 32:64])
    np.testing.assert_array_equal(test.images[0], china[:32, 4 * 32 : 5 * 32])
    np.testing.assert_array_equal(train.images[-1], flower[12 * 32 : 13 * 32, 18 * 32 : 19 * 32])
    assert np.bincount(train.labels).tolist() == [208, 208]
    small = load(DataSettings("photos"))
    assert small.images.shape == (416, 16, 16, 3)
    expected = china[:2, 32:34].reshape(-1, 3).astype(float).mean(0)
    assert np.abs(small.images[1, 0, 0] - expected).max() <= 0.5
