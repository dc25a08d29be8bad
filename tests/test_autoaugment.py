"""AutoAugment: its tables, and each image under a sub-policy of its own against a plain loop."""

import numpy as np
import pytest
import torch
from conftest import new_run
from PIL import Image
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms import autoaugment as released

from core.errors import UserError
from learners import autoaugment
from learners.autoaugment import NAMES, TABLE, augmented, policy_of, read
from learners.operations import OPERATIONS


def test_the_table_is_fast_autoaugments():
    rows = read(TABLE)
    assert len(rows) == len(set(rows)) == 493
    assert np.mean([part[1] for row in rows for part in row]) == pytest.approx(0.509, abs=5e-4)
    assert {part[0] for row in rows for part in row} == set(NAMES)
    assert rows[0] == (("Contrast", 0.8320659688593578, 0.49884310562180767),
                       ("TranslateX", 0.41849883971249136, 0.394023086494538))
    assert "Copyright (c) 2019 Ildoo Kim" in TABLE.read_text()


def test_magnitudes_are_the_releases():
    policy = policy_of("fast", 32, 24)
    first = policy.magnitudes[0]
    contrast, shift = 0.49884310562180767, 0.394023086494538
    assert first[0] == pytest.approx([0.1 + 1.8 * contrast] * 2)        # not mirrored
    assert first[1] == pytest.approx([24 * (0.9 * shift - 0.45), 24 * (0.45 - 0.9 * shift)])
    for name, low, high, mirrored in [
            ("ShearX", -0.3, 0.3, True), ("ShearY", -0.3, 0.3, True), ("Rotate", -30, 30, True),
            ("TranslateX", -10.8, 10.8, True), ("TranslateY", -14.4, 14.4, True),
            ("Solarize", 0, 256, False), ("Posterize", 4, 8, False), ("Cutout", 0, 4.8, False),
            ("Color", 0.1, 1.9, False), ("Brightness", 0.1, 1.9, False),
            ("Sharpness", 0.1, 1.9, False)]:
        for level, value in ((0, low), (1, high)):
            found = autoaugment.released_magnitudes(name, level, 32, 24)
            assert found == pytest.approx((value, -value if mirrored else value))


@pytest.mark.parametrize(("name", "data"), [("torchvision", "cifar10"),
                                            ("torchvision_svhn", "svhn"),
                                            ("torchvision_imagenet", "imagenet")])
def test_torchvisions_policies_are_torchvisions(name, data):
    """Each of the 25 x 2 operations, either way round, on an image, and its probability."""
    shape = 24, 40
    theirs = AutoAugment(AutoAugmentPolicy(data))
    space = theirs._augmentation_space(10, shape)
    policy = policy_of(name, *shape)
    assert policy.operations.shape == (25, 2)
    images = np.random.default_rng(0).integers(0, 256, (25, 2, 2, *shape, 3), dtype=np.uint8)
    for number, row in enumerate(theirs.policies):
        for place, (operation, probability, level) in enumerate(row):
            assert NAMES[policy.operations[number, place]] == operation
            assert policy.probabilities[number, place] == probability
            magnitudes, signed = space[operation]
            magnitude = float(magnitudes[level]) if level is not None else 0.0
            for turned in (0, 1):
                image = images[number, place, turned]
                expected = released._apply_op(
                    Image.fromarray(image), operation, -magnitude if signed and turned else
                    magnitude, InterpolationMode.NEAREST, None)
                found = OPERATIONS[operation](
                    torch.from_numpy(image[None]),
                    torch.from_numpy(policy.magnitudes[number, place, turned, None]))
                np.testing.assert_array_equal(found[0].numpy(), np.asarray(expected))


def test_each_image_has_a_sub_policy_of_its_own(images):
    """A plain loop over images, by the same draws. Mistakes that it names: one sub-policy for the
    whole batch, the second operation before the first, a probability of the other operation."""
    policy = policy_of("fast", 16, 16)
    found = augmented(torch.from_numpy(images.copy()), policy, np.random.default_rng(5)).numpy()
    draw, count = np.random.default_rng(5), len(images)
    chosen = draw.integers(493, size=count)
    draws = [(draw.random(count), draw.integers(2, size=count), draw.random((count, 2)))
             for _ in (1, 2)]
    rows, unchanged = read(TABLE), 0
    for i in range(count):
        image = torch.from_numpy(images[i : i + 1].copy())
        for place, (u, turned, centre) in enumerate(draws):
            name, probability, level = rows[chosen[i]][place]
            if u[i] > probability:
                continue
            magnitude = autoaugment.released_magnitudes(name, level, 16, 16)[turned[i]]
            arguments = [torch.tensor([magnitude], dtype=torch.float64)]
            if name == "Cutout":
                arguments.append(torch.from_numpy(centre[i : i + 1]))
            image = OPERATIONS[name](image, *arguments)
        np.testing.assert_array_equal(found[i], image[0].numpy())
        unchanged += np.array_equal(found[i], images[i])
    assert unchanged < count / 2                    # (1 - .509)^2 is a quarter


def test_it_comes_before_crop_and_flip_and_not_to_the_test_set(tmp_path, few, monkeypatch):
    def spy(images, policy, draw):
        seen.append((images.dtype, tuple(images.shape)))
        drawn.append(draw.random())
        return torch.zeros_like(images)

    seen, drawn = [], []
    monkeypatch.setattr(autoaugment, "augmented", spy)
    config = autoaugment.Config(architecture="linear", epochs=1, batch_size=80)
    with new_run(tmp_path / "out") as run:
        result = autoaugment.fit(few, few, config, run)
    assert seen == [(torch.uint8, (80, 16, 16, 3))] * 4
    assert len(set(drawn)) == 4                     # each step has draws of its own
    assert result.images == 320


@pytest.mark.parametrize(("row", "word"), [
    ("Contrast,1.5,0.5,Color,0.5,0.5", "Contrast,1.5,0.5"), ("Contrast,0.5,0.5,Colour,0.5,0.5",
     "Colour,0.5,0.5"), ("Contrast,0.5,nan,Color,0.5,0.5", "nan"), ("Contrast,0.5", "sub-policy 1"),
    ("Contrast,0.5,0.5,Color,0.5,0.5,7", "Color,0.5,0.5,7"), ("", "not a table")])
def test_a_damaged_table_names_the_row(tmp_path, row, word):
    path = tmp_path / "table.csv"
    path.write_text("# comment\nop1,prob1,level1,op2,prob2,level2\n" + row + "\n" * bool(row))
    with pytest.raises(UserError, match=word) as error:
        read(path)
    assert str(path) in str(error.value)
