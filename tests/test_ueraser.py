"""UEraser: its maximum against a plain loop, its draws, when it makes how many copies."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS, new_run, run_command, write_imageset
from PIL import Image
from torch import nn

import evaluate
from core.errors import ConfigError
from core.request import parse
from learners import ueraser
from learners.ueraser import Config, augmented, hardest, recoded


def copies_and_labels(count: int = 3, rows: int = 12):
    generator = torch.Generator().manual_seed(0)
    return ([torch.rand(rows, 3, 4, 4, generator=generator) for _ in range(count)],
            torch.randint(0, 5, (rows,), generator=generator))


def network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, 5))


def gradient_of(model: nn.Module, value: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()),
                                                               retain_graph=True)])


@pytest.mark.parametrize("form", ["full", "cheap"])
def test_the_loss_is_the_mean_over_images_of_the_largest_of_their_copies(form):
    """One image at a time. Mistakes that it names: the mean over copies, the copy that is hardest
    for the batch, the smallest loss, and a gradient through all copies."""
    copies, labels = copies_and_labels()
    model = network()
    losses = torch.stack([torch.stack([
        F.cross_entropy(model(copy[i : i + 1]), labels[i : i + 1]) for copy in copies])
        for i in range(len(labels))])                               # (images, copies)
    expected = sum(row[int(row.argmax())] for row in losses) / len(labels)
    value, logits = hardest(model, copies, labels, form)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient_of(model, value), gradient_of(model, expected))
    for i, row in enumerate(losses):
        hardest_copy = copies[int(row.argmax())][i : i + 1]
        torch.testing.assert_close(logits[i], model(hardest_copy)[0])
    for mistake in (losses.mean(), losses.mean(0).max(), losses.amin(1).mean()):
        assert not torch.isclose(value, mistake, rtol=1e-3)
        assert not torch.allclose(gradient_of(model, value), gradient_of(model, mistake), rtol=0.05)


def test_batch_statistics_are_those_of_each_copy_and_move_with_each_pass():
    """`cheap` passes the hardest copies once more, together: another loss, and one more move."""
    copies, labels = copies_and_labels()
    model = network(nn.BatchNorm2d(3))
    value, _ = hardest(model, copies, labels, "full")
    assert model[0].num_batches_tracked == 3
    each = [F.cross_entropy(model(copy), labels, reduction="none") for copy in copies]
    torch.testing.assert_close(value, torch.stack(each).amax(0).mean())
    model = network(nn.BatchNorm2d(3))
    cheap, _ = hardest(model, copies, labels, "cheap")
    assert model[0].num_batches_tracked == 4
    assert not torch.isclose(cheap, value)


def test_cheap_keeps_the_graph_of_one_pass():
    copies, labels = copies_and_labels()
    passes = []

    class Spy(nn.Flatten):
        def forward(self, x):
            passes.append(torch.is_grad_enabled())
            return super().forward(x)

    model = nn.Sequential(Spy(), nn.Linear(48, 5))
    hardest(model, copies, labels, "cheap")
    assert passes == [False] * 3 + [True]


def test_labels_that_are_shares_of_classes_are_taken_too():
    copies, labels = copies_and_labels()
    model = network()
    value, _ = hardest(model, copies, labels, "full")
    shares = F.one_hot(labels, 5).float()
    torch.testing.assert_close(hardest(model, copies, shares, "full")[0], value)


# --- the draws -------------------------------------------------------------------------------


def test_every_copy_is_a_draw_of_its_own_and_leaves_the_images(tmp_path):
    """Two copies of a step, and the same copy of two steps, differ in operation or magnitude."""
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    before = images.clone()
    with new_run(tmp_path / "out") as run:
        found = [augmented(images, Config(), run, number) for number in range(6)]
        again = augmented(images, Config(), run, 3)
    assert torch.equal(images, before)
    assert torch.equal(found[3], again)
    for i, one in enumerate(found):
        assert one.shape == images.shape
        assert one.dtype == torch.float32
        assert 0 <= one.min() <= one.max() <= 1
        assert not any(torch.equal(one, other) for other in found[:i])


def test_operations_take_the_images_that_their_probabilities_say(tmp_path, monkeypatch):
    """With TrivialAugment put aside. A fractal for every image would take them all."""
    monkeypatch.setattr(ueraser, "trivial_augment", lambda images, draw: images)
    images = torch.rand(600, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 0.6 + 0.2
    nothing = {"brightness": 0, "contrast": 0, "channel_shuffle": 0}
    with new_run(tmp_path / "out") as run:
        assert torch.equal(augmented(images, Config(**nothing), run, 0), images)
        for key, probability, expected in (("brightness", 0.5, 0.5), ("contrast", 0.8, 0.8),
                                           ("channel_shuffle", 0.5, 0.5 * 5 / 6),
                                           ("brightness", 1, 1)):
            found = augmented(images, Config(**nothing | {key: probability}), run, 0)
            moved = (found != images).flatten(1).any(1)
            assert moved.float().mean().item() == pytest.approx(expected, abs=0.06)
        shuffled = augmented(images, Config(**nothing | {"channel_shuffle": 1}), run, 0)
    torch.testing.assert_close(shuffled.sort(1).values, images.sort(1).values)
    sums = shuffled.sum((2, 3))[:, None] - images.sum((2, 3))[..., None]
    orders = {tuple(row) for row in sums.abs().argmin(2).tolist()}
    assert len(orders) == 6                                 # each image its own


def test_intensity_and_roughness_are_drawn_from_their_least_to_the_release_s_largest(
        tmp_path, monkeypatch):
    def spy(images, roughness, *rest):
        seen.extend([roughness, *rest[:-1]])
        return images

    seen = []
    monkeypatch.setattr(ueraser, "brighten", spy)
    monkeypatch.setattr(ueraser, "vary_contrast", spy)
    config = Config(brightness=1, contrast=1, brightness_roughness=0.1, contrast_roughness=0.3,
                    intensity=0.5)
    with new_run(tmp_path / "out") as run:
        augmented(torch.rand(400, 3, 4, 4), config, run, 0)
    for drawn, low, high in zip(seen, (0.1, 0.5, 0.3), (0.7, 1, 0.7), strict=True):
        assert drawn.shape == (400,)
        assert low <= drawn.min() < low + 0.03
        assert high - 0.03 < drawn.max() <= high


def test_jpeg_is_pillows_of_one_picture():
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(6))
    tiled = np.zeros((48, 48, 3), np.uint8)                 # 3 x 3 places for five images
    for i, image in enumerate(images):
        y, x = 16 * (i // 3), 16 * (i % 3)
        tiled[y : y + 16, x : x + 16] = (255 * image + 0.5).byte().permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(tiled).save(buffer, "JPEG", quality=10)
    decoded = np.asarray(Image.open(buffer)).astype(np.float32)
    found = recoded(images, 10)
    for i in range(5):
        y, x = 16 * (i // 3), 16 * (i % 3)
        expected = ((decoded[y : y + 16, x : x + 16] - 0.5) / 255).clip(0, 1)
        np.testing.assert_allclose(found[i].permute(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize("when", ["before", "after", "none"])
def test_quality_is_drawn_for_each_batch_where_none_is_set(tmp_path, monkeypatch, when):
    """From 10 to 99, as the release's randrange(10, 100)."""
    seen = []
    monkeypatch.setattr(ueraser, "trivial_augment", lambda images, draw: images)
    monkeypatch.setattr(ueraser, "recoded", lambda images, quality: seen.append(quality) or images)
    nothing = {"brightness": 0, "contrast": 0, "channel_shuffle": 0, "jpeg": when}
    images = torch.rand(2, 3, 4, 4)
    with new_run(tmp_path / "out") as run:
        for quality in (None, 30):
            for number in range(1000):
                augmented(images, Config(**nothing, jpeg_quality=quality), run, number)
    if when == "none":
        assert seen == []
    else:
        drawn, asked = seen[:1000], seen[1000:]
        assert (min(drawn), max(drawn)) == (10, 99)
        assert np.mean(drawn) == pytest.approx(54.5, abs=3)
        assert asked == [30] * 1000


