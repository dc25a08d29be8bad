"""LSP against what its release makes."""

import math

import numpy as np
import pytest
import torch
from conftest import CONFIGS, as_set, new_run

from core import config as yaml_config
from core.errors import UserError
from core.imageset import ImageSet
from poisons import lsp


@pytest.fixture(scope="module")
def photos() -> ImageSet:
    """5,000 random 32x32 images, levels away from the ends so that nothing is clipped."""
    rng = np.random.default_rng(0)
    return as_set(rng.integers(30, 226, (5000, 32, 32, 3), dtype=np.uint8),
                  rng.permutation(np.arange(5000) % 10))


def deltas(clean: ImageSet, config: lsp.Config, seed: int = 1) -> np.ndarray:
    """The perturbation before it meets the pixels, float32 (N, H, W, 3)."""
    height, width = clean.image_shape
    grid = math.ceil(height / config.patch), math.ceil(width / config.patch)
    features, labels = lsp.draw_samples(clean, 3 * grid[0] * grid[1], config, seed)
    cells = torch.from_numpy(lsp.assign(features, labels, clean.labels)).view(-1, *grid, 3)
    return lsp.perturbation(cells, height, width, config).numpy()


def added(folder, clean: ImageSet, config: lsp.Config, seed: int = 1) -> np.ndarray:
    """What the attack did to the pixels, in grey levels, int (N, H, W, 3)."""
    with new_run(folder / f"{config}"[:60], seed=seed) as run:
        poisoned = lsp.poison(clean, config, run)
        np.testing.assert_array_equal(poisoned.labels, clean.labels)
        return np.array(poisoned.images).astype(int) - clean.images


def nearest_class_mean_accuracy(delta: np.ndarray, labels: np.ndarray) -> float:
    flat = delta.reshape(len(delta), -1).astype(np.float64)
    means = np.stack([flat[labels == label].mean(0) for label in np.unique(labels)])
    distances = (flat**2).sum(1)[:, None] - 2 * flat @ means.T + (means**2).sum(1)
    return (distances.argmin(1) == labels).mean()


# --- before the pixels -----------------------------------------------------------------------


