"""Other people's images and noise find their rows, by order, label or likeness, as the releases'
own loaders add them."""

import os

import foreign
import numpy as np
import pytest
import torch
from conftest import run_command, write_imageset
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
    save,
    wrong,
)
from PIL import Image

from core.imageset import ImageSet
from scripts.exchange import aligning

# fixtures
base, clean, noise, poisoned = foreign.base, foreign.clean, foreign.noise, foreign.poisoned


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


def test_class_wise_noise_goes_by_its_labels(tmp_path, base, clean):
    random = np.random.default_rng(2)
    by_class, order = random.integers(-8, 9, (K, 32, 32, 3)), random.permutation(K)
    expected = np.clip(clean.images.astype(int) + by_class[clean.labels], 0, 255)
    for name, labels in (("sorted", np.arange(K)), ("shuffled", order)):
        np.savez(tmp_path / f"{name}.npz", data=by_class[labels].astype(np.int8), labels=labels)
        np.testing.assert_array_equal(imported(tmp_path / f"{name}.npz", base), expected)
    for labels, words in ((order + 1, "labels count from 1; save labels - 1"),
                          (order // 2, f"labels are not 0 to {K - 1}, each once")):
        np.savez(tmp_path / "wrong.npz", data=by_class.astype(np.int8), labels=labels)
        assert words in run_import(tmp_path / "wrong.npz", base).error


def test_a_folder_a_class_goes_by_its_name_its_number_or_its_place(tmp_path, base, clean, poisoned):
    """The classes of the base are called 0 to 9. Other words count in their order, as many as there
    are classes."""
    for names in ([str(k) for k in range(K)], [f"{k:03}" for k in range(K)],
                  [f"class {chr(97 + k)}" for k in range(K)]):
        folder = tmp_path / names[1]
        for row, image in enumerate(poisoned):
            place = folder / names[clean.labels[row]]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{row}.png")
        np.testing.assert_array_equal(imported(folder, base, "--force"), poisoned)
    (folder / "class a").rename(folder / "one more")
    (folder / "eleventh").mkdir()
    Image.fromarray(poisoned[0]).save(folder / "eleventh/99.png")
    assert "11 folders of images (class b, class c, class d, class e, ...), but the base set has " \
        "10 classes" in run_import(folder, base).error


def test_one_noise_without_a_first_axis_is_for_all(tmp_path, base, clean, noise):
    path = save(tmp_path / "one.npy", (noise[0] / 255).astype(np.float32))
    expected = np.clip(clean.images.astype(int) + noise[0], 0, 255)
    np.testing.assert_array_equal(imported(path, base), expected)


def test_what_a_pool_or_numbers_lack_is_named(tmp_path, base, clean, noise, poisoned):
    """A pool with too few of a label, noise with too few labels, numbers beyond the base."""
    np.save(tmp_path / "simple_data.npy", (noise / 255).astype(np.float32))
    labels = clean.labels.copy()
    labels[labels == 3] = 4
    np.save(tmp_path / "simple_label.npy", labels)
    assert f"0 noises of label 3 for {(clean.labels == 3).sum()} images" in \
        wrong(tmp_path / "simple_data.npy", base)
    np.savez(tmp_path / "few.npz", data=noise.astype(np.int8), labels=clean.labels[:50])
    assert f"50 labels for {ROWS} images" in wrong(tmp_path / "few.npz", base)
    folder = tmp_path / "numbered"
    folder.mkdir()
    for row, image in enumerate(poisoned):
        Image.fromarray(image).save(folder / f"{row + 5}.png")
    assert f"number {ROWS + 4}, but the base set has {ROWS} images" in wrong(folder, base)


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


def test_another_number_of_images(tmp_path, base, noise):
    make_em(tmp_path / "em.pt", noise[:45])
    assert "noise for 45 images, but the base set has 60 images of 10 classes" in \
        wrong(tmp_path / "em.pt", base)
    np.savez(tmp_path / "x.npz", data=np.full((61, 32, 32, 3), 128, np.uint8))
    assert "61 images, but the base set has 60" in wrong(tmp_path / "x.npz", base)


def test_images_of_nothing_are_not_in_order(tmp_path, base, clean, poisoned):
    """One colour is as near to its own row as to any. A few of it are nobody's mistake."""
    save(tmp_path / "grey.npy", np.full_like(poisoned, 128))
    assert "60 of 60 images are unlike the base set's, the first is 0" in \
        wrong(tmp_path / "grey.npy", base)
    few = poisoned.copy()
    few[7:10] = 128
    save(tmp_path / "few.npy", few)
    np.testing.assert_array_equal(imported(tmp_path / "few.npy", base), few)


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


def test_labels_of_a_pool_are_one_each_and_whole(tmp_path, base):
    np.save(tmp_path / "simple_data.npy", np.full((3 * ROWS, 32, 32, 3), 0.02, np.float32))
    np.save(tmp_path / "simple_label.npy", np.arange(4 * ROWS) % K)
    assert "240 labels for 180 noises" in wrong(tmp_path / "simple_data.npy", base)
    np.save(tmp_path / "simple_label.npy", np.arange(3 * ROWS) % K + 0.5)
    assert "its labels are no numbers" in wrong(tmp_path / "simple_data.npy", base)