def test_without_jpeg_its_quality_changes_nothing(tmp_path):
    images = torch.rand(4, 3, 8, 8)
    with new_run(tmp_path / "out") as run:
        copies = [augmented(images, Config(jpeg="none", jpeg_quality=quality), run, 0)
                  for quality in (10, None)]
    assert torch.equal(*copies)


def test_images_smaller_than_its_kernel_are_refused(few, tmp_path):
    path = write_imageset(tmp_path / "tiny", few.images[:, :2, :5], few.labels)
    outcome = run_command(evaluate.main, CONFIGS / "learners/ueraser.yaml", f"data={path}",
                          f"test={path}", "--dry-run")
    assert outcome.status == 1
    assert "images of 2x5 pixels are smaller than the kernel of 3" in outcome.error


# --- the training ----------------------------------------------------------------------------


@pytest.mark.parametrize(("copies", "epochs", "expected"), [
    (3, 1, [3, 3, 3, 3, 1, 1, 1, 1]), (3, None, [3] * 8), (3, 0, [1] * 8), (1, 50, [1] * 8)])
def test_so_many_copies_in_so_many_epochs(tmp_path, few, monkeypatch, copies, epochs, expected):
    """Of training images alone; every draw has a number that no other has."""
    def spy(images, config, run, number):
        numbers.append(number)
        assert images.shape == (80, 3, 16, 16)
        return images

    numbers = []
    counts = []
    monkeypatch.setattr(ueraser, "augmented", spy)
    monkeypatch.setattr(ueraser, "hardest", lambda model, given, labels, form: (
        counts.append(len(given)), hardest(model, given, labels, form))[1])
    config = Config(architecture="linear", epochs=2, batch_size=80, copies=copies,
                    copies_epochs=epochs)
    with new_run(tmp_path / "out") as run:
        ueraser.fit(few, few, config, run)
    assert counts == expected
    assert len(set(numbers)) == len(numbers) == sum(expected)


