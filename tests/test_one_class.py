"""Sets of one class, or of classes without images: what attacks that go by classes say of them."""

import numpy as np
import pytest
from conftest import run_command, write_imageset

from poisons.__main__ import main as poison_main


def of_one_class(path, few):
    return write_imageset(path, few.images[:64], np.zeros(64, np.int64), classes=1)


@pytest.mark.parametrize("name", ["tap", "sep", "aap", "hypo.variant=p1"])
def test_a_set_of_one_class_has_no_other_to_lead_to(tmp_path, few, name):
    """Its next class would be its own, and nothing would change."""
    method, _, key = name.partition(".")
    clean = of_one_class(tmp_path / "one", few)
    words = [f"{method}.{key}"] if key else []
    outcome = run_command(poison_main, f"method={method}", "--smoke", f"data={clean}", *words)
    assert outcome.status == 1
    assert "has one class: there is no other for the noise to lead to" in outcome.error
    assert "surrogate:" not in outcome.stderr               # before it is trained


@pytest.mark.parametrize("name", ["em", "em_classwise", "aue", "rem", "sem", "hypo.variant=p2",
                                  "tap.targeted=false", "aap.targeted=false"])
def test_the_only_label_of_a_set_has_no_gradient(tmp_path, few, name):
    method, _, key = name.partition(".")
    words = [f"{method}.{key}"] if key else []
    outcome = run_command(poison_main, f"method={method}", "--smoke",
                          f"data={of_one_class(tmp_path / 'one', few)}", *words)
    assert outcome.status == 1
    assert "has one class: the loss of its only label is 0, whatever the noise" in outcome.error
    assert "surrogate:" not in outcome.stderr


def test_noise_that_changes_nothing_is_refused(tmp_path, few):
    """The paper's MI-UE compares classes."""
    outcome = run_command(poison_main, "method=mi_ue", "--smoke", "mi_ue.form=paper",
                          f"data={of_one_class(tmp_path / 'one', few)}")
    assert outcome.status == 1
    assert "no pixel changed: the budget is below a grey level, or the loss has no gradient" in \
        outcome.error


def test_a_target_class_without_images_is_said(tmp_path, few):
    """Of the classes 0, 1 and 3 of four, 3 is half-way round from 1, and 0 leads to none; there is
    no feature to align to."""
    labels = np.repeat([0, 0, 1, 3], 16)
    clean = write_imageset(tmp_path / "gaps", few.images[:64], labels, classes=4)
    said = "50.0% of the images are led to a class that has no image"
    outcome = run_command(poison_main, "method=sep", "--smoke", f"data={clean}")
    assert (outcome.status, outcome.stderr.count(said)) == (0, 1)
    outcome = run_command(poison_main, "method=tap", "--smoke", f"data={clean}")
    assert (outcome.status, outcome.stderr.count("25.0% of the images are led")) == (0, 1)
    for loss in ("fa", "fa_vr"):
        outcome = run_command(poison_main, "method=sep", "--smoke", f"data={clean}",
                              f"sep.loss={loss}")
        assert outcome.status == 1
        assert f"sep.loss: {loss} needs images of every class half-way round" in outcome.error
