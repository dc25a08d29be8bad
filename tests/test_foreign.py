"""Importing other people's poisons: each format made as its origin makes it, and what is wrong with
a file named. Exports come back the same."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import digest, run_command, write_imageset
from PIL import Image

from core import lock, pickles
from core.datasets import DataSettings, load
from core.errors import UserError
from core.imageset import ImageSet
from core.splits import rows_split, split_rows
from scripts.exchange import aligning, export, import_poison, units
from scripts.pictures import inspect_poison

ROWS, K = 60, 10


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """60 structured images of 32x32, by ten labels in no order."""
    random = np.random.default_rng(0)
    coarse = random.integers(20, 236, (ROWS, 8, 8, 3))
    images = coarse.repeat(4, 1).repeat(4, 2) + random.integers(-12, 13, (ROWS, 32, 32, 3))
    labels = random.permutation(np.arange(ROWS) % K)
    return write_imageset(tmp_path_factory.mktemp("base") / "base", images.astype(np.uint8), labels)


@pytest.fixture(scope="module")
def clean(base) -> ImageSet:
    return ImageSet.load(base)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """Grey levels from -8 to 8, int64 (60, 32, 32, 3)."""
    return np.random.default_rng(1).integers(-8, 9, (ROWS, 32, 32, 3))


@pytest.fixture(scope="module")
def poisoned(clean, noise) -> np.ndarray:
    return np.clip(clean.images.astype(int) + noise, 0, 255).astype(np.uint8)


def run_import(path: object, base: Path, *words: object):
    return run_command(import_poison.main, path, "--base", base, *words)


def imported(path: object, base: Path, *words: object) -> np.ndarray:
    outcome = run_import(path, base, *words)
    assert outcome.status == 0, outcome.stderr
    found = ImageSet.load(outcome.path)
    np.testing.assert_array_equal(found.labels, ImageSet.load(base).labels[: len(found)])
    return np.array(found.images)


def nchw(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))


# --- every format ----------------------------------------------------------------------------


def make_em(path: Path, noise: np.ndarray, *_) -> None:                # EM, TUE, LE, D-VAE
    torch.save(torch.from_numpy(nchw(noise)).float() / 255, path)


def make_dvae_imagenet(path: Path, noise: np.ndarray, *_) -> None:     # pixel units
    torch.save(torch.from_numpy(nchw(noise)).float(), path)


def make_rem(path: Path, noise: np.ndarray, *_) -> None:               # REM, SEM
    path.write_bytes(pickle.dumps(nchw(noise).astype(np.int8), protocol=2))


def make_pngs(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:  # TAP, AR
    (path / "data").mkdir(parents=True)
    for row in reversed(range(len(images))):
        Image.fromarray(images[row]).save(path / "data" / f"{row}.png")


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


def make_avatar(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    np.savez(path, data=images, targets=labels)


def make_eclipse(path: Path, _, images: np.ndarray, labels: np.ndarray) -> None:
    path.write_bytes(pickle.dumps([(image.tobytes(), int(label))
                                   for image, label in zip(images, labels, strict=True)]))


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


def test_the_lineage_names_the_file(tmp_path, base, noise):
    make_em(tmp_path / "em8.pt", noise)
    outcome = run_import(tmp_path / "em8.pt", base, "--name", "em")
    meta = json.loads((outcome.path / "meta.json").read_text())
    [step] = meta["lineage"]
    assert (step["method"], step["preset"]) == ("import", "em")
    assert step["imported"]["sha256"] == digest(tmp_path / "em8.pt")
    assert step["imported"]["source"].endswith("em8.pt")
    assert step["inputs"]["data"] == ImageSet.load(base).fingerprint
    assert meta["test"] == ImageSet.load(base).meta["test"]
    assert "noise an image in units of [0, 1]" in outcome.stderr
    assert "Linf 8/255" in outcome.stderr
    again = run_import(tmp_path / "em8.pt", base, "--name", "em")
    assert "already done" in again.stderr


def test_class_wise_universal_and_candidate_noise(tmp_path, base, clean):
    random = np.random.default_rng(2)
    labels = clean.labels
    by_class = random.integers(-8, 9, (K, 32, 32, 3))
    for values, rows in ((by_class, labels), (by_class[:1], np.zeros(ROWS, int))):
        path = tmp_path / f"noise{len(values)}.pt"
        torch.save(torch.from_numpy(nchw(values)).float() / 255, path)
        expected = np.clip(clean.images.astype(int) + values[rows], 0, 255)
        np.testing.assert_array_equal(imported(path, base), expected)
    several = random.integers(-8, 9, (3, ROWS, 3, 32, 32))
    torch.save(torch.from_numpy(several).float() / 255, tmp_path / "several.pt")
    expected = np.clip(clean.images.astype(int) + several[2].transpose(0, 2, 3, 1), 0, 255)
    np.testing.assert_array_equal(imported(tmp_path / "several.pt", base, "--candidate", 2),
                                  expected)
    assert "there is no number 3" in run_import(tmp_path / "several.pt", base, "--candidate",
                                                3).error


def test_a_pool_by_label(tmp_path, base, clean):
    """LSP's simple_data.npy: the i-th image of class c gets the i-th row of label c."""
    random = np.random.default_rng(3)
    pool_labels = random.permutation(np.arange(3 * ROWS) % K)
    pool = random.uniform(-0.05, 0.05, (3 * ROWS, 32, 32, 3)).astype(np.float32)
    np.save(tmp_path / "simple_data.npy", pool)
    np.save(tmp_path / "simple_label.npy", pool_labels)
    expected, used = np.empty((ROWS, 32, 32, 3)), {}
    for row, label in enumerate(clean.labels):
        nth = used.get(label, 0)
        used[label] = nth + 1
        expected[row] = pool[np.flatnonzero(pool_labels == label)[nth]]
    expected = np.rint(np.clip(clean.images + 255 * expected.astype(np.float64), 0, 255))
    np.testing.assert_array_equal(imported(tmp_path / "simple_data.npy", base), expected)


