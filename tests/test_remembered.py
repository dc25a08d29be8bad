"""The images behind an artefact: found again from anywhere, and checked before they are used."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIGS, run_command, sign, succeed, write_imageset
from PIL import Image

import evaluate
import purify
from core import datasets, embedded
from core.datasets import DataSettings, load
from core.errors import UserError
from core.imageset import ImageSet
from core.origins import clean_of, load_test
from core.splits import share_images
from poisons.__main__ import main as poison
from scripts.exchange import export, import_poison
from scripts.pictures import figures, inspect_poison

LSP, GRAY = CONFIGS / "poisons/lsp.yaml", CONFIGS / "purifiers/gray.yaml"
EVALUATE = (CONFIGS / "learners/cpu12.yaml", "standard.width=4", "standard.epochs=1",
            "standard.batch_size=32")


def random_set(path: Path, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=rng.integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8),
             labels=np.arange(rows) % 4)


@pytest.fixture
def made(tmp_path, monkeypatch) -> Path:
    """A poison in A/lsp of A/train.npz and A/test.npz, made there; now we are in B, which has other
    files of these names."""
    for seed, folder in enumerate("AB"):
        random_set(tmp_path / folder / "train.npz", 64, seed)
        random_set(tmp_path / folder / "test.npz", 16, seed + 10)
    monkeypatch.chdir(tmp_path / "A")
    succeed(poison, LSP, "lsp.patch=4", "data=train.npz", "test=test.npz", "out=lsp")
    monkeypatch.chdir(tmp_path / "B")
    return tmp_path / "A/lsp"


def check(path: Path | str, folder: Path) -> None:
    """The set at `path` stands on the files in `folder`."""
    found = ImageSet.load(path)
    test = load_test(found, DataSettings(str(path)))
    for images, name in ((test.images, "test.npz"), (clean_of(found, "data").images, "train.npz")):
        with np.load(folder / name) as archive:
            np.testing.assert_array_equal(images, archive["images"])


def test_what_is_remembered_is_found_from_any_folder(made, tmp_path, monkeypatch):
    check(made, tmp_path / "A")
    check("../A/lsp", tmp_path / "A")
    monkeypatch.chdir(tmp_path / "A")
    check("lsp", tmp_path / "A")
    assert ImageSet.load("lsp").meta["test"]["data"] == "test.npz"      # no word of other folders
    assert str(tmp_path) not in (made / "meta.json").read_text()


def test_a_set_made_elsewhere_from_it_remembers_the_same(made, tmp_path, monkeypatch):
    succeed(purify.main, GRAY, "data=../A/lsp", "out=gray")
    check("gray", tmp_path / "A")
    monkeypatch.chdir("/")
    check(tmp_path / "B/gray", tmp_path / "A")


def test_a_checkout_can_be_moved_whole(made, tmp_path):
    (tmp_path / "A").rename(tmp_path / "C")
    check(tmp_path / "C/lsp", tmp_path / "C")


def test_a_set_below_a_link_finds_its_way(made, tmp_path, monkeypatch):
    """runs/ is often a link to a larger disk: the way back leads through the link."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "A/runs").symlink_to(tmp_path / "disk")
    monkeypatch.chdir(tmp_path / "A")
    succeed(poison, LSP, "lsp.patch=4", "data=train.npz", "test=test.npz", "out=runs/deep/lsp")
    monkeypatch.chdir(tmp_path / "B")
    check("../A/runs/deep/lsp", tmp_path / "A")


