"""Learners that have clean labelled images beside the set: which ones, what they do with them, and
what a record says of it."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, Death, as_floats, new_run, run_command, succeed, write_imageset
from sklearn.linear_model import LogisticRegression

import evaluate
from core import records
from core.batches import Batches
from core.datasets import DataSettings, load
from core.errors import UserError
from core.imageset import ImageSet
from core.loop import Loop
from core.origins import load_clean
from core.splits import split_rows
from core.training import accuracy
from learners import dilution, early_stopping, probe, reweighted_head, standard
from poisons.__main__ import main as poison
from purify import main as purify
from scripts.tables import plan, spec, wording

SMALL = {"architecture": "linear", "batch_size": 16, "crop_padding": 1}
TEST = load(DataSettings("digits", "test"))


# --- which images ----------------------------------------------------------------------------


@pytest.mark.parametrize(("train", "split", "rows", "originals"), [
    ("train", "last:5", "1432 to 1436", 5), ("first:1400", "last:50", "1387 to 1436", 13),
    ("first:1400", "after:1400", "1400 to 1436", 0), ("last:10", "first:10", "0 to 9", 0),
    ("protected", "reference", "3 to 1436, reference", 0),
    ("reference", "train", "0 to 1436", 287)])
def test_clean_images_are_rows_of_the_data_set_behind_the_set(train, split, rows, originals):
    settings = DataSettings("digits", train)
    clean = load_clean(load(settings), TEST, None, split, settings)
    whole = load(DataSettings("digits"))
    chosen = np.arange(1437) if split == "train" else split_rows(split, 1437)
    np.testing.assert_array_equal(clean.images, whole.images[chosen])
    np.testing.assert_array_equal(clean.labels, whole.labels[chosen])
    assert (clean.meta["rows"], clean.meta["originals"]) == (rows, originals)


def test_the_rows_that_limit_leaves_are_the_originals():
    settings = DataSettings("digits")
    clean = load_clean(load(settings).first(100), TEST, None, "first:120", settings)
    assert clean.meta["originals"] == 100


@pytest.mark.parametrize(("held_out", "split", "shared"), [
    ("first:200", "last:200", 0), ("first:200", "after:200", 0), ("first:200", "after:199", 1),
    ("spread:3", "first:2", 1), ("last:100", "protected", 1), ("protected", "reference", 0)])
def test_rows_of_train_that_are_held_out_for_testing_are_not_learned_from(held_out, split, shared):
    settings = DataSettings("digits", "after:400")
    test = load(DataSettings("digits", held_out))
    if shared:
        with pytest.raises(UserError, match="is the test set, which measures"):
            load_clean(load(settings), test, None, split, settings)
    else:
        clean = load_clean(load(settings), test, None, split, settings)
        np.testing.assert_array_equal(clean.images, load(DataSettings("digits", split)).images)


def test_other_images_have_no_originals_among_them(few):
    beside = few.first(20)
    np.savez("beside.npz", images=beside.images, labels=beside.labels)
    clean = load_clean(few, TEST, "beside.npz", "last:5", DataSettings("digits"))
    assert (len(clean), clean.meta["rows"], clean.meta["originals"]) == (5, "15 to 19", 0)


@pytest.mark.parametrize(("clean", "split", "message"), [
    (None, "test", "clean_split: the test images measure, so no learner sees them"),
    ("test.npz", "train", "clean: test.npz is the test set, which measures"),
    ("poisoned", "train", "clean: poisoned is not clean (it was made by lsp)"),
    ("photos", "last:5", "clean: photos has 'china' as class 0, but digits has '0'"),
    ("large.npz", "train", "clean: large.npz has 32x32 images of 10"),
    ("nowhere", "train", "clean: 'nowhere' is neither a path nor a known data set"),
    (None, "lsat:5", "split: 'lsat:5' is not train, test"),
])
def test_what_is_not_clean_or_does_not_fit_is_one_sentence(few, clean, split, message):
    np.savez("test.npz", images=TEST.images, labels=TEST.labels)
    np.savez("large.npz", images=TEST.images.repeat(2, 1).repeat(2, 2), labels=TEST.labels)
    write_imageset(Path("poisoned"), few.images, few.labels, lineage=[{"method": "lsp"}])
    test = load(DataSettings("test.npz"))
    with pytest.raises(UserError) as error:
        load_clean(few, test, clean, split, DataSettings("digits"))
    assert str(error.value).startswith(message)


def test_a_learner_that_needs_none_takes_none(few_path):
    outcome = run_command(evaluate.main, "method=standard", f"data={few_path}", "clean=digits")
    assert outcome.error == "clean: standard learns from the set alone and takes no clean images"
    outcome = run_command(poison, "method=lsp", f"data={few_path}", "clean_split=last:5")
    assert "takes none; it is a key of python evaluate.py" in outcome.error


def test_the_images_are_part_of_what_identifies_a_record(few_path, tmp_path):
    """And a table's plan knows it before the record is made."""
    (tmp_path / "table.yaml").write_text("""
data: [digits]
rows: {clean: []}
columns:
  nine: {evaluate: CONFIGS/learners/early_stopping.yaml, clean_split: "last:9"}
  ten: {evaluate: CONFIGS/learners/early_stopping.yaml, clean_split: "last:10"}
evaluate: {evaluate: CONFIGS/learners/em60.yaml}
""".replace("CONFIGS", str(CONFIGS)))
    planned = [cell.record.job.fingerprint[:16] for cell in plan.cells_of(spec.read("table.yaml"))]
    prints = []
    for count in (9, 10):
        line = (CONFIGS / "learners/early_stopping.yaml", "data=digits", "seed=0", "--dry-run",
                f"clean_split=last:{count}")
        prints.append(run_command(evaluate.main, *line).stdout.split("# fingerprint ")[1][:16])
    assert prints == planned
    assert prints[0] != prints[1]


