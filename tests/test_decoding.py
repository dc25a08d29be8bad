"""Folders decoded once: the pixels of Pillow's resizing, damaged pictures, kills, folders that
change, disks and memories that are too small; pets and ImageNet's first hundred classes."""

import contextlib
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIGS, ROOT, Death, content, operations, process, run_command, succeed
from PIL import Image

from core import decoding, large, memory, outlines, pictures
from core.datasets import DataSettings, load
from core.errors import UserError
from core.imageset import ImageSet
from core.origins import load_test
from core.request import parse
from poisons.__main__ import main as poison
from scripts.exchange.import_folder import main as import_folder

SIZE = 8


def picture(path, seed, width=12, height=9, mode="RGB", **options):
    """A JPEG of smooth noise."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    noise.resize((width, height), Image.Resampling.BILINEAR).convert(mode).save(
        path, "JPEG", **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes of six JPEGs of several shapes."""
    for i in range(12):
        picture(tmp_path / "photos" / "ab"[i // 6] / f"{i}.jpg", i, 9 + i, 20 - i)
    return tmp_path / "photos"


@pytest.fixture
def small_slices(monkeypatch):
    """Four pictures a slice, saved after each."""
    monkeypatch.setattr(decoding, "SLICE_ROWS", 4)
    monkeypatch.setattr("core.run.SAVE_SECONDS", 0.0)


def decoded(folder, *options):
    return succeed(import_folder, folder, "--size", SIZE, *options)


@pytest.mark.parametrize("fit", ["squash", "crop", "centre"])
def test_a_picture_of_the_size_stays_as_it_is(tmp_path, fit):
    """Test pictures of 32 pixels would else be blown up and lose their edge."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    np.testing.assert_array_equal(pictures.read_square(tmp_path / "picture.png", SIZE, fit), pixels)


def break_off(path):
    """Truncate a file, as a download that ended does."""
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("fit", ["squash", "crop", "centre"])
def test_pixels_are_pillows_bilinear_with_its_antialias(tmp_path, folder, fit):
    names, listed, labels = pictures.list_classes(folder)
    found = ImageSet.load(decoded(folder, "--fit", fit, "--out", tmp_path / "set"))
    assert (found.meta["classes"], found.labels.tolist()) == (names, labels.tolist())
    for pixels, file in zip(found.images, listed, strict=True):
        with Image.open(file) as image:
            side = {"squash": None, "crop": SIZE, "centre": 9}[fit]        # 8 * 8 / 7
            if side is None:
                expected = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            else:
                short = min(image.size)
                wide, high = (int(side * length / short) for length in image.size)
                whole = image.resize((wide, high), Image.Resampling.BILINEAR)
                left, top = round((wide - SIZE) / 2), round((high - SIZE) / 2)
                expected = whole.crop((left, top, left + SIZE, top + SIZE))
        np.testing.assert_array_equal(pixels, np.asarray(expected))
    rows = (tmp_path / "set/files.txt").read_text().splitlines()
    assert rows == [str(file.relative_to(folder)) for file in listed]


def test_cropped_it_is_the_set_that_every_command_would_decode(tmp_path, folder):
    direct = load(DataSettings(f"folder:{folder}", size=SIZE))
    stored = load(DataSettings(str(decoded(folder, "--fit", "crop"))))
    np.testing.assert_array_equal(stored.images, direct.images)
    assert stored.meta["root_digest"] == direct.fingerprint


def test_odd_pictures(tmp_path):
    """CMYK, grey, of one pixel, turned by EXIF."""
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(tmp_path / "x/a/cmyk.jpg", 0, mode="CMYK")
    picture(tmp_path / "x/a/grey.jpg", 1, mode="L")
    picture(tmp_path / "x/a/one.jpg", 2, 1, 1)
    picture(tmp_path / "x/a/turned.jpg", 3, exif=turned)
    plain = picture(tmp_path / "plain.jpg", 3)
    cmyk, grey, one, found = ImageSet.load(decoded(tmp_path / "x")).images
    with Image.open(plain) as image, Image.open(tmp_path / "x/a/cmyk.jpg") as inks:
        small = image.rotate(-90, expand=True).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found, np.asarray(small))
        small = inks.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(cmyk, np.asarray(small))
    assert (grey == grey[..., :1]).all()
    assert len(np.unique(one.reshape(-1, 3), axis=0)) == 1


# --- damaged pictures ------------------------------------------------------------------------


def test_a_damaged_picture_stops_the_work_by_its_name(folder, small_slices):
    break_off(folder / "b/7.jpg")
    outcome = run_command(import_folder, folder, "--size", SIZE)
    assert outcome.status == 1
    assert outcome.error == (f"{folder}/b/7.jpg: not a readable image; repair or remove it, or "
                             "leave it out by --skip-damaged")


@pytest.mark.parametrize("damaged", [["a/0.jpg"], ["a/3.jpg", "b/7.jpg"], ["b/11.jpg", "b/6.jpg"],
                                     ["a/0.jpg", "a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg"]])
def test_left_out_the_rest_closes_up(tmp_path, folder, small_slices, damaged):
    whole = ImageSet.load(decoded(folder, "--out", tmp_path / "whole"))
    _, listed, _ = pictures.list_classes(folder)
    kept = [row for row, file in enumerate(listed) if str(file.relative_to(folder)) not in damaged]
    for name in damaged:
        (folder / name).write_bytes(b"\xff\xd8 no picture")
    outcome = run_command(import_folder, folder, "--size", SIZE, "--skip-damaged", "--out",
                          tmp_path / "rest")
    assert f"damaged and left out: {len(damaged)} of 12 pictures: " in outcome.stderr
    assert all(name in outcome.stderr for name in damaged)
    rest = ImageSet.load(outcome.path)
    np.testing.assert_array_equal(rest.images, whole.images[kept])
    np.testing.assert_array_equal(rest.labels, whole.labels[kept])
    assert (rest.meta["decoded"]["files"], rest.meta["decoded"]["left_out"]) == (12, len(damaged))
    assert sorted((outcome.path / "damaged.txt").read_text().split()) == sorted(damaged)
    assert len((outcome.path / "files.txt").read_text().split()) == len(kept)


def test_the_stopped_line_goes_on_when_damaged_ones_may_be_left_out(folder, small_slices, tmp_path):
    break_off(folder / "b/11.jpg")
    run_command(import_folder, folder, "--size", SIZE, "--out", tmp_path / "set")
    outcome = run_command(import_folder, folder, "--size", SIZE, "--out", tmp_path / "set",
                          "--skip-damaged")
    assert "resuming" in outcome.stderr
    assert len(ImageSet.load(outcome.path)) == 11


def test_a_folder_of_damaged_pictures_is_no_set(tmp_path):
    picture(tmp_path / "x/a/1.jpg", 0)
    break_off(tmp_path / "x/a/1.jpg")
    outcome = run_command(import_folder, tmp_path / "x", "--size", SIZE, "--skip-damaged")
    assert outcome.error == f"{tmp_path}/x: none of its 1 pictures can be read"


@pytest.mark.parametrize("damaged", [False, True])
def test_killed_anywhere_the_same_bytes(tmp_path, folder, small_slices, damaged):
    if damaged:
        break_off(folder / "a/1.jpg")
        break_off(folder / "b/9.jpg")
    with operations() as seen:
        expected = content(decoded(folder, "--skip-damaged", "--out", tmp_path / "whole"))
    for moment in np.linspace(8, len(seen) - 3, 12).astype(int):
        out = tmp_path / f"died{moment}"
        with contextlib.suppress(Death), operations(moment):
            run_command(import_folder, folder, "--size", SIZE, "--skip-damaged", "--out", out)
        assert content(decoded(folder, "--skip-damaged", "--out", out)) == expected


# --- mistakes of the line --------------------------------------------------------------------


def test_what_is_named_in_the_place_of_a_folder_of_classes(tmp_path, folder):
    def error(*words):
        return run_command(import_folder, *words, "--size", SIZE).error

    assert error("nowhere") == "nowhere: no such folder"
    assert error(folder / "a/0.jpg") == (
        f"{folder}/a/0.jpg: a file, and no folder with a folder of images per class")
    assert error(folder, "--test", folder / "a/0.jpg").startswith(f"{folder}/a/0.jpg: a file")
    assert error(folder, "--test", folder) == (
        f"--test: {folder} is the folder that is trained on; name another")
    assert error(folder / "a").endswith(
        "found none; put the images that lie in it into a folder for each class")
    assert error(folder, "--name", "a/b") == "--name: 'a/b' cannot name a folder; write 'a_b'"
    for out in (folder, folder / "set"):
        assert error(folder, "--out", out) == (
            f"--out: {out} lies in {folder}, which is read as FOLDER; name a folder elsewhere")


def test_a_folder_of_any_name_gives_a_set_its_name(folder):
    folder = folder.rename(folder.with_name(".photos"))
    assert decoded(folder).name.startswith("_photos-8")


def test_other_work_in_the_way_is_said_in_the_words_of_this_line(tmp_path, folder):
    decoded(folder, "--out", "mine")
    outcome = run_command(import_folder, folder, "--size", 9, "--out", "mine")
    assert outcome.error.endswith("; choose another --out, or --force to move it aside")


def test_what_is_left_out_is_said_once(folder):
    (folder / "a/list.csv").write_text("1.jpg")
    outcome = run_command(import_folder, folder, "--size", SIZE)
    assert outcome.stderr.count("left out") == 1
    assert "1 file (.csv)" in outcome.stderr


# --- what is too small, and what changes -----------------------------------------------------


def test_a_folder_that_grows_while_it_is_read(folder, small_slices, monkeypatch):
    read = decoding.read_square

    def slowly(file, *how):
        if file.name == "7.jpg" and not (folder / "a/new.jpg").exists():
            shutil.copy(file, folder / "a/new.jpg")
            shutil.copy(file, folder / "a/newer.jpg")
        return read(file, *how)

    monkeypatch.setattr(decoding, "read_square", slowly)
    outcome = run_command(import_folder, folder, "--size", SIZE, "--out", "set")
    assert outcome.error == (f"{folder}/a/new.jpg came while the folder was read, and 1 more; "
                             "repeat the line once nothing writes to it")
    assert len(ImageSet.load(decoded(folder, "--out", "set"))) == 14        # the same line


def test_other_files_may_come(folder, small_slices, monkeypatch):
    read = decoding.read_square
    monkeypatch.setattr(decoding, "read_square", lambda file, *how: (
        (folder / "a/Thumbs.db").write_bytes(b"x"), read(file, *how))[1])
    assert len(ImageSet.load(decoded(folder))) == 12


def test_too_little_disk_is_said_before_the_work(folder, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: usage(1000, 0, 1000))
    monkeypatch.setattr(decoding, "read_square", None)
    outcome = run_command(import_folder, folder, "--size", SIZE, "--out", "set")
    assert outcome.error == (
        "set.partial/images.npy: 12 images of 8x8 are 0.0 MB, and its disk has 0.0 MB left; make "
        "room or name another folder")


def test_a_folder_larger_than_memory_says_how_to_read_it(folder, monkeypatch):
    monkeypatch.setattr(memory, "left", lambda: 1000)
    with pytest.raises(UserError) as caught:
        load(DataSettings(f"folder:{folder}", size=224))
    assert str(caught.value) == (
        f"folder:{folder}: 12 images of 224x224 are 1.8 MB, and 0.0 MB of memory are left; decode "
        f"them once: python scripts/import_folder.py {folder} --size 224 --fit crop")


def test_memory_that_is_left_is_some_of_the_machines():
    machines = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 1 << 20 < memory.left() < machines


# --- a set for the pipeline ------------------------------------------------------------------


def test_train_and_test_of_one_line(tmp_path, folder):
    for i in range(4):
        picture(tmp_path / "val" / "ab"[i // 2] / f"{i}.jpg", 50 + i)
    path = decoded(folder, "--test", tmp_path / "val", "--out", "runs/mine")
    train = load(DataSettings(str(path)))
    test = load_test(train, DataSettings(str(path)))
    assert (len(train), len(test), test.meta["decoded"]["fit"]) == (12, 4, "centre")
    made = succeed(poison, "method=random_signs", f"data={path}")
    meta = json.loads((made / "meta.json").read_text())
    assert meta["root"]["data"] == "runs/mine"
    assert meta["root_digest"] == train.meta["root_digest"]
    shutil.move(tmp_path / "val/b", tmp_path / "val/c")
    outcome = run_command(import_folder, folder, "--size", SIZE, "--test", tmp_path / "val")
    assert outcome.error == (f"--test: class 1 of {tmp_path}/val is 'c', and 'b' of {folder}: name "
                             "their folders alike")
    shutil.copytree(tmp_path / "val/c", tmp_path / "val/b")
    outcome = run_command(import_folder, folder, "--size", SIZE, "--test", tmp_path / "val")
    assert outcome.error == (f"--test: class 2 of {tmp_path}/val is 'c', and {folder} has no such "
                             "class")


def test_shuffled_rows_have_their_names(tmp_path, folder):
    plain = ImageSet.load(decoded(folder, "--out", "plain"))
    mixed = ImageSet.load(decoded(folder, "--shuffled", "--out", "mixed"))
    names, others = (Path(name, "files.txt").read_text().split() for name in ("plain", "mixed"))
    order = [names.index(name) for name in others]
    assert sorted(order) == list(range(12)) != order
    np.testing.assert_array_equal(mixed.images, plain.images[order])
    np.testing.assert_array_equal(mixed.labels, plain.labels[order])


# --- by name ---------------------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path):
    """oxford-iiit-pet of two breeds, two images each for training and one for testing."""
    base = tmp_path / "data/oxford-iiit-pet"
    for i, name in enumerate(("Abyssinian_1", "Abyssinian_2", "great_dane_1", "great_dane_2",
                              "Abyssinian_3", "great_dane_3")):
        picture(base / "images" / f"{name}.jpg", i)
    (base / "annotations").mkdir()
    (base / "annotations/trainval.txt").write_text(
        "great_dane_2 2 2 1\nAbyssinian_1 1 1 1\nAbyssinian_2 1 1 1\ngreat_dane_1 2 2 1\n")
    (base / "annotations/test.txt").write_text("Abyssinian_3 1 1 1\ngreat_dane_3 2 2 1\n")
    return base


def test_pets_are_torchvisions_in_its_order(pets, capsys):
    train = load(DataSettings("pets", size=SIZE))
    assert train.meta["classes"] == ["Abyssinian", "Great Dane"]
    assert train.labels.tolist() == [1, 0, 0, 1]
    expected = pictures.read_square(pets / "images/great_dane_2.jpg", SIZE, "centre")
    np.testing.assert_array_equal(train.images[0], expected)
    test = load_test(train, DataSettings("pets", size=SIZE))
    assert (len(test), test.meta["root"]["split"]) == (2, "test")
    assert load(DataSettings("pets")).image_shape == (224, 224)
    capsys.readouterr()
    again = load(DataSettings("pets", size=SIZE))           # decoded once
    assert again.fingerprint == train.fingerprint == train.meta["root_digest"]
    assert isinstance(again.images, np.memmap)
    assert capsys.readouterr().err == ""


def test_pets_that_are_not_there(tmp_path, pets, monkeypatch):
    (pets / "images/Abyssinian_2.jpg").unlink()
    with pytest.raises(UserError, match=r"Abyssinian_2\.jpg: no such file.* restore it"):
        load(DataSettings("pets", size=SIZE))
    shutil.rmtree(pets)
    monkeypatch.setattr("torchvision.datasets.OxfordIIITPet._download", lambda self: None)
    with pytest.raises(UserError, match="pets is not in 'data' and could not be downloaded"):
        load(DataSettings("pets", size=SIZE))


@pytest.fixture
def imagenet(tmp_path):
    """train/ and val/ of ILSVRC-2012: 102 synsets, of which the first and the hundredth are
    its own; three images of the first two."""
    root = tmp_path / "ilsvrc"
    between = [f"n0144{number:04d}" for number in range(1000, 1098)]
    synsets = ["n01440764", *between, "n01855672", "n01860187", "n01871265"]
    for number, name in enumerate(synsets):
        for i in range(10 if number < 2 else 1):
            picture(root / "train" / name / f"{name}_{i}.JPEG", 10 * number + i)
        picture(root / "val" / name / f"ILSVRC2012_val_{number:08d}.JPEG", 2000 + number)
    return root


def test_imagenet100_is_the_first_hundred_classes_squashed(imagenet):
    settings = DataSettings("imagenet100", size=SIZE, root=str(imagenet))
    train = load(settings)
    assert (len(train), train.num_classes) == (118, 100)
    assert (train.meta["classes"][0], train.meta["classes"][-1]) == ("n01440764", "n01855672")
    file = imagenet / "train/n01440764/n01440764_0.JPEG"
    np.testing.assert_array_equal(train.images[0], pictures.read_square(file, SIZE, "squash"))
    test = load_test(train, settings)
    assert (len(test), test.num_classes) == (100, 100)
    file = imagenet / "val/n01440764/ILSVRC2012_val_00000000.JPEG"
    np.testing.assert_array_equal(test.images[0], pictures.read_square(file, SIZE, "centre"))


def test_a_part_of_every_class(imagenet):
    settings = DataSettings("imagenet100", size=SIZE, root=str(imagenet), class_fraction=0.25)
    train = load(settings)
    assert np.bincount(train.labels).tolist() == [2, 2] + [1] * 98
    assert len(load_test(train, settings)) == 100           # all of it
    whole = load(DataSettings("imagenet100", size=SIZE, root=str(imagenet)))
    np.testing.assert_array_equal(train.images[:2], whole.images[:2])
    assert train.fingerprint != whole.fingerprint


def test_classes_are_a_list_and_are_remembered(imagenet):
    words = ["method=random_signs", "data=imagenet100", f"size={SIZE}", f"root={imagenet}",
             "classes=[n01871265,n01440764]"]
    made = succeed(poison, *words)
    meta = json.loads((made / "meta.json").read_text())
    assert meta["classes"] == meta["root"]["classes"] == ["n01440764", "n01871265"]
    poisoned = load(DataSettings(str(made), root=str(imagenet)))
    test = load_test(poisoned, DataSettings(str(made), root=str(imagenet)))
    assert test.meta["classes"] == meta["classes"]
    assert meta["test_digest"] == test.fingerprint


def test_processes_find_what_the_first_of_them_decoded(imagenet):
    """Two share a learner: training images and test images are decoded once, by one of them."""
    both = process(ROOT / "evaluate.py", "method=simclr", "data=imagenet100", f"size={SIZE}",
                   f"root={imagenet}", "threads=1", "simclr.width=2", "simclr.steps=1",
                   "simclr.batch_size=16", "simclr.neighbours=5", "simclr.probe.epochs=1",
                   "out=record", ranks=2)
    try:
        _, stderr = both.communicate(timeout=120)
    finally:
        both.kill()
    assert both.returncode == 0, stderr
    assert len(list(large.DECODED.glob("*/meta.json"))) == 2


@pytest.mark.parametrize(("change", "message"), [
    ({"root": "nowhere"}, "nowhere/train: no such folder; root= names the folder"),
    ({"classes": ("n1", "n01440764")}, "no folder of the class 'n1'"),
    ({"classes": ("n01440764", "n01440764")}, "a class is named twice"),
    ({"data": "digits", "class_fraction": 0.5}, "digits takes none; they are imagenet100's"),
    ({"data": "digits", "classes": ("1",)}, "digits takes none; they are imagenet100's"),
])
def test_mistakes(imagenet, change, message):
    given = {"data": "imagenet100", "size": SIZE, "root": str(imagenet)}
    with pytest.raises(UserError, match=message):
        load(DataSettings(**given | change))


def test_another_hundred_classes_are_not_taken_for_them(imagenet):
    """CMC's ImageNet-100 is a random choice, in folders of the same form."""
    shutil.rmtree(imagenet / "train/n01440764")
    with pytest.raises(UserError, match="ILSVRC-2012's first 100 are n01440764 to n01855672"):
        load(DataSettings("imagenet100", size=SIZE, root=str(imagenet)))


def test_plans_decode_nothing(pets, imagenet, monkeypatch):
    monkeypatch.setattr(decoding, "read_square", None)
    with outlines.allowed():
        here = load(DataSettings("pets", size=SIZE))
        assert (len(here), here.num_classes, here.meta["unknown"]) == (4, 2, True)
        parts = DataSettings("imagenet100", root=str(imagenet), class_fraction=0.1)
        assert load(parts).images.shape == (100, 224, 224, 3)
        shutil.rmtree(pets)
        for name, rows in (("pets", (3680, 3669)), ("imagenet100", (130_000, 5_000))):
            for split, count in zip(("train", "test"), rows, strict=True):
                found = load(DataSettings(name, split, size=64, root="data"))
                assert found.images.shape == (count, 64, 64, 3)
                assert found.meta["root"] == {"data": name, "size": 64, "split": split}
    assert not large.DECODED.exists()


@pytest.mark.parametrize("word", ["data=imagenet100", "like=imagenet100"])
def test_methods_have_values_for_imagenet(word):
    request = parse([str(CONFIGS / "poisons/lsp.yaml"), word], "", "poison")
    assert (request.config.patch, request.fit) == (32, "")