def test_ntgas_own_order(tmp_path, base, clean, poisoned):
    """Shuffled, fewer than the base, floats with one-hot labels: matched to the nearest image."""
    order = np.random.default_rng(4).permutation(ROWS)[:48]
    np.save(tmp_path / "x_train_cifar10_ntga_cnn_best.npy", poisoned[order] / np.float32(255))
    np.save(tmp_path / "y_train_cifar10.npy", np.eye(K)[clean.labels[order]])
    outcome = run_import(tmp_path / "x_train_cifar10_ntga_cnn_best.npy", base)
    assert outcome.status == 0, outcome.stderr
    found = ImageSet.load(outcome.path)
    rows = np.sort(order)
    np.testing.assert_array_equal(found.images, poisoned[rows])
    np.testing.assert_array_equal(found.labels, clean.labels[rows])
    assert found.meta["root"]["split"].startswith("rows:")


def test_images_that_are_nearly_there_twice(tmp_path, clean, noise):
    """CIFAR-10 has near-duplicates, some under two labels, and images that are there twice."""
    images, labels = np.array(clean.images), np.array(clean.labels)
    images[1] = np.clip(images[0].astype(int) + np.roll(noise[0], 5) * 2, 0, 255)   # by 9 levels
    images[3], labels[3] = images[2], (labels[2] + 1) % K
    images[5], labels[5] = images[4], labels[4]
    base = write_imageset(tmp_path / "twice", images, labels)
    poisoned = np.clip(images.astype(int) + noise // 2, 0, 255).astype(np.uint8)
    order = np.random.default_rng(6).permutation(ROWS)
    np.savez(tmp_path / "set.npz", data=poisoned[order], targets=labels[order])
    found = imported(tmp_path / "set.npz", base)
    same = [row for row in range(ROWS) if row not in (4, 5)]    # nothing tells these two apart
    np.testing.assert_array_equal(found[same], poisoned[same])
    np.testing.assert_array_equal(np.sort(found[4:6].ravel()), np.sort(poisoned[4:6].ravel()))

    poisoned[7] = poisoned[8]
    np.savez(tmp_path / "lost.npz", data=poisoned[order], targets=labels[order])
    assert "do not match images of the base set one to one; image " in run_import(
        tmp_path / "lost.npz", base).error


def test_blurred_images_without_labels_are_matched(tmp_path, base, clean):
    """CUDA's: no small noise, each divided by its own maximum."""
    from poisons.__main__ import main as poison_main

    blurred = np.array(ImageSet.load(run_command(poison_main, "method=cuda",
                                                 f"data={base}").path).images)
    order = np.random.default_rng(7).permutation(ROWS)[:50]
    np.save(tmp_path / "part.npy", blurred[order])
    outcome = run_import(tmp_path / "part.npy", base)
    assert outcome.status == 0, outcome.stderr
    np.testing.assert_array_equal(ImageSet.load(outcome.path).images, blurred[np.sort(order)])


def test_who_finds_all_taken_sends_another_on():
    assert aligning.assign([[0, 1], [0]], np.array([0, 1])).tolist() == [1, 0]
    assert aligning.assign([[0], [0], [2]], np.array([0, 1, 2])).tolist() == [0, -1, 2]


def test_other_numbers_of_labels_than_images(tmp_path, base, clean, poisoned):
    for count in (40, 50):
        np.savez(tmp_path / "x.npz", data=poisoned[10:55], targets=clean.labels[:count])
        assert f"{count} labels for 45 images" in run_import(tmp_path / "x.npz", base).error


def test_smaller_noise_is_centred(tmp_path, base, clean):
    values = np.full((ROWS, 3, 24, 24), 8 / 255, np.float32)
    torch.save(torch.from_numpy(values), tmp_path / "patch.pt")
    found = imported(tmp_path / "patch.pt", base, "--units", "noise").astype(int) - clean.images
    assert (found[:, 4:28, 4:28] == np.minimum(8, 255 - clean.images[:, 4:28, 4:28])).all()
    found[:, 4:28, 4:28] = 0
    assert (found == 0).all()


# --- the arithmetic of the releases ----------------------------------------------------------


def em_loader(images: np.ndarray, perturbation: torch.Tensor, positive: bool) -> np.ndarray:
    """EM's PoisonCIFAR10, image by image (its dataset.py)."""
    noise = perturbation.mul(255).clamp_(0 if positive else -255, 255).permute(0, 2, 3, 1).numpy()
    data = images.astype(np.float32)
    for i in range(len(data)):
        mask = np.zeros((32, 32, 3), np.float32)
        mask[:] = noise[i]
        data[i] = np.clip(data[i] + mask, a_min=0, a_max=255)
    return data.astype(np.uint8)


def lsp_loader(images: np.ndarray, labels: np.ndarray, pool: np.ndarray, pool_labels: np.ndarray
               ) -> np.ndarray:
    """LSP's cifar_train.py: sums in [0, 1] and float64."""
    data = images.astype(np.float64) / 255
    for label in range(K):
        mine = labels == label
        data[mine] += pool[pool_labels == label][: int(sum(mine))]
    return np.clip(data * 255, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("positive", [False, True])
def test_flooring_noise_is_ems_loader(tmp_path, base, clean, positive):
    """Also where float32 and float64 differ: whole levels, and sums a hair below one."""
    values = np.random.default_rng(5).uniform(-8 / 255, 8 / 255, (ROWS, 3, 32, 32))
    values[:20] = np.round(values[:20] * 255) / 255
    values[20:40] = np.round(values[20:40] * 2550) / 2550
    noise = torch.from_numpy(values.astype(np.float32))
    torch.save(noise, tmp_path / "noise.pt")
    found = imported(tmp_path / "noise.pt", base, "--rounding", "floor",
                     *["--positive-only"][: int(positive)])
    np.testing.assert_array_equal(found, em_loader(clean.images, noise.clone(), positive))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_flooring_a_pool_is_lsps_loader(tmp_path, base, clean, kind):
    random = np.random.default_rng(3)
    pool = random.uniform(-0.05, 0.05, (3 * ROWS, 32, 32, 3)).astype(kind)
    pool[:90] = np.round(pool[:90] * 255) / 255
    pool_labels = random.permutation(np.arange(3 * ROWS) % K)
    np.save(tmp_path / "simple_data.npy", pool)
    np.save(tmp_path / "simple_label.npy", pool_labels)
    found = imported(tmp_path / "simple_data.npy", base, "--rounding", "floor")
    np.testing.assert_array_equal(found, lsp_loader(clean.images, clean.labels, pool, pool_labels))


@pytest.mark.parametrize("number", range(1, 6))
def test_flooring_images_is_hypos_loader(tmp_path, base, clean, number):
    """Linf.p1 to Linf.p5, with sums that float32 leaves a hair below a grey level."""
    images = torch.from_numpy(nchw(clean.images)).float().div(255)
    noise = torch.from_numpy(np.random.default_rng(9).uniform(
        -8 / 255, 8 / 255, images.shape)).float()
    noise[::2] = (noise[::2] * 255).round() / 255
    images = (images + noise).clamp(0, 1)
    torch.save((images, torch.from_numpy(np.array(clean.labels))), tmp_path / f"Linf.p{number}")
    found = imported(tmp_path / f"Linf.p{number}", base, "--rounding", "floor")
    expected = (images.permute(0, 2, 3, 1) * 255).type(torch.uint8).numpy()
    np.testing.assert_array_equal(found, expected)


# --- whole images, and other units -----------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in units.NORMALIZED if name != "REM"])
def test_normalised_images_are_no_noise(tmp_path, base, poisoned, name):
    """They keep --radius 8/255 as grey levels would; in order, in another, and a part."""
    mean, deviation = units.NORMALIZED[name]
    values = ((poisoned / 255 - mean) / deviation).astype(np.float32)
    order = np.random.default_rng(2).permutation(ROWS)
    for rows in (slice(None), order, order[:40]):
        np.save(tmp_path / "x.npy", values[rows])
        for words in ([], ["--units", "noise255"], ["--norm", "linf", "--radius", "8/255"]):
            error = wrong(tmp_path / "x.npy", base, *words)
            assert "no noise, but whole images of the base set after Normalize(mean=(" in error
            assert f"), {name}'s; save values * std + mean" in error
    with pytest.raises(AssertionError, match="are no images, which lie in"):
        imported(tmp_path / "x.npy", base, "--units", "images")


def test_scaled_images_say_how_to_read_them(tmp_path, base, clean, noise, poisoned):
    cases = {"signed": (nchw(poisoned / 127.5 - 1), "--units images2"),
             "half": ((poisoned / 127.5 - 1).astype(np.float16), "--units images2"),
             "beyond": ((clean.images + noise * 3) / 255, "--units images"),
             "other": ((poisoned / 255 - 0.3) / 0.4, "Normalize(mean=(0.3"),
             "rem": (poisoned / 255 - 0.5, "REM's"),
             "caffe": (poisoned - np.array([104.0, 117, 123]), "less a mean of (104, 117, 123)"),
             "int8": (poisoned.view(np.int8), "wrapped to int8; save them as uint8")}
    for name, (values, advice) in cases.items():
        np.save(tmp_path / f"{name}.npy", values)
        assert advice in wrong(tmp_path / f"{name}.npy", base), name
    assert "in grey levels; write --units images255" in wrong(
        save(tmp_path / "bytes.npy", poisoned), base, "--units", "noise255")
    for name, asked, expected in (("signed", "images2", poisoned), ("half", "images2", poisoned),
                                  ("beyond", "images", np.clip(clean.images + noise * 3, 0, 255))):
        found = imported(tmp_path / f"{name}.npy", base, "--units", asked)
        np.testing.assert_array_equal(found, expected)


def save(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def test_noise_that_follows_its_image_is_noise(tmp_path, base, clean):
    """A tenth more contrast: as alike as an image, but no image."""
    delta = (clean.images - clean.images.mean((1, 2, 3), keepdims=True)) * 0.1 / 255
    found = imported(save(tmp_path / "x.npy", delta.astype(np.float32)), base)
    np.testing.assert_array_equal(found, np.rint(np.clip(
        clean.images + delta.astype(np.float32).astype(np.float64) * 255, 0, 255)))


def test_noise_in_grey_levels_may_follow_its_image(tmp_path, base, clean):
    """As steep as CIFAR-10's Normalize, but without the brightness of the whole image."""
    images = clean.images.astype(np.float32)
    images += np.linspace(-60, 60, ROWS)[:, None, None, None]      # bright ones and dark ones
    other = write_imageset(tmp_path / "other", np.clip(images, 0, 255).astype(np.uint8),
                           np.array(clean.labels))
    shades = images - images.mean((1, 2), keepdims=True)
    np.save(tmp_path / "x.npy", (shades / 255 / 0.12).astype(np.float32))
    imported(tmp_path / "x.npy", other)


def test_smooth_noise_is_noise(tmp_path, base, clean):
    """Grey levels in slow waves, which some photographs look like."""
    random = np.random.default_rng(1)
    waves = random.normal(size=(ROWS, 2, 2, 3)).repeat(16, 1).repeat(16, 2) * 6
    values = np.clip(waves, -16, 16).astype(np.float32)
    np.testing.assert_array_equal(
        imported(save(tmp_path / "x.npy", values), base),
        np.rint(np.clip(clean.images + values.astype(np.float64), 0, 255)))


def test_noise_for_images_from_minus_one_to_one_is_asked_about(tmp_path, base, noise, poisoned):
    path = tmp_path / "x.pt"
    torch.save(torch.from_numpy(nchw(noise)).float() / 127.5, path)
    assert "a budget of 16/255, or of 8/255 for images in [-1, 1]; write --units noise or noise2" \
        in wrong(path, base)
    assert "above the 0.031373 of --radius" in wrong(path, base, "--norm", "linf", "--radius",
                                                    "8/255")
    assert "of noise for images in [-1, 1] write --units noise2" in wrong(
        path, base, "--norm", "linf", "--radius", "8/255")
    np.testing.assert_array_equal(imported(path, base, "--units", "noise2"), poisoned)
    for words in (["--units", "noise"], ["--norm", "linf", "--radius", "16/255"]):
        np.testing.assert_array_equal(
            imported(path, base, *words, "--out", tmp_path / words[0]),
            np.clip(ImageSet.load(base).images.astype(int) + 2 * noise, 0, 255))


def test_noise_after_normalize_is_asked_about(tmp_path, base, noise):
    """TAP's packed form: its budget differs by channel. Saturated, and in any layout."""
    for name in ("CIFAR-10", "CIFAR-10 (as TAP has it)", "ImageNet"):
        _, deviation = units.NORMALIZED[name]
        values = (noise / 255 / deviation).astype(np.float32)
        assert f"as after Normalize with {name}'s std" in wrong(
            save(tmp_path / "x.npy", nchw(values)), base)
    imported(tmp_path / "x.npy", base, "--units", "noise")


@pytest.mark.parametrize("values", [
    np.sign(np.arange(ROWS * 3072) % 3 - 1.0).astype(np.int8), np.linspace(-1, 1, ROWS * 3072),
    np.linspace(-1.5, 1.5, ROWS * 3072).astype(np.float32)])
def test_signs_are_no_grey_levels(tmp_path, base, values):
    save(tmp_path / "x.npy", values.reshape(ROWS, 32, 32, 3))
    assert "could be several things; say which with --units" in wrong(tmp_path / "x.npy", base)


# --- what is wrong ---------------------------------------------------------------------------


def wrong(path: object, base: Path, *words: object) -> str:
    outcome = run_import(path, base, *words)
    assert outcome.status == 1, outcome.stdout
    assert not list(Path().glob("runs/poisons/*"))
    return outcome.error


def test_another_number_of_images(tmp_path, base, noise):
    make_em(tmp_path / "em.pt", noise[:45])
    assert "noise for 45 images, but the base set has 60 images of 10 classes" in \
        wrong(tmp_path / "em.pt", base)
    np.savez(tmp_path / "x.npz", data=np.full((61, 32, 32, 3), 128, np.uint8))
    assert "61 images, but the base set has 60" in wrong(tmp_path / "x.npz", base)


def test_missing_shuffled_and_doubled_pictures(tmp_path, base, clean, poisoned):
    labels = np.array(clean.labels)
    make_pngs(tmp_path / "whole", None, poisoned, labels)
    (tmp_path / "whole" / "data" / "7.png").unlink()
    assert "1 of 60 images are missing, the first is 7" in wrong(tmp_path / "whole", base)
    order = np.random.default_rng(6).permutation(ROWS)
    make_pngs(tmp_path / "shuffled", None, poisoned[order], labels)
    bad = int(np.flatnonzero(order != np.arange(ROWS))[0])
    assert f"the order is not the base set's: image {bad} is nearer to row {order[bad]} than" in \
        wrong(tmp_path / "shuffled", base)
    os.rename(tmp_path / "shuffled" / "data" / "3.png", tmp_path / "shuffled" / "data" / "x3.png")
    assert "x3.png: the name should be the image's number" in wrong(tmp_path / "shuffled", base)


def test_labels_that_disagree(tmp_path, base, clean, poisoned):
    labels = np.array(clean.labels)
    labels[17] = (labels[17] + 1) % K
    make_avatar(tmp_path / "x.npz", None, poisoned, labels)
    assert f"1 labels disagree with the base set; row 17 has {labels[17]} here and " \
        f"{clean.labels[17]} there" in wrong(tmp_path / "x.npz", base)
    make_avatar(tmp_path / "y.npz", None, poisoned, labels[:10])
    assert "10 labels for 60 images" in wrong(tmp_path / "y.npz", base)


def test_units_that_are_ambiguous(tmp_path, base, clean, noise):
    torch.save(torch.from_numpy(nchw(noise)).float() / 8, tmp_path / "cp.pt")   # CP: [-1, 1]
    assert "values from -1 to 1 could be several things; say which with --units" in \
        wrong(tmp_path / "cp.pt", base)
    np.save(tmp_path / "wrapped.npy", noise.astype(np.uint8))
    assert "noise that wrapped? Then write --units wrapped" in wrong(tmp_path / "wrapped.npy", base)
    found = imported(tmp_path / "wrapped.npy", base, "--units", "wrapped")
    np.testing.assert_array_equal(found, np.clip(clean.images.astype(int) + noise, 0, 255))


def test_bytes_that_are_small_are_asked_about(tmp_path, base, noise):
    """uint8 from 0 to 8: noise without its negative half, or dark images."""
    torch.save(torch.from_numpy(nchw(np.maximum(noise, 0))).byte(), tmp_path / "px.pt")
    assert "could be noise or dark images; say which with --units noise255" in run_import(
        tmp_path / "px.pt", base).error
    imported(tmp_path / "px.pt", base, "--units", "noise255")


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


def test_a_norm_that_it_does_not_keep(tmp_path, base, noise):
    make_em(tmp_path / "em.pt", noise)
    assert "its l2 is" in wrong(tmp_path / "em.pt", base, "--norm", "l2", "--radius", "0.5")
    assert "its linf is 0.031373, above the 0.015686 of --radius" in \
        wrong(tmp_path / "em.pt", base, "--norm", "linf", "--radius", "4/255")
    assert "--norm and --radius go together" in wrong(tmp_path / "em.pt", base, "--norm", "l2")


def test_files_that_are_none(tmp_path, base):
    assert "no such file or folder" in wrong(tmp_path / "none.pt", base)
    (tmp_path / "poison.zip").write_bytes(b"x")
    assert "a poison comes as .pt, .pkl, .npy, .npz or a folder" in wrong(tmp_path / "poison.zip",
                                                                         base)
    (tmp_path / "torn.pkl").write_bytes(pickle.dumps(np.zeros(9))[:40])
    assert "not a whole pickle of plain data" in wrong(tmp_path / "torn.pkl", base)
    (tmp_path / "empty").mkdir()
    assert "neither <index>.png, nor a folder a class" in wrong(tmp_path / "empty", base)


# --- pickles ---------------------------------------------------------------------------------


class Reduce:
    def __reduce__(self):
        return os.system, ("touch ran",)


class SetState:
    def __setstate__(self, state):
        Path("ran").touch()

    def __getstate__(self):
        return {"x": 1}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [Reduce(), SetState(), [Reduce()], {"data": SetState()},
                                   np.array([Reduce()], dtype=object)])
def test_nothing_in_a_pickle_runs(tmp_path, base, value, protocol):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    assert "refused, for it asks for" in wrong(tmp_path / "evil.pkl", base)
    assert not Path("ran").exists()


def test_arrays_of_objects_are_refused(tmp_path, base):
    np.save(tmp_path / "evil.npy", np.array([Reduce()], dtype=object), allow_pickle=True)
    assert "not a readable .npy of plain numbers" in wrong(tmp_path / "evil.npy", base)
    np.savez(tmp_path / "evil.npz", data=np.array([Reduce()], dtype=object))
    assert "not a readable .npz of plain arrays" in wrong(tmp_path / "evil.npz", base)
    torch.save(Reduce(), tmp_path / "evil.pt")
    assert "not a torch file of plain tensors" in wrong(tmp_path / "evil.pt", base)
    assert not Path("ran").exists()


def test_a_bomb_of_references_stays_small(tmp_path):
    """Each list holds the one before it twice: 2^60 leaves, if one unfolded them."""
    bomb: list = [0]
    for _ in range(60):
        bomb = [bomb, bomb]
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(bomb))
    with pytest.raises(UserError, match="containers more than 4 deep"):
        pickles.read(tmp_path / "bomb.pkl")
    wide = [[0] * 100] * 100
    (tmp_path / "wide.pkl").write_bytes(pickle.dumps(wide))
    found = pickles.read(tmp_path / "wide.pkl")
    assert found == wide
    assert found[0] is found[99]
    claimed = pickle.dumps(np.zeros(4, np.uint8), protocol=2).replace(b"K\x04", b"K\xff")
    (tmp_path / "claimed.pkl").write_bytes(claimed)
    with pytest.raises(UserError, match="not a whole pickle"):
        pickles.read(tmp_path / "claimed.pkl")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [
    np.arange(24, dtype=np.int8).reshape(2, 3, 4), np.arange(6.0).reshape(2, 3).T,
    np.arange(5, dtype=">i4"), {"a": [1, -2, 2**40], b"b": (1.5, None, True)}, [(b"xyz", 3)],
    np.float64(2.5), "text"])