def test_no_copies_are_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        Config(copies=0)


@pytest.mark.parametrize(("preset", "data", "expected"), [
    (None, None, (5, 50, 0.5, 0.5, 0.5, 0.3, 0.3, 0.5, "none", 60)),
    ("lite", None, (1, 50, 0.5, 0.5, 0.5, 0.3, 0.3, 0.5, "none", 60)),
    ("max", None, (5, None, 0.5, 0.5, 0.5, 0.3, 0.3, 0.5, "none", 60)),
    ("max", "digits", (5, None, 0.5, 0.5, 0.5, 0.3, 0.3, 0.5, "none", 10)),
    ("strong", None, (5, None, 1, 1, 0.5, 0.3, 0.3, 0.5, "none", 60)),
    ("strong", "imagenet100", (5, None, 1, 1, 0.5, 0.3, 0.1, 0.3, "before", 60)),
    ("first", None, (5, 50, 0.5, 0, 0.5, 0.1, 0.3, 0, "none", 60)),
    ("jpeg", None, (5, None, 0.5, 0.5, 0.5, 0.3, 0.3, 0.5, "after", 60)),
    ("apbench_jpeg", None, (5, None, 0.8, 0.8, 0.5, 0.3, 0.3, 0.5, "before", 60)),
    ("ueraser200", "svhn", (5, 50, 0.5, 0.5, 0.5, 0.3, 0.3, 0.5, "none", 200)),
    ("dvae", "svhn", (5, 50, 0.5, 0.5, 0.5, 0.3, 0.3, 0.5, "none", 200)),
    ("dvae", "imagenet100", (5, 50, 0.5, 0.5, 0.5, 0.3, 0.3, 0.5, "none", 300)),
    ("dvae", "digits", (5, 8, 0.5, 0.5, 0.5, 0.3, 0.3, 0.5, "none", 10)),
    ("ueraser200", None, (5, 50, 0.5, 0.5, 0.5, 0.3, 0.3, 0.5, "none", 200))])
def test_presets_are_the_releases(preset, data, expected):
    words = [str(CONFIGS / "learners/ueraser.yaml"), *([f"preset={preset}"] if preset else [])]
    config = parse(words, "", "evaluate", data).config
    assert (config.copies, config.copies_epochs, config.brightness, config.contrast,
            config.channel_shuffle,
            config.brightness_roughness, config.contrast_roughness, config.intensity, config.jpeg,
            config.epochs) == expected


@pytest.mark.parametrize("when", ["before", "after"])
def test_operations_come_in_the_releases_order(tmp_path, monkeypatch, when):
    done, plain = [], ["brighten", "vary_contrast", "trivial_augment"]
    for name in ("recoded", *plain):
        monkeypatch.setattr(ueraser, name,
                            lambda images, *_, name=name: done.append(name) or images)
    with new_run(tmp_path / "out") as run:
        augmented(torch.rand(4, 3, 8, 8), Config(brightness=1, contrast=1, jpeg=when), run, 0)
    assert done == (["recoded", *plain] if when == "before" else [*plain, "recoded"])