def test_images_of_ones_own_that_count_as_clean_are_said(few):
    """An .npz that may be poisoned: as it is, and purified here. What was poisoned here, or is of a
    known data set, is known."""
    np.savez("own.npz", images=few.images, labels=few.labels)
    line = (CONFIGS / "learners/early_stopping.yaml", "like=digits", "early_stopping.epochs=1",
            "early_stopping.architecture=linear", "clean_split=last:40")
    succeed(purify, "jpeg", "data=own.npz", "out=purified")
    succeed(poison, "lsp", "data=own.npz", "test=digits", "like=digits", "out=poisoned")
    np.savez("beside.npz", images=few.images, labels=few.labels)

    def said(*words: str) -> list[str]:
        outcome = run_command(evaluate.main, *line, *words)
        assert outcome.status == 0, outcome.stderr
        return [text for text in outcome.stderr.splitlines() if "count as clean" in text]

    for data in ("own.npz", "purified"):
        [text] = said(f"data={data}", "test=digits")
        assert text.startswith("note: the images of own.npz count as clean, and nothing here says")
        assert text.endswith("name clean ones by clean=")
    assert not said("data=own.npz", "test=digits", "clean=beside.npz")
    assert not said("data=poisoned")
    assert not said("data=digits", "split=first:320")


@pytest.mark.parametrize(("data", "judge", "said"), [
    ("own.npz", "clean", True), ("own.npz", "released", False), ("digits", "clean", False)])
def test_a_probe_on_labels_of_ones_own_says_so(few, tmp_path, capsys, data, judge, said):
    np.savez("own.npz", images=few.images, labels=few.labels)
    with new_run(tmp_path / "run") as run:
        probe.images_of(load(DataSettings(data)), probe.Probe(data=judge), run)
    assert ("the images of own.npz count as clean" in capsys.readouterr().err) == said


@pytest.mark.parametrize("name", ["early_stopping", "reweighted_head", "dilution"])
def test_on_digits_a_yaml_works_by_itself_and_its_record_says_what_it_saw(name):
    more = ["preset=frozen"] if name == "reweighted_head" else []
    out = succeed(evaluate.main, CONFIGS / f"learners/{name}.yaml", "data=digits",
                  "--limit", "1300", f"{name}.epochs=1", f"{name}.architecture=linear", *more)
    record = records.load(out)
    assert wording.saw(record) == "200 clean labelled images (63 of them originals of the set)"
    [seen] = record["learner_saw"]
    assert seen["rows"] == "1237 to 1436"
    assert seen["root"] == {"data": "digits", "size": 16, "split": "last:200"}


# --- early stopping --------------------------------------------------------------------------


@pytest.fixture
def scripted(monkeypatch):
    """Validation accuracies as they are told, one an epoch; others as they are."""
    def begin(values: list[float]) -> list[float]:
        left = list(values)

        def told(model, data: ImageSet, run) -> float:
            return left.pop(0) if data is run.clean else accuracy(model, data, run)

        monkeypatch.setattr(early_stopping, "accuracy", told)
        return left

    return begin


def stopped(few: ImageSet, out, test: ImageSet, **changes):
    config = early_stopping.Config(**{**SMALL, "epochs": 4, "schedule": "constant", **changes})
    with new_run(out) as run:
        run.clean = few.first(30)
        return early_stopping.fit(few.first(64), test, config, run)


