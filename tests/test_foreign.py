"""Each format of other people's poisons, made as its origin makes it; files that are none."""

import os
import pickle
import re
from pathlib import Path

import foreign
import numpy as np
import pytest
import torch
from foreign import (
    ROWS,
    K,
    imported,
    make_avatar,
    make_eclipse,
    make_em,
    make_pngs,
    nchw,
    run_import,
    wrong,
)
from PIL import Image

from core.imageset import ImageSet

# fixtures
base, clean, noise, poisoned = foreign.base, foreign.clean, foreign.noise, foreign.poisoned


def make_dvae_imagenet(path: Path, noise: np.ndarray, *_) -> None:     # pixel units
    torch.save(torch.from_numpy(nchw(noise)).float(), path)


def make_rem(path: Path, noise: np.ndarray, *_) -> None:               # REM, SEM
    path.write_bytes(pickle.dumps(nchw(noise).astype(np.int8), protocol=2))


def make_tiffs(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    """What a folder that is a data set may hold, an import may hold too."""
    path.mkdir()
    for row in range(len(images)):
        Image.fromarray(images[row]).save(path / f"{row}.TIF", "TIFF")


def make_tap_numpy(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    np.save(path, images.astype(np.float64))
    np.save(path.with_name(f"{path.stem}_labels.npy"), labels)


def make_sep(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    path.mkdir()
    for start in range(0, ROWS, 5):             # 5-10 sorts after 10-15 as text
        np.save(path / f"eps8-1_iter30_sp{start}-{start + 5}_ts5.npy",
                nchw(images[start : start + 5]).astype(np.float32) / 255)


def make_hypo(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    torch.save((torch.from_numpy(nchw(images)).float() / 255, torch.from_numpy(labels)), path)


def make_pil(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    torch.save({"data": torch.from_numpy(nchw(images)).float() / 255,
                "labels": torch.from_numpy(labels)}, path)


def make_batches(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    path.mkdir()
    for i, rows in enumerate(np.array_split(np.arange(ROWS), 5), 1):
        planes = nchw(images[rows]).reshape(len(rows), -1)
        (path / f"data_batch_{i}").write_bytes(pickle.dumps(
            {b"data": planes, b"labels": labels[rows].tolist(), b"batch_label": b"x"}, protocol=2))


def make_dvae_purified(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    np.save(path, images)
    np.save(path.with_name(path.name.replace("data", "target")), labels)


def make_classes(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    for row, label in enumerate(labels):
        (path / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[row]).save(path / str(label) / f"{row}.png")


def make_aue_list(path: Path, noise: np.ndarray, *_) -> None:
    torch.save([torch.from_numpy(part).float() / 255 for part in nchw(noise)], path)


FORMATS = [("perturbation.pt", make_em), ("imagenet.pt", make_dvae_imagenet),
           ("rem-fin-def-noise.pkl", make_rem), ("tap", make_pngs), ("tiffs", make_tiffs),
           ("poisoned.npy", make_tap_numpy),
           ("samples", make_sep), ("linf.pt", make_hypo), ("unlearnable.pt", make_pil),
           ("avatar.npz", make_avatar), ("EM.pkl", make_eclipse), ("batches", make_batches),
           ("cifar10_data.npy", make_dvae_purified), ("classes", make_classes),
           ("list.pt", make_aue_list)]


@pytest.mark.parametrize(("name", "make"), FORMATS, ids=[name for name, _ in FORMATS])
def test_every_format_comes_to_the_same_rows(tmp_path, base, clean, noise, poisoned, name, make):
    make(tmp_path / name, noise, poisoned, np.array(clean.labels))
    found = imported(tmp_path / name, base, "--norm", "linf", "--radius", "8/255")
    np.testing.assert_array_equal(found, poisoned)


def test_values_and_shapes_that_are_no_images(tmp_path, base, noise):
    values = nchw(noise).astype(np.float32) / 255
    values[23, 1, 2, 3] = np.nan
    torch.save(torch.from_numpy(values), tmp_path / "nan.pt")
    assert "nan.pt: row 23 is not finite" in wrong(tmp_path / "nan.pt", base)
    np.save(tmp_path / "flat.npy", np.zeros((60, 7)))
    assert "an array of shape (60, 7); expected" in wrong(tmp_path / "flat.npy", base)
    np.savez(tmp_path / "small.npz", data=np.full((60, 16, 16, 3), 128, np.uint8))
    assert "images of 16x16, but those of the base set are 32x32" in \
        wrong(tmp_path / "small.npz", base)
    np.savez(tmp_path / "same.npz", data=ImageSet.load(base).images)
    assert "these are the base set's images, unchanged" in wrong(tmp_path / "same.npz", base)


def test_files_that_are_none(tmp_path, base):
    assert "no such file or folder" in wrong(tmp_path / "none.pt", base)
    (tmp_path / "poison.zip").write_bytes(b"x")
    assert "a poison comes as .pt, .pkl, .npy, .npz or a folder" in wrong(tmp_path / "poison.zip",
                                                                         base)
    (tmp_path / "torn.pkl").write_bytes(pickle.dumps(np.zeros(9))[:40])
    assert "not a whole pickle of plain data" in wrong(tmp_path / "torn.pkl", base)
    (tmp_path / "empty").mkdir()
    assert "neither <index>.png, nor a folder a class" in wrong(tmp_path / "empty", base)


@pytest.mark.parametrize(("name", "found", "message"), [
    ("text.pkl", {b"\xff": 1}, "holds a dict of"),
    ("names.pkl", {"img": 1}, "arrays by name, images or noise as data, images, x, "),
    ("ragged.pkl", [(np.zeros((2, 3)), 0), (np.zeros((3, 2)), 1)], "holds a list"),
    ("nested.pkl", [([[1], [2, 3]], 0), ([[1], [2, 3]], 1)], "no arrays of numbers"),
    ("ragpair.pkl", (np.zeros((2, 3, 32, 32)), [[1], [2, 3]]), "its labels are no numbers"),
    ("huge.pkl", (np.zeros((2, 3, 32, 32)), [2**70, 1]), "its labels are no numbers"),
    ("nan.pkl", (np.zeros((2, 3, 32, 32)), [np.nan, 1]), "its labels are no numbers"),
])
def test_odd_objects_get_a_sentence(tmp_path, base, name, found, message):
    (tmp_path / name).write_bytes(pickle.dumps(found))
    outcome = run_import(tmp_path / name, base)
    assert outcome.status == 1
    assert message in outcome.error


def test_pictures_that_do_not_go_together(tmp_path, base, poisoned):
    """One number twice, and another size: each by the name of the file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for row, image in enumerate((poisoned[0], poisoned[1][:16], poisoned[2])):
        Image.fromarray(image).save(folder / f"{row}.png")
    assert f"{folder}/1.png is 32x16, but 0.png is 32x32" in wrong(folder, base)
    Image.fromarray(poisoned[1]).save(folder / "1.png")
    Image.fromarray(poisoned[1]).save(folder / "01.png")
    assert re.search(r"/0?1\.png and 0?1\.png have one number", wrong(folder, base))


def test_parts_of_different_shapes(tmp_path, base, poisoned):
    folder = tmp_path / "parts"
    folder.mkdir()
    np.save(folder / "0.npy", poisoned[:30])
    np.save(folder / "1.npy", poisoned[30:, :16])
    assert "parts of different shapes, ['(16, 32, 3)', '(32, 32, 3)']" in wrong(folder, base)


def test_tensors_with_a_gradient_are_plain_tensors(tmp_path, base, clean, poisoned):
    images = torch.from_numpy(nchw(poisoned) / np.float32(255)).requires_grad_()
    labels = torch.from_numpy(np.eye(K, dtype=np.float32)[clean.labels]).requires_grad_()
    torch.save((images, labels), tmp_path / "pair.pt")
    torch.save([(image, int(label)) for image, label in zip(images, clean.labels, strict=True)],
               tmp_path / "list.pt")
    for name in ("pair.pt", "list.pt"):
        np.testing.assert_array_equal(imported(tmp_path / name, base), poisoned)


@pytest.mark.parametrize("save", [
    lambda path, images, labels: np.savez(path, images),
    lambda path, images, labels: np.savez(path, images, labels),
    lambda path, images, labels: np.savez(path, x_train=images, y_train=labels)])
def test_an_npz_as_people_save_it(tmp_path, base, clean, poisoned, save):
    save(tmp_path / "set.npz", poisoned, clean.labels)
    np.testing.assert_array_equal(imported(tmp_path / "set.npz", base), poisoned)
    wrong_labels = np.roll(clean.labels, 1)
    save(tmp_path / "wrong.npz", poisoned, wrong_labels)
    if len(np.load(tmp_path / "wrong.npz").files) > 1:
        assert "labels disagree with the base set" in run_import(tmp_path / "wrong.npz", base).error


def test_an_npz_by_another_name_is_no_npy(tmp_path, base, poisoned):
    np.savez(tmp_path / "set.npz", data=poisoned)
    (tmp_path / "set.npz").rename(tmp_path / "set.npy")
    assert "set.npy is not a readable .npy" in wrong(tmp_path / "set.npy", base)


def test_a_folder_of_parts_may_hold_their_labels(tmp_path, base, clean, poisoned):
    folder = tmp_path / "parts"
    folder.mkdir()
    np.save(folder / "x.npy", poisoned)
    np.save(folder / "x_labels.npy", np.array(clean.labels))
    np.testing.assert_array_equal(imported(folder, base), poisoned)


def test_what_unfolds_in_memory_is_refused(tmp_path, base):
    """References to one image, a row that claims to be many."""
    pair = (bytes(3072), 1)
    (tmp_path / "pairs.pkl").write_bytes(pickle.dumps([pair] * 5000))
    torch.save(torch.zeros(1).expand(5000, 3, 32, 32), tmp_path / "expanded.pt")
    torch.save([torch.zeros(1).expand(3, 32, 32)] * 5000, tmp_path / "list.pt")
    nested = [[0] * 2000] * 2000
    for name, found in (("rows", [(nested, 1)] * 1000),
                        ("labels", (np.zeros((1000, 3, 2, 2)), [nested] * 1000))):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(found))
    assert "no arrays of numbers" in run_import(tmp_path / "rows.pkl", base).error
    assert "labels are no numbers" in run_import(tmp_path / "labels.pkl", base).error
    for name in ("pairs.pkl", "expanded.pt", "list.pt"):
        error = run_import(tmp_path / name, base).error
        assert f"{name}: claims " in error, error
        assert "bytes but holds" in error


def test_two_tensors_are_no_pair_of_images_and_labels(tmp_path, base, noise):
    one = torch.from_numpy(nchw(noise)).float() / 255
    torch.save([one, one], tmp_path / "two.pt")
    np.testing.assert_array_equal(
        imported(tmp_path / "two.pt", base),
        np.clip(ImageSet.load(base).images.astype(int) + noise, 0, 255))    # candidate 0


def test_a_root_of_several_poisons_says_which_to_name(tmp_path, base, clean, poisoned):
    labels = np.array(clean.labels)
    for name in ("targeted", "untargeted"):
        make_pngs(tmp_path / "tap" / name, None, poisoned, labels)
    assert "tap: neither <index>.png, nor a folder a class, nor data_batch_1 is here; name " \
        "targeted or untargeted in it" in wrong(tmp_path / "tap", base)
    assert "; name tap/targeted or tap/untargeted in it" in wrong(tmp_path, base)
    np.testing.assert_array_equal(imported(tmp_path / "tap" / "targeted", base), poisoned)
    make_classes(tmp_path / "full" / "train", None, poisoned, labels)
    make_classes(tmp_path / "full" / "test", None, poisoned[:9], labels[:9])
    assert "; name test or train in it" in run_import(tmp_path / "full", base).error
    (tmp_path / "em").mkdir()
    make_em(tmp_path / "em" / "perturbation.pt", poisoned)
    assert "; name perturbation.pt in it" in run_import(tmp_path / "em", base).error
    for name in ("targeted", "untargeted"):         # pictures right in them: no classes
        (tmp_path / "flat").mkdir(exist_ok=True)
        os.rename(tmp_path / "tap" / name / "data", tmp_path / "flat" / name)
    assert "2 folders of images (targeted, untargeted), but the base set has 10 classes; name " \
        "the one folder that holds the poison" in run_import(tmp_path / "flat", base).error
