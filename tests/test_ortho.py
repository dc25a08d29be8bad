"""Orthogonal projection against its formulas, and its linear model against a plain loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import as_floats, new_run, succeed, write_imageset

import purify
from core.batches import steps_an_epoch
from core.imageset import ImageSet
from purifiers import ortho

SMALL = ortho.Config(steps=8, batch_size=64)


@pytest.fixture
def weights() -> torch.Tensor:
    return torch.randn(5, 60, generator=torch.Generator().manual_seed(0))


def test_the_basis_is_orthonormal_and_spans_the_weights(weights):
    basis = ortho.basis_of(weights)
    assert basis.shape == (60, 5)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(basis @ (basis.T @ weights.T), weights.T, atol=1e-5, rtol=0)


def test_what_is_projected_has_no_part_along_the_weights(weights):
    images = torch.rand(40, 60, generator=torch.Generator().manual_seed(1))
    basis = ortho.basis_of(weights)
    once = ortho.project(images, basis)
    assert (once @ basis).abs().max() < 1e-5
    assert (once @ weights.T).abs().max() < 1e-4
    torch.testing.assert_close(ortho.project(once, basis), once)            # idempotent
    loop = images.clone()                   # the release: one direction after the other
    for direction in basis.T:
        loop -= (loop @ direction)[:, None] * direction
    torch.testing.assert_close(once, loop, atol=1e-5, rtol=0)


def test_one_direction_is_the_explicit_formula():
    weights = torch.randn(1, 12, generator=torch.Generator().manual_seed(2))
    images = torch.rand(7, 12, generator=torch.Generator().manual_seed(3))
    expected = images - (images @ weights[0])[:, None] * weights / weights.square().sum()
    torch.testing.assert_close(ortho.project(images, ortho.basis_of(weights)), expected)


def test_the_linear_model_is_that_of_a_plain_loop(few, tmp_path):
    """SGD without momentum or decay over the rows in order, the last batch too; flattened as images
    lie here. Other labels give other weights."""
    with new_run(tmp_path / "out") as run:
        found = ortho.train_linear(few.first(150), SMALL, run)
        with run.initialisation("linear"):
            linear = torch.nn.Linear(768, 10, bias=False)
    images = as_floats(few.images[:150]).flatten(1)
    labels = torch.from_numpy(few.labels[:150])
    for step, rate in enumerate([0.1] * 4 + [0.01] * 2 + [0.001] * 2):
        start = 64 * (step % 3)
        [gradient] = torch.autograd.grad(
            F.cross_entropy(linear(images[start : start + 64]), labels[start : start + 64]),
            [linear.weight])
        linear.weight.data -= rate * gradient
    torch.testing.assert_close(
        found, linear.weight.detach().view(10, 3, 16, 16).permute(0, 2, 3, 1).flatten(1),
        atol=1e-6, rtol=0)
    other = ImageSet(few.images[:150], np.roll(few.labels[:150], 1), few.meta)
    with new_run(tmp_path / "permuted") as run:
        assert (ortho.train_linear(other, SMALL, run) - found).abs().max() > 1e-3


def test_on_50000_images_the_steps_are_the_releases_20_epochs():
    """The rate falls at epochs 10 and 15."""
    config = ortho.Config()
    an_epoch = steps_an_epoch(50_000, config.batch_size, drop_last=False)
    assert (config.steps, config.steps // 2, config.steps * 3 // 4) == (
        20 * an_epoch, 10 * an_epoch, 15 * an_epoch)


def test_the_command_stores_the_projection_clipped_and_rounded(few, tmp_path):
    path = write_imageset(tmp_path / "set", few.images, few.labels)
    out = succeed(purify.main, "method=ortho", f"data={path}", "ortho.steps=8",
                  "ortho.batch_size=64")
    with new_run(tmp_path / "again") as run:
        basis = ortho.basis_of(ortho.train_linear(few, SMALL, run))
    floats = ortho.project(torch.from_numpy(few.images).flatten(1) / 255, basis)
    expected = (floats.clamp(0, 1) * 255).round().view(few.images.shape).numpy()
    off = np.abs(np.load(out / "images.npy") - expected)
    assert off.max() <= 1
    assert (off > 0).mean() < 1e-3