def test_the_weights_of_the_best_validation_epoch_are_kept(few, tmp_path, scripted):
    """The first, of equal ones: those of a training that had only so many epochs."""
    scripted([0.2, 0.7, 0.7, 0.1])
    result = stopped(few, tmp_path / "a", TEST)
    shorter = standard.Config(**SMALL, epochs=2, schedule="constant")
    with new_run(tmp_path / "b") as run:
        expected = standard.fit(few.first(64), TEST, shorter, run)
    for name, tensor in expected.network.state_dict().items():
        assert torch.equal(result.network.state_dict()[name], tensor), name
    assert (result.kept_epoch, result.last, result.epochs) == (2, expected.last, 4)
    assert len(result.curve) == 4


def test_patience_ends_the_training(few, tmp_path, scripted):
    left = scripted([0.2, 0.7, 0.6, 0.6, 0.9])
    result = stopped(few, tmp_path / "a", TEST, epochs=5, patience=2)
    assert (result.epochs, result.kept_epoch, left) == (4, 2, [0.9])


def test_the_test_images_choose_nothing(few, tmp_path):
    wrong = dataclasses.replace(TEST, labels=(TEST.labels + 1) % 10)
    one, two = (stopped(few, tmp_path / name, test, learning_rate=1.0)
                for name, test in (("a", TEST), ("b", wrong)))
    assert one.kept_epoch == two.kept_epoch
    assert one.last != two.last
    assert torch.equal(one.network.linear.weight, two.network.linear.weight)


def test_weights_of_a_killed_process_keep_their_epoch(few, tmp_path, scripted, monkeypatch):
    """On a GPU an epoch that is repeated may score otherwise, when the best weights are written
    already. Killed after the third of four epochs, resumed after the second."""
    end_epoch, ended = Loop.end_epoch, []

    def dying(loop, **told):
        ended.append(loop.epoch)
        if ended == [0, 1, 2]:
            raise Death
        monkeypatch.setattr("core.run.SAVE_SECONDS", 0.0 if loop.epoch < 2 else math.inf)
        end_epoch(loop, **told)

    monkeypatch.setattr(Loop, "end_epoch", dying)
    scripted([0.2, 0.7, 0.9])
    with pytest.raises(Death):
        stopped(few, tmp_path / "a", TEST)
    scripted([0.6, 0.1])
    result = stopped(few, tmp_path / "a", TEST)
    assert ended == [0, 1, 2, 2, 3]
    assert result.kept_epoch == 3


def test_an_epoch_that_was_kept_and_not_tested_is_the_best_if_it_is(few, tmp_path, scripted):
    scripted([0.2, 0.1, 0.9, 0.1])
    result = stopped(few, tmp_path / "a", TEST, test_every=0, learning_rate=1.0)
    assert [epoch for epoch, _ in result.curve] == [4]
    assert result.last > result.curve[0][1]
    assert (result.best, result.best_epoch) == (result.last, 3)


# --- the refitted head -----------------------------------------------------------------------


def refitted(few: ImageSet, out, refit: str, **changes):
    """A small network as trained, and with its head refitted on 60 images."""
    values = {**SMALL, "architecture": "resnet18", "width": 4, "epochs": 1, **changes}
    with new_run(out / "plain") as run:
        plain = standard.fit(few.first(64), TEST, standard.Config(**values), run)
    with new_run(out / refit) as run:
        run.clean = few.first(60)
        config = reweighted_head.Config(**values, refit=refit)
        result = reweighted_head.fit(few.first(64), TEST, config, run)
        [note] = [line for line in run.folder.log.lines() if line["loop"] == "refit"]
    assert (note["before"], note["after"]) == (plain.last, result.last)
    return plain.network, result


def test_one_clean_image_is_too_few_for_batch_norm(few_path):
    outcome = run_command(evaluate.main, "method=reweighted_head", f"data={few_path}", "--smoke",
                          "clean_split=last:1", "reweighted_head.stem=imagenet")
    assert outcome.status == 1
    assert "clean_split: the refit of the head needs two clean images" in outcome.error


@pytest.mark.parametrize("c", [1.0, 0.05])
def test_the_frozen_refit_is_scikit_learns_logistic_regression(few, tmp_path, c):
    plain, result = refitted(few, tmp_path, "frozen")
    with new_run(tmp_path / "again") as run, torch.no_grad():
        run.clean = few.first(60)
        model = plain.eval()
        reweighted_head.refit_frozen(model, model.linear, c, run)
        images = as_floats(run.clean.images)
        features = model.features(images).double().numpy()
        expected = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(features,
                                                                          run.clean.labels)
        np.testing.assert_allclose(model.linear.weight, expected.coef_, atol=1e-4)
        found = model.linear.bias - model.linear.bias.mean()        # the softmax does not see a sum
        np.testing.assert_allclose(found, expected.intercept_ - expected.intercept_.mean(),
                                   atol=1e-3)
        if c == 1.0:
            assert torch.equal(result.network.linear.weight, model.linear.weight)