def test_plain_data_come_through(tmp_path, value, protocol):
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    found = pickles.read(tmp_path / "plain.pkl")
    if isinstance(value, np.ndarray):
        np.testing.assert_array_equal(found, value)
        assert found.dtype == value.dtype
    else:
        assert found == value


# --- export and inspection -------------------------------------------------------------------


@pytest.fixture
def poison_set(tmp_path, few_path):
    from poisons.__main__ import main as poison_main

    outcome = run_command(poison_main, "method=lsp", f"data={few_path}", "lsp.patch=4",
                          f"out={tmp_path / 'poison'}")
    assert outcome.status == 0, outcome.stderr
    return outcome.path


@pytest.mark.parametrize(("form", "name"), [("png", "tree"), ("npy", "x.npy"), ("npz", "x.npz"),
                                            ("pt", "delta.pt")])
def test_exports_come_back_the_same(tmp_path, monkeypatch, form, name, digits):
    """Of a poison on the first digits, whose clean set the export of a perturbation needs."""
    from poisons.__main__ import main as poison_main

    poison = run_command(poison_main, "method=lsp", "data=digits", "split=first:80",
                         "lsp.patch=4").path
    outcome = run_command(export.main, poison, "--as", form, "--out", tmp_path / name)
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout.split() == [str(tmp_path / name)]
    found = run_command(import_poison.main, tmp_path / name, "--base", "digits", "--split",
                        "first:80")
    assert found.status == 0, found.stderr
    one, two = ImageSet.load(poison), ImageSet.load(found.path)
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.labels, two.labels)
    if form == "npy":           # killed between its two files: the same line goes on
        (tmp_path / name).unlink()
        assert run_command(export.main, poison, "--as", form, "--out", tmp_path / name).status == 0
        (tmp_path / "mine_labels.npy").write_bytes(b"mine")
        assert "mine_labels.npy exists" in run_command(
            export.main, poison, "--as", form, "--out", tmp_path / "mine.npy").error
    again = run_command(export.main, poison, "--as", form, "--out", tmp_path / name)
    assert "exists; remove it or choose another name" in again.error
    suffix = export.SUFFIX[form]
    odd = run_command(export.main, poison, "--as", form, "--out", tmp_path / "x.odd")
    assert odd.status == bool(suffix)       # a folder may have any name
    assert not suffix or f"which ends in '{suffix}'" in odd.error