def test_a_set_that_was_moved_alone_uses_no_other_images(made, tmp_path, monkeypatch):
    made.rename(tmp_path / "B/lsp")
    with pytest.raises(UserError, match=r"test set of lsp: test\.npz holds other .*test="):
        load_test(ImageSet.load("lsp"), DataSettings("lsp"))
    with pytest.raises(UserError, match=r"clean images .*: train\.npz holds other images"):
        clean_of(ImageSet.load("lsp"), "data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"test set of ../B/lsp: .*name one with test="):
        load_test(ImageSet.load("../B/lsp"), DataSettings("../B/lsp", root="x"))
    typed = DataSettings("../B/lsp", test="../A/test.npz")              # a typed one wins
    assert len(load_test(ImageSet.load("../B/lsp"), typed)) == 16


@pytest.mark.parametrize("change", ["pixel", "label"])
def test_no_command_uses_changed_images(made, tmp_path, change):
    for name in ("train.npz", "test.npz"):
        with np.load(tmp_path / "A" / name) as archive:
            images, labels = archive["images"], archive["labels"]
        if change == "pixel":
            images[3, 2, 1, 0] ^= 1
        else:
            labels[:2] = labels[1::-1]
        np.savez(tmp_path / "A" / name, images=images, labels=labels)
    for main, *words in (
            (evaluate.main, *EVALUATE, f"data={made}", "out=out"),
            (export.main, made, "--as", "pt", "--out", "out.pt"),
            (inspect_poison.main, made, "--out", "out.png"),
            (figures.main, "grid", "--out", "out.png", made)):
        outcome = run_command(main, *words)
        assert outcome.status == 1
        assert "holds other images or labels than" in outcome.error, outcome.stderr
        assert not list(Path().glob("out*"))


def test_a_folder_of_images_is_checked_too(tmp_path):
    rng = np.random.default_rng(0)
    for tree in ("train", "test"):
        for name in ("a", "b"):
            for i in range(6):
                path = tmp_path / tree / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    succeed(poison, LSP, "lsp.patch=4", "data=folder:train", "size=16", "test=folder:test",
            "out=lsp")
    found = ImageSet.load("lsp")
    assert len(load_test(found, DataSettings("lsp"))) == len(clean_of(found, "data")) == 12
    for tree in ("train", "test"):
        (tmp_path / tree / "a/5.png").rename(tmp_path / tree / "b/9.png")
    with pytest.raises(UserError, match="folder:test holds other images"):
        load_test(found, DataSettings("lsp"))
    with pytest.raises(UserError, match="folder:train holds other images"):
        clean_of(found, "data")


def test_digits_of_another_version_are_refused(few, monkeypatch):
    succeed(poison, LSP, "lsp.patch=4", "data=digits", "split=first:64", "out=lsp")
    found = ImageSet.load("lsp")
    np.testing.assert_array_equal(clean_of(found, "data").images, few.images[:64])
    grey, labels = embedded.grey_digits()
    monkeypatch.setattr(embedded, "grey_digits", lambda: (grey.clip(0, 15), labels))
    with pytest.raises(UserError, match="digits holds other images"):
        clean_of(found, "data")
    with pytest.raises(UserError, match="digits holds other images"):
        load_test(found, DataSettings("lsp"))


def test_torchvisions_sets_are_checked(images, labels, monkeypatch):
    def stand_in(change):
        return lambda source, split, root: (images ^ change if split == "test" else images, labels,
                                            [str(i) for i in range(10)])

    monkeypatch.setattr(datasets, "from_torchvision", stand_in(0))
    succeed(poison, LSP, "lsp.patch=4", "data=cifar10", "out=lsp")
    found = ImageSet.load("lsp")
    assert len(load_test(found, DataSettings("lsp"))) == len(clean_of(found, "data")) == 60
    monkeypatch.setattr(datasets, "from_torchvision", stand_in(1))
    clean_of(found, "data")
    with pytest.raises(UserError, match="cifar10 holds other images"):
        load_test(found, DataSettings("lsp"))


def test_a_test_set_that_was_edited_with_its_digests_is_refused(tmp_path, images, labels):
    """An image set's fingerprint is its job's; what is remembered is its content."""
    np.savez("train.npz", images=images, labels=labels)
    test = write_imageset(tmp_path / "test", images, labels, fingerprint="f" * 64)
    succeed(poison, LSP, "lsp.patch=4", "data=train.npz", f"test={test}", "out=lsp")
    assert len(load_test(ImageSet.load("lsp"), DataSettings("lsp"))) == 60
    meta = json.loads((test / "meta.json").read_text())
    np.save(test / "images.npy", images[::-1])
    sign(test, meta)
    with pytest.raises(UserError, match="test holds other images"):
        load_test(ImageSet.load("lsp"), DataSettings("lsp"))


def test_older_sets_still_load_and_say_what_is_unchecked(made, tmp_path, monkeypatch, capsys):
    """Without digests and without the way back: files are those of the working folder."""
    meta = json.loads((made / "meta.json").read_text())
    sign(made, {key: value for key, value in meta.items()
                if key not in ("root_digest", "test_digest", "working_folder")})
    monkeypatch.chdir(tmp_path / "A")
    capsys.readouterr()
    check("lsp", tmp_path / "A")
    [line] = capsys.readouterr().err.splitlines()       # the lineage has the clean set's
    assert line == ("note: the test set of lsp is taken from test.npz unchecked: the set has no "
                    "digest of it")
    monkeypatch.chdir(tmp_path / "B")
    clean_of(ImageSet.load(made), "data")
    assert "are taken from train.npz unchecked" in capsys.readouterr().err


def test_labels_of_other_rows_are_refused(few_path, few):
    """A set written by hand may name any root; row i must be row i."""
    rows = np.arange(320)[::-1]
    other = write_imageset(Path("other"), few.images[rows], few.labels[rows])
    with pytest.raises(UserError, match="whose rows are not those of the set's 320"):
        clean_of(ImageSet.load(other), "data")
    assert len(clean_of(ImageSet.load(few_path), "data")) == 320
    outcome = run_command(inspect_poison.main, other, few_path, "--out", "x.png")
    assert outcome.status == 1
    assert "other labels" in outcome.error


def test_the_attack_on_a_part_finds_its_own_rows(digits):
    succeed(poison, LSP, "lsp.patch=4", "data=digits", "fraction=0.05", "craft_on=part", "out=part")
    [attack] = Path("runs/poisons").iterdir()
    found = ImageSet.load(attack)
    rows = np.load("part/poisoned_rows.npy")
    np.testing.assert_array_equal(clean_of(found, "data").images, digits.images[rows])
    assert len(clean_of(ImageSet.load("part"), "data")) == len(digits)


def test_an_attack_on_all_images_lends_a_part(digits):
    """The rows that D-VAE's code draws, as the whole attack made them; the rest is clean."""
    succeed(poison, LSP, "lsp.patch=4", "data=digits", "seed=3", "fraction=0.3", "out=mixed")
    [attack] = Path("runs/poisons").iterdir()
    whole, mixed = ImageSet.load(attack), ImageSet.load("mixed")
    rows = np.sort(np.random.RandomState(3).choice(1437, 431, replace=False))
    np.testing.assert_array_equal(np.load("mixed/poisoned_rows.npy"), rows)
    assert len(whole) == len(mixed) == len(digits) == 1437
    assert (np.array(whole.images) != digits.images).any((1, 2, 3)).all()
    expected = np.array(digits.images)
    expected[rows] = whole.images[rows]
    np.testing.assert_array_equal(mixed.images, expected)


def test_an_imported_poison_remembers_too(tmp_path, images, labels):
    np.savez("train.npz", images=images, labels=labels)
    np.savez("test.npz", images=images[:20], labels=labels[:20])
    np.save("poisoned.npy", images // 2)
    succeed(import_poison.main, "poisoned.npy", "--base", "train.npz", "--test", "test.npz",
            "--out", "imported")
    np.savez("test.npz", images=images[20:40], labels=labels[20:40])
    with pytest.raises(UserError, match=r"test\.npz holds other images"):
        load_test(ImageSet.load("imported"), DataSettings("imported"))


def test_a_typed_test_set_is_read_before_the_work(tmp_path, images, labels):
    np.savez("train.npz", images=images, labels=labels)
    np.savez("small.npz", images=images[:, :8, :8], labels=labels)
    for test, words in (("none.npz", "no such file"), ("small.npz", "has 8x8 images")):
        outcome = run_command(poison, LSP, "lsp.patch=4", "data=train.npz", f"test={test}",
                              "out=out")
        assert outcome.status == 1
        assert words in outcome.error
        assert not Path("out").exists()
        assert not Path("out.partial").exists()


def test_a_typed_test_set_is_what_an_image_set_remembers_on(made, tmp_path, monkeypatch):
    succeed(purify.main, GRAY, f"data={made}", "test=test.npz", "out=gray")
    monkeypatch.chdir(tmp_path)
    test = load_test(ImageSet.load("B/gray"), DataSettings("B/gray"))
    with np.load("B/test.npz") as archive:
        np.testing.assert_array_equal(test.images, archive["images"])
    random_set(tmp_path / "B/test.npz", 16, 7)
    with pytest.raises(UserError, match="holds other images"):
        load_test(ImageSet.load("B/gray"), DataSettings("B/gray"))


@pytest.mark.parametrize("root", [{}, 3, {"data": 3}, {"data": "digits", "colour": 1},
                                  {"data": "digits", "size": "x"}, {"data": None}])
def test_an_odd_root_is_one_sentence(few, root):
    path = write_imageset(Path("odd"), few.images, few.labels, root=root, working_folder="..")
    outcome = run_command(export.main, path, "--as", "pt", "--out", "x.pt")
    assert outcome.status == 1
    assert outcome.error, outcome.stderr


def test_one_set_at_two_places_shares_its_images():
    one, other = {"data": "a.npz", "split": "first:10"}, {"data": "/b/a.npz"}
    assert not share_images(one, other)
    assert share_images({**one, "digest": "d"}, {**other, "digest": "d"})
    assert not share_images({**one, "digest": "d"},
                            {"data": "/b/a.npz", "split": "after:10", "digest": "d"})
    assert not share_images({**one, "digest": "d"}, {**other, "digest": "e"})


def test_a_digest_is_of_the_whole_set(tmp_path, images, labels):
    """A split taken later is of the same set."""
    np.savez("train.npz", images=images, labels=labels)
    digests = {load(DataSettings("train.npz", split=split)).meta["root_digest"]
               for split in ("train", "first:9", "protected")}
    assert len(digests) == 1


def test_a_folder_with_a_data_sets_name_is_remembered_as_a_folder(tmp_path, monkeypatch):
    """`digits` alone would mean scikit-learn's when it is read again."""
    monkeypatch.chdir(tmp_path)
    random_set(Path("train.npz"), 64, 0)
    own = np.random.default_rng(1).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    write_imageset(Path("digits"), own, np.arange(16) % 4, 4, root={"data": "made"})
    for number, typed in enumerate(("./digits", tmp_path / "digits")):
        out = succeed(poison, LSP, "lsp.patch=4", "data=train.npz", f"test={typed}",
                      f"out={number}")
        assert json.loads((out / "meta.json").read_text())["test"] == {"data": "./digits"}
        np.testing.assert_array_equal(load_test(ImageSet.load(out), DataSettings(str(out))).images,
                                      own)


def test_another_test_set_than_finished_work_remembers_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("train", "test", "other")):
        random_set(Path(f"{name}.npz"), 64, seed)
    line = (LSP, "lsp.patch=4", "data=train.npz")
    made = succeed(poison, *line, "test=test.npz")
    again = run_command(poison, *line, "test=test.npz")
    other = run_command(poison, *line, "test=other.npz")
    assert (again.status, other.status) == (0, 0)
    assert "remembers" not in again.stderr
    assert "the test set that it remembers is test.npz: name the other one" in other.stderr
    gray = (GRAY, f"data={made}")
    succeed(purify.main, *gray)
    assert "it remembers is test.npz" in run_command(purify.main, *gray, "test=other.npz").stderr