def test_the_best_accuracy_is_one_of_the_curve(few, tmp_path):
    """Also where the refit, here on wrong labels, takes away the best one."""
    wrong = dataclasses.replace(few.first(60), labels=(few.labels[:60] + 1) % 10)
    with new_run(tmp_path / "a") as run:
        run.clean = wrong
        result = reweighted_head.fit(few, TEST, reweighted_head.Config(
            **SMALL, epochs=3, refit="frozen", learning_rate=0.5), run)
        [note] = [line for line in run.folder.log.lines() if line["loop"] == "refit"]
    assert note["after"] < note["before"]
    assert result.curve[-1] == (3, result.last)
    assert result.best == max(accuracy for _, accuracy in result.curve)
    assert (result.best_epoch, result.best) in result.curve


@pytest.mark.parametrize("refit", ["released", "frozen"])
def test_a_refit_changes_the_head_alone(few, tmp_path, short_refit, refit):
    """But for batch norm's running statistics in the release's way."""
    plain, result = refitted(few, tmp_path, refit)
    before, after = plain.state_dict(), result.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"linear.weight", "linear.bias"} <= changed
    others = {name.rpartition(".")[2] for name in changed if not name.startswith("linear.")}
    assert others == ({"running_mean", "running_var", "num_batches_tracked"}
                      if refit == "released" else set())


def test_the_released_refit_asks_for_features_once_a_batch(few, tmp_path, short_refit, monkeypatch):
    """And leaves what whole passes through the network would have left, running statistics too."""
    plain, _ = refitted(few, tmp_path, "frozen")
    config = reweighted_head.Config(**SMALL)
    found, expected = copy.deepcopy(plain), copy.deepcopy(plain)
    monkeypatch.setattr(reweighted_head, "BATCH", 20)
    asked = []
    features = found.features
    monkeypatch.setattr(found, "features", lambda images: asked.append(1) or features(images))
    with new_run(tmp_path / "again") as run:
        run.clean = few.first(60)
        reweighted_head.refit_as_released(found, found.linear, config, run)
        optimizer = torch.optim.LBFGS(expected.linear.parameters(), lr=0.5)
        batches = Batches(run.clean, 20, run, "refit", drop_last=False,
                          augmentation=config.augmentation)
        expected.train()
        for images, labels in batches.epoch(0):

            def closure(images=images, labels=labels) -> torch.Tensor:
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(expected(images), labels)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert len(asked) == 3
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_the_released_refit_is_a_plain_loop(few, tmp_path, monkeypatch):
    """Of a linear model without augmentation on one batch, where three rounds of L-BFGS at rate 0.5
    converge: two of the 15."""
    assert reweighted_head.EPOCHS == 15
    monkeypatch.setattr(reweighted_head, "EPOCHS", 2)
    plain, result = refitted(few, tmp_path, "released", architecture="linear", crop_padding=0,
                             flip=False)
    images = as_floats(few.images[:60])
    labels = torch.from_numpy(few.labels[:60])
    optimizer = torch.optim.LBFGS(plain.parameters(), lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(plain(images), labels)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    torch.testing.assert_close(result.network.linear.weight, plain.linear.weight, atol=1e-3,
                               rtol=1e-2)       # the order of a sum, 40 steps on


def test_a_refit_that_diverges_is_said(few, tmp_path, monkeypatch):
    def to_nan(network, head, config, run):
        head.weight.data.fill_(math.nan)

    monkeypatch.setattr(reweighted_head, "refit_as_released", to_nan)
    with pytest.raises(UserError, match="the refit of the head diverged; refit=frozen does not"):
        refitted(few, tmp_path, "released", architecture="linear")


# --- dilution --------------------------------------------------------------------------------


def test_an_epoch_of_a_diluted_set_is_a_pass_over_both(few, tmp_path, monkeypatch):
    train, clean = few.first(40), few.subset(np.arange(100, 124), "others")
    seen, original = [], standard.train_classifier

    def watched(model, images, *rest):
        seen.append(images)
        return original(model, images, *rest)

    monkeypatch.setattr(standard, "train_classifier", watched)
    with new_run(tmp_path / "a") as run:
        run.clean = clean
        result = dilution.fit(train, TEST, dilution.Config(**SMALL, epochs=3), run)
    [union] = seen
    np.testing.assert_array_equal(union.images, [*train.images, *clean.images])
    np.testing.assert_array_equal(union.labels, [*train.labels, *clean.labels])
    assert result.images == 3 * (40 + 24)
    assert json.dumps(train.meta) == json.dumps(union.meta)
