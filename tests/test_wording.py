"""What a record says that the defence saw: the poisoned set, clean images of which kind, others."""


import pytest

from scripts.tables import wording

CLEAN = {"name": "cifar10", "fingerprint": "c", "shape": [5000, 32, 32, 3], "num_classes": 10,
         "root": {"data": "cifar10", "split": "train"}, "lineage": []}
LSP = {"method": "lsp", "fingerprint": "p", "inputs": {"data": "c"}}
DVAE = {"method": "dvae", "fingerprint": "d", "inputs": {"data": "p", "checkpoint": "k"}}


def record(*lineage: dict, purifiers=(), learner=None, split="train") -> dict:
    root = {"data": "cifar10", "split": split}
    more = {} if learner is None else {"learner_saw": learner}
    return {"train": {"name": "cifar10", "fingerprint": lineage[-1]["fingerprint"] if lineage
                      else "c", "root": root, "lineage": list(lineage)},
            "test": {"root": {"data": "cifar10", "split": "test"}},
            "purifier_trained_on": list(purifiers), **more}


def of(split="train", data="cifar10", **more) -> dict:
    return {**CLEAN, "fingerprint": split, "root": {"data": data, "split": split}, **more}


POISON = {**CLEAN, "fingerprint": "p", "lineage": ["lsp"]}


@pytest.mark.parametrize(("found", "text"), [
    (record(LSP), "nothing"),
    (record(LSP, DVAE, purifiers=[POISON]), "the poisoned set"),
    (record(LSP, DVAE, purifiers=[{**POISON, "fingerprint": "x"}]),
     "5000 images of cifar10, split train + lsp"),
    (record(LSP, DVAE, purifiers=[of("test")]), "5,000 clean test images"),
    (record(LSP, DVAE, purifiers=[of()]), "the clean originals"),
    (record(DVAE, purifiers=[CLEAN]), "the set itself"),
    (record(LSP, DVAE, purifiers=[of("after:40000")], split="first:40000"),
     "5,000 other clean images"),
    (record(LSP, DVAE, purifiers=[of(data="photos")]),
     "other data: 5000 images of photos, split train"),
    (record(LSP, DVAE, purifiers=[{**of("test"), "after": of(data="photos")}]),
     "5,000 clean test images; other data: 5000 images of photos, split train"),
    (record(LSP, learner=[of("last:5000", labelled=True, originals=5000)]),
     "5,000 clean labelled images (5,000 of them originals of the set)"),
    (record(LSP, learner=[of("last:5000", labelled=True, originals=0)]),
     "5,000 clean labelled images"),
    (record(LSP, learner=[of(labelled=True)]), "the clean originals, with their labels"),
    (record(LSP, learner=[of(data="cifar100", labelled=True)]),
     "other data: 5000 images of cifar100, split train, with their labels"),
    (record(LSP, learner=[{"name": "ImageNet labels"}]), "ImageNet labels"),
    (record(LSP, DVAE, purifiers=[POISON], learner=[{"name": "ImageNet labels"}]),
     "the poisoned set; ImageNet labels"),
    (record(LSP, DVAE, DVAE, purifiers=[POISON, POISON]), "the poisoned set"),
])
def test_what_the_defence_saw(found, text):
    assert wording.saw(found) == text


def test_a_purifier_that_fits_something_to_the_set_saw_it(monkeypatch):
    from purifiers import gray

    lineage = LSP, {"method": "gray", "fingerprint": "g"}
    assert wording.saw(record(*lineage)) == "nothing"
    monkeypatch.setattr(gray, "SEES_SET", True, raising=False)
    assert wording.saw(record(*lineage)) == "the poisoned set"


def test_a_test_set_from_a_file_is_known_as_one():
    """Its root has no split: the record of the classifier says what was the test set."""
    found = record(LSP, DVAE, purifiers=[of(data="test.npz")])
    del found["purifier_trained_on"][0]["root"]["split"]
    assert wording.saw(found).startswith("other data")
    found["test"]["root"] = {"data": "test.npz"}
    assert wording.saw(found) == "5,000 clean test images"