@pytest.mark.parametrize("radius", [1.3041, 1.0])
def test_every_perturbation_has_the_l2_norm_of_the_radius(photos, radius):
    delta = deltas(photos, lsp.Config(radius=radius)).astype(np.float64)
    norms = np.sqrt((delta**2).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(norms, radius, atol=1e-6)


def test_the_default_radius_is_six_levels_a_value():
    """All sixteen digits of it, here and in the YAML."""
    assert lsp.Config().radius == 1.3041323727577427
    assert lsp.Config().radius == pytest.approx(6 / 255 * math.sqrt(3 * 32 * 32), abs=1e-15)
    preset = yaml_config.read([CONFIGS / "poisons" / "lsp.yaml"]).value["lsp"]
    assert yaml_config.build(lsp.Config, preset, "lsp") == lsp.Config()


def test_blocks_of_8_by_8_are_constant(photos):
    delta = deltas(photos, lsp.Config())
    blocks = delta.reshape(5000, 4, 8, 4, 8, 3)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    assert not (delta[:, 7] == delta[:, 8]).any()           # and the next block is another


@pytest.mark.parametrize("radius", [1.3041, 1.0])
def test_magnitudes_are_the_measured_ones(photos, radius):
    """Mean |delta| 5.59/255 and largest 16.9/255 at 1.3041; 13.0 at 1.0 (n = 50,000)."""
    delta = np.abs(deltas(photos, lsp.Config(radius=radius))) * 255
    scale = radius / 1.3041
    assert delta.mean() == pytest.approx(5.59 * scale, abs=0.15)
    assert 14 * scale < delta.max() < 18.5 * scale
    assert delta.max(axis=(1, 2, 3)).mean() == pytest.approx(10.5 * scale, abs=0.3)


def test_classes_are_separable_and_no_two_samples_equal(photos):
    delta = deltas(photos, lsp.Config())
    assert nearest_class_mean_accuracy(delta, photos.labels) == 1.0
    assert len({row.tobytes() for row in delta}) == 5000


def test_distances_within_and_between_classes_are_the_measured_ones(photos):
    """Sample to class mean 0.476, between class means 1.71 (least 1.48), norm of a mean 1.21."""
    flat = deltas(photos, lsp.Config()).reshape(5000, -1)
    means = np.stack([flat[photos.labels == label].mean(0) for label in range(10)])
    within = np.linalg.norm(flat - means[photos.labels], axis=1).mean()
    between = np.linalg.norm(means[:, None] - means, axis=2)[np.triu_indices(10, 1)]
    assert within == pytest.approx(0.476, abs=0.02)
    assert between.mean() == pytest.approx(1.71, abs=0.06)
    assert between.min() > 1.2
    assert np.linalg.norm(means, axis=1).mean() == pytest.approx(1.21, abs=0.03)


def test_seed_1_is_the_releases():
    """First labels and features for n = 50,000, K = 10 (measured with scikit-learn 1.9.1)."""
    labels = np.arange(50_000, dtype=np.int64) % 10
    fake = ImageSet(np.empty((50_000, 0, 0, 3), np.uint8), labels,
                    {"classes": [str(i) for i in range(10)]})
    features, drawn = lsp.draw_samples(fake, 48, lsp.Config(), 1)
    assert features.shape == (50_000, 48)
    assert drawn[:12].tolist() == [4, 9, 1, 1, 1, 9, 8, 2, 7, 8, 3, 7]
    np.testing.assert_allclose(features[0, :4], [-18.0155, -2.0667, -10.9426, 10.5563], atol=1e-4)
    assert np.bincount(drawn).tolist() == [5000] * 10       # exactly n / K a class
    means = np.stack([features[drawn == label].mean(0) for label in range(10)])
    assert 9.7 < np.abs(means).min() <= np.abs(means).max() < 10.4      # centres at +-10
    spread = np.mean([features[drawn == label].std(0).mean() for label in range(10)])
    assert spread == pytest.approx(math.sqrt(48 / 3), abs=0.15)


# --- on the pixels ---------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["round", "floor"])
def test_after_rounding_the_shortcut_is_whole(tmp_path, photos, rounding):
    delta = added(tmp_path, photos, lsp.Config(rounding=rounding))
    assert nearest_class_mean_accuracy(delta, photos.labels) == 1.0
    exact = deltas(photos, lsp.Config()) * 255
    error = delta - exact                                   # nothing is clipped in these images
    if rounding == "round":
        assert np.abs(error).max() <= 0.5 + 1e-3
        assert abs(error.mean()) < 0.01
    else:                                                   # the release's cast loses half a level
        assert -1 - 1e-3 <= error.min() <= error.max() <= 1e-3
        assert error.mean() == pytest.approx(-0.5, abs=0.01)


def release_of(clean: ImageSet, draws: int) -> np.ndarray:
    """The release's script, retyped: the images for its seed, 1, from so many samples."""
    from sklearn.datasets import make_classification

    samples, drawn = make_classification(
        random_state=1, n_samples=draws, n_features=48, n_classes=10, n_informative=48,
        n_redundant=0, n_repeated=0, class_sep=10.0, flip_y=0.0, n_clusters_per_class=1)
    noise = samples.reshape(-1, 4, 4, 3).astype(np.float32).repeat(8, 2).repeat(8, 1)
    flat = noise.reshape(draws, -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    noise = (flat * np.float32(np.sqrt((6 / 255) ** 2 * 3072))).reshape(noise.shape)
    images = clean.images.astype(np.float64) / 255
    for label in range(10):
        mine = clean.labels == label
        images[mine] += noise[drawn == label][: mine.sum()]
    return np.clip(images * 255, 0, 255).astype(np.uint8)


def test_floor_gives_the_releases_images(tmp_path):
    """Seed 1, equal classes: but for a few of 3 million values that its norms, in single precision,
    put on the other side of a level. The radius to five digits changes hundreds."""
    random = np.random.default_rng(0)
    clean = as_set(random.integers(0, 256, (1000, 32, 32, 3), dtype=np.uint8),
                   random.permutation(np.arange(1000) % 10))
    theirs = release_of(clean, 1000).astype(int) - clean.images

    def apart(**changes) -> int:
        return (added(tmp_path, clean, lsp.Config(rounding="floor", **changes)) != theirs).sum()

    assert apart() < 10
    assert apart(radius=1.3041) > 100


@pytest.mark.parametrize("steps", [-8, -3, -1])
def test_floor_sums_in_double_as_the_release(tmp_path, monkeypatch, steps):
    """Every level less whole levels, where the two precisions end a level apart."""
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3).repeat(2, 0)
    noise = np.float32(steps / 255)
    monkeypatch.setattr(lsp, "perturbation", lambda cells, height, width, config: torch.full(
        (len(cells), height, width, 3), float(noise)))
    clean = as_set(levels, np.arange(2), classes=2)
    found = levels + added(tmp_path, clean, lsp.Config(rounding="floor"))
    expected = np.clip((levels.astype(np.float64) / 255 + noise) * 255, 0, 255).astype(np.uint8)
    single = np.clip((levels.astype(np.float32) / np.float32(255) + noise) * np.float32(255),
                     0, 255).astype(np.uint8)
    np.testing.assert_array_equal(found, expected)
    assert (single != expected).any()


def test_no_seed_is_the_releases_where_classes_are_unequal(tmp_path):
    """K times the largest class is drawn, not 2N as for SVHN: other samples."""
    labels = np.repeat(np.arange(10), [70, 30, *[50] * 8])
    clean = as_set(np.full((500, 32, 32, 3), 128, np.uint8), labels)
    features, _ = lsp.draw_samples(clean, 48, lsp.Config(), 1)
    assert len(features) == 700
    theirs = release_of(clean, 2 * len(clean)).astype(int) - 128
    assert (added(tmp_path, clean, lsp.Config(rounding="floor")) != theirs).mean() > 0.5


def test_near_the_ends_pixels_are_clipped(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.choice(np.array([0, 255], np.uint8), (200, 32, 32, 3))
    clean = as_set(images, np.arange(200) % 10)
    expected = np.clip(images / 255 + deltas(clean, lsp.Config()), 0, 1) * 255
    found = images.astype(int) + added(tmp_path, clean, lsp.Config())
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


def test_the_ith_image_of_a_class_gets_its_ith_sample():
    """A plain walk with one counter a class, on unequal classes."""
    labels = np.random.default_rng(0).integers(0, 4, 100)
    feature_labels = np.random.default_rng(1).permutation(np.arange(240) % 4)
    features = np.random.default_rng(2).normal(size=(240, 6))
    found = lsp.assign(features, feature_labels, labels)
    counters = dict.fromkeys(range(4), 0)
    for row, label in enumerate(labels):
        samples = [f for f, of in zip(features, feature_labels, strict=True) if of == label]
        np.testing.assert_array_equal(found[row], samples[counters[label]].astype(np.float32))
        counters[label] += 1


def test_unequal_classes_and_a_class_with_one_image(tmp_path):
    """SVHN's counts differ by a factor of three; here by 120."""
    counts = [120, 1, 60, 30]
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), counts))
    clean = as_set(np.full((211, 32, 32, 3), 128, np.uint8), labels, classes=4)
    delta = added(tmp_path, clean, lsp.Config())
    assert nearest_class_mean_accuracy(delta, labels) == 1.0
    assert (delta != 0).any(axis=(1, 2, 3)).all()           # every image is poisoned
    assert len({row.tobytes() for row in delta}) == 211