def test_an_export_leaves_an_unfinished_run_alone(tmp_path, base):
    (tmp_path / "tree.partial").mkdir()
    (tmp_path / "tree.partial" / "run.json").write_text("{}")
    assert run_command(export.main, base, "--as", "png", "--out", tmp_path / "tree").status == 0
    assert (tmp_path / "tree.partial" / "run.json").exists()


def test_an_export_leaves_a_folder_that_it_did_not_make(tmp_path, base):
    mine = tmp_path / "tree.export"
    mine.mkdir()
    (mine / "thesis.tex").write_text("precious")
    refused = run_command(export.main, base, "--as", "png", "--out", tmp_path / "tree")
    assert "tree.export is in the way" in refused.error
    assert (mine / "thesis.tex").read_text() == "precious"
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize(("form", "name"), [("png", "tree"), ("npy", "x.npy")])
def test_of_two_exports_at_once_one_is_told(tmp_path, base, form, name):
    arguments = [base, "--as", form, "--out", tmp_path / name]
    other = lock.take(tmp_path / f"{name}.export")
    refused = run_command(export.main, *arguments)
    assert "another process" in refused.error
    assert not (tmp_path / name).exists()
    os.close(other)             # killed: what it left is cleared
    assert run_command(export.main, *arguments).status == 0
    assert not (tmp_path / f"{name}.export").exists()


