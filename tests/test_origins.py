"""The images behind a set: which test set it remembers, and what may serve as one."""

import dataclasses

import numpy as np
import pytest
from conftest import run_command, save_image, succeed, write_imageset

import evaluate
from core.datasets import DataSettings, load
from core.errors import UserError
from core.origins import load_clean, load_test
from poisons.__main__ import main as poison


def test_a_named_set_remembers_its_test_set_and_size():
    train = load(DataSettings("digits", size=32))
    test = load_test(train, DataSettings("digits", size=32))
    np.testing.assert_array_equal(
        test.images, load(DataSettings("digits", split="test", size=32)).images)


def test_an_imageset_remembers_the_clean_test_set_of_its_origin(few_path):
    settings = DataSettings(str(few_path))
    test = load_test(load(settings), settings)
    np.testing.assert_array_equal(test.images,
                                  load(DataSettings("digits", split="test")).images)


def test_a_test_set_that_is_named_wins(tmp_path, few_path, images, labels):
    other = write_imageset(tmp_path / "other", images, labels)
    settings = DataSettings(str(few_path), test=str(other))
    np.testing.assert_array_equal(load_test(load(settings), settings).images, images)


def test_a_named_test_set_takes_the_size_of_the_training_set(tmp_path):
    digits32 = load(DataSettings("digits", size=32))
    path = write_imageset(tmp_path / "set", digits32.images[:50], digits32.labels[:50], test=None)
    for level in (10, 20):
        save_image(tmp_path / "tree" / str(level), "a.png", np.full((40, 40, 3), level, np.uint8))
    for test in ("digits", f"folder:{tmp_path / 'tree'}"):
        settings = DataSettings(str(path), test=test)
        assert load_test(load(settings), settings).image_shape == (32, 32)


def test_a_linked_folder_is_remembered_by_its_link(tmp_path, monkeypatch, images, labels):
    """`data/` is often a link to a larger disk: what is remembered must not name that disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkout").mkdir()
    np.savez(tmp_path / "disk/set.npz", images=images, labels=labels)
    (tmp_path / "checkout/data").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path / "checkout")
    found = load(DataSettings("data/set.npz", test="./data/set.npz"))
    assert found.meta["root"]["data"] == "data/set.npz"
    assert found.meta["test"]["data"] == "data/set.npz"
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    beside = load(DataSettings("data/../other.npz"))        # beside the disk, not beside the link
    assert beside.meta["root"]["data"] == str(tmp_path / "other.npz")
    outside = load(DataSettings("../disk/set.npz"))
    assert outside.meta["root"]["data"] == str(tmp_path / "disk/set.npz")


def test_a_folder_of_test_images_is_remembered_with_its_size(tmp_path, images, labels):
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    save_image(tmp_path / "tree" / "a", "1.png", np.full((40, 40, 3), 9, np.uint8))
    test = f"folder:{tmp_path / 'tree'}"
    for source in (str(tmp_path / "set.npz"), "digits"):
        train = load(DataSettings(source, test=test))
        assert load_test(train, DataSettings("later")).image_shape == (16, 16)


@pytest.mark.parametrize(("names", "words"), [
    (["cat", "dog"], "has 'cat' as class 0, but .* has 'bird'"),
    (["bird", "dog"], "has 'dog' as class 1, but .* has 'cat'"), (["bird"], None),
    (["bird", "cat", "dog"], None),
])
def test_a_test_folder_has_the_classes_of_the_training_folder(tmp_path, names, words):
    for tree, classes in (("train", ["bird", "cat", "dog"]), ("test", names)):
        for name in classes:
            save_image(tmp_path / tree / name, "1.png", np.zeros((8, 8, 3), np.uint8))
    settings = DataSettings(f"folder:{tmp_path / 'train'}", size=8,
                            test=f"folder:{tmp_path / 'test'}")
    if words is None:
        assert load_test(load(settings), settings).meta["classes"] == names
    else:
        with pytest.raises(UserError, match=words):
            load_test(load(settings), settings)


def test_images_of_other_classes_are_refused():
    """photos' 'china' is no digit 0; an .npz knows numbers alone."""
    settings = DataSettings("digits", test="photos")
    train = load(settings)
    said = r"photos.* has 'china' as class 0, but digits has '0'"
    with pytest.raises(UserError, match=said):
        load_test(train, settings)
    with pytest.raises(UserError, match=said):
        load_clean(train, load(DataSettings("digits", "test")), "photos", "last:5", settings)
    two = train.subset(np.flatnonzero(train.labels < 2), "two")
    np.savez("two.npz", images=two.images, labels=two.labels)
    assert load_test(train, dataclasses.replace(settings, test="two.npz")).num_classes == 2


def test_an_unknown_test_set_is_blamed_on_its_key(few_path):
    settings = DataSettings(str(few_path), test="digts")
    with pytest.raises(UserError, match=r"^test: 'digts' .*did you mean 'digits'"):
        load_test(load(settings), settings)


def test_without_a_test_set_one_is_asked_for(tmp_path, images, labels):
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    settings = DataSettings(str(tmp_path / "set.npz"))
    with pytest.raises(UserError, match="has no test set of its own: name one with test="):
        load_test(load(settings), settings)


@pytest.mark.parametrize(("words", "said"), [
    (["data=digits"], ""), (["data={poisoned}"], ""),
    (["data=digits", "split=test"], "test images are among those that digits was made from"),
    (["data=digits", "test={poisoned}"], "the test images went through random_signs: accuracy"),
    (["data={poisoned}", "test=digits"], ""),
])
def test_accuracy_on_images_that_are_not_clean_or_not_unseen_is_said(tmp_path, words, said):
    poisoned = succeed(poison, "random_signs", "data=digits", f"out={tmp_path / 'poisoned'}")
    outcome = run_command(evaluate.main, "em60", "--dry-run",
                          *(word.format(poisoned=poisoned) for word in words))
    assert outcome.status == 0
    assert said in outcome.stderr
    assert ("accuracy on" in outcome.stderr) == bool(said)


def test_a_test_set_that_does_not_fit_is_refused(tmp_path, images, labels):
    data = write_imageset(tmp_path / "set", images, labels)
    for name, other, classes in (("small", images[:, :8, :8], 10), ("many", images, 11)):
        test = write_imageset(tmp_path / name, np.ascontiguousarray(other), labels, classes)
        settings = DataSettings(str(data), test=str(test))
        with pytest.raises(UserError, match=f"the test set .*{name} has"):
            load_test(load(settings), settings)