def test_a_class_without_images_is_no_obstacle(tmp_path):
    clean = as_set(np.full((40, 32, 32, 3), 128, np.uint8), np.arange(40) % 2 * 3, classes=5)
    assert nearest_class_mean_accuracy(added(tmp_path, clean, lsp.Config()) * 1.0,
                                       clean.labels // 3) == 1.0


def test_positive_only_drops_the_negative_half(tmp_path, photos):
    few = photos.first(300)
    signed = deltas(few, lsp.Config())
    np.testing.assert_array_equal(deltas(few, lsp.Config(positive_only=True)),
                                  np.maximum(signed, 0))
    delta = added(tmp_path, few, lsp.Config(positive_only=True))
    assert delta.min() == 0
    assert delta.max() > 8


@pytest.mark.parametrize(("side", "patch", "grid"), [(32, 8, 4), (16, 4, 4), (20, 8, 3),
                                                     (224, 32, 7), (8, 3, 3)])
def test_other_sizes_and_patches(side, patch, grid):
    clean = as_set(np.full((20, side, side, 3), 128, np.uint8), np.arange(20) % 10)
    delta = deltas(clean, lsp.Config(patch=patch))
    assert delta.shape == (20, side, side, 3)
    for i, j in np.ndindex(side, side):
        corner = i // patch * patch, j // patch * patch
        if (i, j) != corner and side < 50:
            assert (delta[:, i, j] == delta[:, *corner]).all()
    assert len(np.unique(delta[0, ..., 0])) == grid**2
    norms = np.sqrt((delta.astype(float) ** 2).sum(axis=(1, 2, 3)))
    np.testing.assert_allclose(norms, lsp.Config().radius, atol=1e-6)


def test_wide_images(tmp_path):
    clean = as_set(np.full((20, 8, 24, 3), 128, np.uint8), np.arange(20) % 2)
    delta = deltas(clean, lsp.Config(patch=8))
    assert (delta == delta[:, :1]).all()
    assert len(np.unique(delta[0, 0, :, 0])) == 3


def test_a_grid_too_coarse_for_the_classes_is_refused():
    clean = as_set(np.full((20, 8, 8, 3), 128, np.uint8), np.arange(20) % 10)
    with pytest.raises(UserError, match=r"lsp\.patch: blocks of 8 leave 3 features, too few for"):
        deltas(clean, lsp.Config())
    assert deltas(clean, lsp.Config(patch=4)).shape == (20, 8, 8, 3)


def test_another_seed_is_another_poison(tmp_path, photos):
    few = photos.first(200)
    one, two = (added(tmp_path / str(seed), few, lsp.Config(), seed) for seed in (1, 2))
    assert not np.array_equal(one, two)
    assert not np.array_equal(deltas(few, lsp.Config(), 1), deltas(few, lsp.Config(), 2))
    np.testing.assert_array_equal(deltas(few, lsp.Config(), 1), deltas(few, lsp.Config(), 1))


@pytest.mark.parametrize("rounding", ["round", "floor"])
def test_samples_beyond_float32_are_one_sentence(tmp_path, rounding):
    clean = as_set(np.full((20, 32, 32, 3), 128, np.uint8), np.arange(20) % 10)
    with pytest.raises(UserError, match="row 0 has non-finite pixels"), \
            np.errstate(over="ignore"):
        added(tmp_path, clean, lsp.Config(class_sep=1e60, rounding=rounding))