@pytest.mark.parametrize(("name", "found", "message"), [
    ("text.pkl", {b"\xff": 1}, "holds a dict of"),
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


def test_tensors_with_a_gradient_are_plain_tensors(tmp_path, base, clean, poisoned):
    images = torch.from_numpy(nchw(poisoned) / np.float32(255)).requires_grad_()
    labels = torch.from_numpy(np.eye(K, dtype=np.float32)[clean.labels]).requires_grad_()
    torch.save((images, labels), tmp_path / "pair.pt")
    torch.save([(image, int(label)) for image, label in zip(images, clean.labels, strict=True)],
               tmp_path / "list.pt")
    for name in ("pair.pt", "list.pt"):
        np.testing.assert_array_equal(imported(tmp_path / name, base), poisoned)


def test_an_npz_by_another_name_is_no_npy(tmp_path, base, poisoned):
    np.savez(tmp_path / "set.npz", data=poisoned)
    (tmp_path / "set.npz").rename(tmp_path / "set.npy")
    assert "set.npy is not a readable .npy" in wrong(tmp_path / "set.npy", base)


def test_mistakes_of_the_import_line(tmp_path, base, poisoned):
    np.save(tmp_path / "x.npy", poisoned)
    for words, message in ((["--norm", "linf", "--radius", "8"], "write 8/255"),
                           (["--name", "../x"], "no plain name")):
        assert message in run_import(tmp_path / "x.npy", base, *words).error
    assert "is an image set of this project already" in run_import(base, base).error


def test_a_folder_of_parts_may_hold_their_labels(tmp_path, base, clean, poisoned):
    folder = tmp_path / "parts"
    folder.mkdir()
    np.save(folder / "x.npy", poisoned)
    np.save(folder / "x_labels.npy", np.array(clean.labels))
    np.testing.assert_array_equal(imported(folder, base), poisoned)


def test_an_inspection_prints_and_draws(tmp_path):
    from poisons.__main__ import main as poison_main

    poison = run_command(poison_main, "method=ops", "data=digits").path
    outcome = run_command(inspect_poison.main, poison, "--out", tmp_path / "ops.png")
    assert outcome.status == 0, outcome.stderr
    assert (tmp_path / "ops.png").read_bytes()[:4] == b"\x89PNG"
    lines = {line[:22].strip(): line[22:].strip() for line in outcome.stdout.splitlines()[1:]}
    assert lines["L0 (most)"] == "1 pixels"
    assert float(lines["nearest class mean"].split("%")[0]) > 95
    beside = run_command(inspect_poison.main, poison, "digits", "--out", tmp_path / "other.png")
    assert beside.stdout == outcome.stdout          # CLEAN is what data= takes
    (tmp_path / "folder").mkdir()
    assert "is no regular file" in run_command(inspect_poison.main, poison, "--out",
                                               tmp_path / "folder").error
    same = run_command(inspect_poison.main, poison, poison)
    assert "does not differ from the set it is compared with" in same.error


def test_the_spectrum_of_a_wave():
    """A cosine of 4 periods in 16 pixels has all its power at a quarter cycle a pixel."""
    wave = np.cos(2 * np.pi * 4 * np.arange(16) / 16)
    images = np.broadcast_to(wave[None, None, :, None], (3, 16, 16, 3))
    radius, power = inspect_poison.radial([images])
    assert radius[power.argmax()] == 0.25
    assert power.max() == pytest.approx(1)


# --- what a reader once misread --------------------------------------------------------------


def test_labels_beside_a_pool_belong_to_the_file(tmp_path, base):
    """They decide on the noise of an image: others make another set, of another fingerprint."""
    np.save(tmp_path / "simple_data.npy", np.random.default_rng(3).uniform(
        -0.05, 0.05, (3 * ROWS, 32, 32, 3)).astype(np.float32))
    made = []
    for shift in (0, 1):
        np.save(tmp_path / "simple_label.npy", (np.arange(3 * ROWS) + shift) % K)
        made.append(run_import(tmp_path / "simple_data.npy", base).path)
    assert made[0] != made[1]
    assert not np.array_equal(*(ImageSet.load(path).images for path in made))


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


def test_labels_beside_noise_are_checked(tmp_path, base, clean, noise):
    labels = np.array(clean.labels)
    np.savez(tmp_path / "x.npz", data=noise.astype(np.int8), labels=labels[::-1])
    assert "labels disagree with the base set" in wrong(tmp_path / "x.npz", base)
    np.savez(tmp_path / "y.npz", data=noise.astype(np.int8), labels=labels)
    imported(tmp_path / "y.npz", base)


def test_a_few_rows_out_of_order_are_seen(tmp_path, base, poisoned, clean):
    """Two of sixty: more than noise could do to an outline."""
    order = np.arange(ROWS)
    order[[4, 9]] = [9, 4]
    make_pngs(tmp_path / "swapped", None, poisoned[order], np.array(clean.labels))
    assert "image 4 is nearer to row 9 than to its own, and so 2 of 60" in \
        wrong(tmp_path / "swapped", base)


def test_a_shuffled_list_with_labels_is_matched(tmp_path, base, clean, poisoned):
    order = np.random.default_rng(8).permutation(ROWS)
    make_eclipse(tmp_path / "EM.pkl", None, poisoned[order], np.array(clean.labels)[order])
    np.testing.assert_array_equal(imported(tmp_path / "EM.pkl", base), poisoned)


def test_two_tensors_are_no_pair_of_images_and_labels(tmp_path, base, noise):
    one = torch.from_numpy(nchw(noise)).float() / 255
    torch.save([one, one], tmp_path / "two.pt")
    np.testing.assert_array_equal(
        imported(tmp_path / "two.pt", base),
        np.clip(ImageSet.load(base).images.astype(int) + noise, 0, 255))    # candidate 0


def test_what_cannot_be_added_is_named(tmp_path, base, noise):
    torch.save(torch.zeros(K, 3, 48, 48) - 0.01, tmp_path / "large.pt")
    assert "noise of 48x48, larger than the base set's images of 32x32" in \
        wrong(tmp_path / "large.pt", base)
    np.save(tmp_path / "flat.npy", nchw(noise).reshape(ROWS, -1) / 255)
    assert "an array of shape (60, 3072)" in wrong(tmp_path / "flat.npy", base)
    make_em(tmp_path / "em.pt", noise)
    assert "one noise an image, there is no number 2" in wrong(tmp_path / "em.pt", base,
                                                             "--candidate", 2)
    np.savez(tmp_path / "words.npz", data=noise.astype(np.int8), labels=np.array(["cat"] * ROWS))
    assert "its labels are no numbers" in wrong(tmp_path / "words.npz", base)
    np.save(tmp_path / "empty.npy", np.empty((0, 32, 32, 3), np.uint8))
    assert "an empty array" in wrong(tmp_path / "empty.npy", base)


def test_pickles_that_would_take_long_or_much(tmp_path):
    """Shared text asked for as a module's name, many marks, one string decoded again and again."""
    shared = [b"(" + b"I1\n" * 3 + b"tp0\n"]
    shared += [f"(g{i}\ng{i}\ng{i}\ng{i}\ng{i}\ng{i}\ntp{i + 1}\n".encode() for i in range(12)]
    (tmp_path / "repr.pkl").write_bytes(b"\x80\x04" + b"".join(shared) + b"\x8c\x01a\x93.")
    marks = b"\x80\x02" + b"(" * 20_000 + b"t" * 20_000 + b"."
    (tmp_path / "marks.pkl").write_bytes(marks)
    text = b"X" + (100_000).to_bytes(4, "little") + b"a" * 100_000 + b"q\x00"
    call = b"c_codecs\nencode\nh\x00\x85R"
    (tmp_path / "many.pkl").write_bytes(b"\x80\x02]" + text + b"a" + (call + b"a") * 5000 + b".")
    for name, words in (("repr", "a tuple in the place of a str"), ("marks", "4 deep"),
                        ("many", "more bytes than it could hold")):
        with pytest.raises(UserError, match=words):
            pickles.read(tmp_path / f"{name}.pkl")


def test_an_imported_part_knows_its_rows(tmp_path, clean, poisoned):
    base = tmp_path / "base.npz"
    np.savez(base, images=clean.images, labels=clean.labels)
    rows = np.array([3, 5, 6, 7, 20, 21, 40, 59])
    labels = np.array(clean.labels)[rows]
    np.savez(tmp_path / "part.npz", data=poisoned[rows], labels=labels)
    part = run_import(tmp_path / "part.npz", base)
    assert part.status == 0, part.stderr
    again = load(DataSettings(**ImageSet.load(part.path).meta["root"]))
    np.testing.assert_array_equal(again.images, clean.images[rows])
    np.testing.assert_array_equal(again.labels, labels)
    outcome = run_command(inspect_poison.main, part.path, "--out", tmp_path / "part.png")
    assert outcome.status == 0, outcome.stderr
    assert "8/255" in outcome.stdout
    assert (tmp_path / "part.png").exists()
    halved = run_import(tmp_path / "part.npz", base, "--split", "after:2")
    assert "leave --split out" in halved.error
    with pytest.raises(UserError, match="no choice of rows from 60"):
        load(DataSettings(str(base), split="rows:AAAA"))
    with pytest.raises(UserError, match="no choice of rows from 30"):
        split_rows(rows_split(rows, 60), 30)


# --- order and axes --------------------------------------------------------------------------


def test_a_colour_a_class_does_not_hide_an_image(tmp_path, clean, noise):
    """DUNE's: signs, and one colour within 0.1 for each class, on images of little contrast; by
    class, shuffled, without labels and one short, and in order."""
    pale = np.rint(128 + (clean.images - 128.0) / 8).astype(np.uint8)
    base = write_imageset(tmp_path / "pale", pale, np.array(clean.labels))
    colours = np.rint(np.random.default_rng(4).uniform(-25.5, 25.5, (K, 1, 1, 3)))
    images = (pale + np.sign(noise) * 8 + colours[clean.labels]).astype(np.uint8)
    shuffled = np.random.default_rng(5).permutation(ROWS)
    for order in (np.argsort(clean.labels, kind="stable"), shuffled):
        make_eclipse(tmp_path / "x.pkl", None, images[order], np.array(clean.labels)[order])
        np.testing.assert_array_equal(imported(tmp_path / "x.pkl", base), images)
    part = run_import(save(tmp_path / "x.npy", images[shuffled[:-1]]), base)
    np.testing.assert_array_equal(ImageSet.load(part.path).images, images[np.sort(shuffled[:-1])])
    np.testing.assert_array_equal(imported(save(tmp_path / "y.npy", images), base), images)


def test_a_folder_with_a_pool_goes_by_label(tmp_path, base, clean):
    """LFU's folder: as many noises as images, in another order of labels."""
    random = np.random.default_rng(3)
    folder = tmp_path / "lfu"
    folder.mkdir()
    labels = random.permutation(clean.labels)
    pool = random.uniform(-0.05, 0.05, (ROWS, 32, 32, 3)).astype(np.float32)
    np.save(folder / "simple_data.npy", pool)
    np.save(folder / "simple_label.npy", labels)
    outcome = run_import(folder, base)
    assert "a pool of noise by label: noise by label, in order" in outcome.stderr
    np.testing.assert_array_equal(
        ImageSet.load(outcome.path).images,
        ImageSet.load(run_import(folder / "simple_data.npy", base).path).images)
    np.save(folder / "other.npy", pool)
    assert "a pool of noise by label beside other arrays; name the file" in run_import(
        folder, base).error


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


def test_numbers_of_a_part_of_another_order(tmp_path, base, clean, poisoned):
    """APBench's ImageNet: class/position of a random part, which here is as large as the base."""
    for position, row in enumerate(np.random.default_rng(6).permutation(ROWS)):
        folder = tmp_path / "apbench" / str(clean.labels[row])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(poisoned[row]).save(folder / f"{position}.png")
    outcome = run_import(tmp_path / "apbench", base)
    assert outcome.status == 0, outcome.stderr
    assert "each to its nearest image" in outcome.stderr
    np.testing.assert_array_equal(ImageSet.load(outcome.path).images, poisoned)


def test_folders_that_lack_classes_keep_their_numbers(tmp_path, base, clean, poisoned):
    rows = np.flatnonzero(np.isin(clean.labels, (2, 5, 7)))
    for row in rows:
        folder = tmp_path / "some" / str(clean.labels[row])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(poisoned[row]).save(folder / f"{row}.png")
    outcome = run_import(tmp_path / "some", base)
    assert outcome.status == 0, outcome.stderr
    found = ImageSet.load(outcome.path)
    np.testing.assert_array_equal(found.images, poisoned[rows])
    np.testing.assert_array_equal(found.labels, clean.labels[rows])


def test_axes_and_channels_in_another_order(tmp_path, base, poisoned):
    cases = {"bgr": (poisoned[..., ::-1], "the channels are blue, green, red"),
             "turned": (poisoned.swapaxes(1, 2), "rows and columns are swapped"),
             "planes": (nchw(poisoned).reshape(ROWS, 32, 32, 3), "reshaped as if they were pixels")}
    for name, (values, words) in cases.items():
        assert words in wrong(save(tmp_path / f"{name}.npy", values), base)


def test_flat_rows_are_planes_or_pixels(tmp_path, base, clean, poisoned):
    labels = np.array(clean.labels)
    for name, values in (("planes", nchw(poisoned)), ("pixels", poisoned)):
        flat = np.ascontiguousarray(values).reshape(ROWS, -1)
        np.testing.assert_array_equal(
            imported(save(tmp_path / f"{name}.npy", flat), base), poisoned)
        path = tmp_path / f"{name}.npz"
        np.savez(path, data=flat, labels=labels)
        np.testing.assert_array_equal(imported(path, base), poisoned)


def test_bytes_that_ran_over(tmp_path, base, clean, noise, poisoned):
    sums = (clean.images.astype(int) + 12 * np.sign(noise)).astype(np.uint8)
    assert (np.abs(sums.astype(int) - clean.images) > 200).any()
    assert "sums that ran over in bytes" in wrong(save(tmp_path / "x.npy", sums), base)
    black = poisoned.copy()
    black[:, 3, 4] = 0                               # one pixel that is black is no such sum
    np.testing.assert_array_equal(imported(save(tmp_path / "y.npy", black), base), black)


def test_labels_that_count_from_one(tmp_path, base, clean, poisoned):
    make_avatar(tmp_path / "x.npz", None, poisoned, np.array(clean.labels) + 1)
    assert "its labels count from 1; save labels - 1" in wrong(tmp_path / "x.npz", base)
    np.save(tmp_path / "simple_data.npy", np.full((3 * ROWS, 32, 32, 3), 0.02, np.float32))
    np.save(tmp_path / "simple_label.npy", np.arange(3 * ROWS) % K + 1)
    assert "its labels count from 1" in wrong(tmp_path / "simple_data.npy", base)


def test_units_that_the_values_cannot_have(tmp_path, base, noise):
    path = save(tmp_path / "x.npy", (noise / 255).astype(np.float32))
    assert "float32 cannot be noise that wrapped" in wrong(path, base, "--units", "wrapped")
    assert "values from -8 to 8 are no images, which lie in [0, 1]" in wrong(
        save(tmp_path / "y.npy", noise.astype(np.int8)), base, "--units", "images")


def test_a_rounding_error_below_zero_is_no_noise(tmp_path, base, poisoned):
    values = (poisoned / 255).astype(np.float32)
    values[0, 0, 0] = (-1e-7, 1 + 1e-6, 0)
    found = imported(save(tmp_path / "x.npy", values), base)
    np.testing.assert_array_equal(found[1:], poisoned[1:])


def test_labels_of_a_pool_are_one_each_and_whole(tmp_path, base):
    np.save(tmp_path / "simple_data.npy", np.full((3 * ROWS, 32, 32, 3), 0.02, np.float32))
    np.save(tmp_path / "simple_label.npy", np.arange(4 * ROWS) % K)
    assert "240 labels for 180 noises" in wrong(tmp_path / "simple_data.npy", base)
    np.save(tmp_path / "simple_label.npy", np.arange(3 * ROWS) % K + 0.5)
    assert "its labels are no numbers" in wrong(tmp_path / "simple_data.npy", base)
