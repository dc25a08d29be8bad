"""COIN's warp, RSK's kernels and FF against SciPy and the formulas; what methods make of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS, new_run, run_command, succeed, write_imageset
from scipy.fft import dctn, idctn
from scipy.ndimage import map_coordinates

import purify
from core import filters
from core.imageset import ImageSet
from learners import coin, sharpen_lowpass, standard


def drawn_images(count: int, height: int = 12, width: int = 20) -> torch.Tensor:
    levels = np.random.default_rng(0).integers(0, 256, (count, height, width, 3))
    return torch.from_numpy(levels).float() / 255


# --- the warp --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 20), (8, 8), (1, 5)])
def test_warp_is_scipys_wrap_for_every_image_by_itself(shape):
    """The release's loop: map_coordinates of one image at a time, at (y + dy, x + dx)."""
    images = drawn_images(30, *shape)
    shifts = (torch.rand(30, 2, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1) * 3.2
    found = filters.warp(images, shifts)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for image, (down, right), warped in zip(images.numpy(), shifts.numpy(), found, strict=True):
        places = [y + down, x + right]
        expected = np.stack([map_coordinates(channel, places, order=1, mode="wrap")
                             for channel in image.transpose(2, 0, 1).astype(np.float64)], -1)
        np.testing.assert_allclose(warped.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("place", "value"), [(31.25, 0.25), (32.0, 1.0), (-1.0, 30.0),
                                              (31.0, 31.0), (12.5, 12.5)])
def test_outside_an_image_of_side_n_goes_on_with_period_n_minus_1(place, value):
    ramp = torch.arange(32.0)[None, None, :, None].expand(1, 1, 32, 3)
    shifts = torch.zeros(1, 2, 1, 32)
    shifts[0, 1, 0, 5] = place - 5
    assert filters.warp(ramp, shifts)[0, 0, 5].tolist() == [value] * 3


def test_a_constant_image_stays_to_the_bit():
    constants = torch.arange(256.0)[:, None, None, None].expand(-1, 8, 8, 3) / 255
    shifts = torch.rand(256, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 4 - 2
    assert torch.equal(filters.warp(constants, shifts), constants)


def test_the_mean_response_to_an_impulse():
    """Of shifts U(-2, 2), bilinear: a box of four pixels over a triangle, along each axis."""
    impulse = torch.zeros(1, 9, 9, 3)
    impulse[0, 4, 4] = 1
    shifts = torch.rand(3000, 2, 9, 9, generator=torch.Generator().manual_seed(0)) * 4 - 2
    mean = filters.warp(impulse.expand(3000, -1, -1, -1), shifts).mean(0)[2:7, 2:7, 0]
    axis = torch.tensor([.125, .25, .25, .25, .125])
    torch.testing.assert_close(mean, torch.outer(axis, axis), atol=0.02, rtol=0)


@pytest.mark.parametrize(("keys", "reach", "to_levels"), [
    ([], 2.0, np.floor), (["coin.severity=1", "coin.rounding=round"], 0.8, np.round)])
def test_the_purifier_warps_each_row_by_a_draw_of_its_own(tmp_path, keys, reach, to_levels):
    """Of 300 rows, so of two blocks of noise; row i's draw is its own."""
    levels = np.random.default_rng(0).integers(0, 256, (300, 8, 10, 3), dtype=np.uint8)
    path = write_imageset(tmp_path / "set", levels, np.arange(300) % 10)
    found = np.load(succeed(purify.main, "method=coin", f"data={path}", *keys) / "images.npy")
    with new_run(tmp_path / "other") as run:
        drawn = torch.cat([torch.rand(256, 2, 8, 10, generator=run.stream("coin", block))
                           for block in (0, 1)])[:300]
    y, x = np.mgrid[:8, :10]
    shifts = ((2 * drawn - 1) * reach).numpy()
    for row in (0, 255, 256, 299):
        expected = np.stack([map_coordinates(
            levels[row, ..., c] / 255, [y + shifts[row, 0], x + shifts[row, 1]], order=1,
            mode="wrap") for c in range(3)], -1)
        off = np.abs(found[row] - to_levels(expected * 255))
        assert off.max() <= 1               # where single precision is on the other side
        assert (off > 0).mean() < 0.01


def shown(module, train: ImageSet, config, out) -> list[torch.Tensor]:
    """The batches that the network of a learner is trained on."""
    batches = []

    def build(train, config, run):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 10))
        model.register_forward_pre_hook(
            lambda model, args: batches.append(args[0]) if model.training else None)
        return model

    with pytest.MonkeyPatch.context() as patch, new_run(out) as run:
        patch.setattr(standard, "build", build)
        module.fit(train, train.first(20), config, run)
    return batches


def test_the_learner_warps_anew_each_step_after_crop_and_flip(few, tmp_path):
    """What the network gets is the batch of plain training, warped and cut to whole levels; never
    the same twice, of one image neither."""
    same = ImageSet(few.images[:1].repeat(32, 0), few.labels[:32], few.meta)
    plain, warped = (torch.cat(shown(module, same, module.Config(epochs=2, batch_size=16),
                                     tmp_path / module.__name__)) for module in (standard, coin))
    assert plain.shape == warped.shape == (64, 3, 16, 16)
    torch.testing.assert_close(warped * 255, (warped * 255).round(), atol=1e-4, rtol=0)
    assert len(warped.flatten(1).unique(dim=0)) == 64
    with new_run(tmp_path / "again") as run:
        for step in range(4):
            drawn = torch.rand(16, 2, 16, 16, generator=run.stream("coin", step))
            part = slice(16 * step, 16 * step + 16)
            expected = filters.warp(plain[part].permute(0, 2, 3, 1), 4 * drawn - 2)
            torch.testing.assert_close(warped[part].permute(0, 2, 3, 1),
                                       (expected * 255).floor() / 255)


# --- sharpening and the low-pass filter -------------------------------------------------------


def test_sharpening_is_a_convolution_with_each_images_own_kernel():
    images = drawn_images(6)
    drawn = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    kernels = filters.sharpening_kernels(drawn, 2.5, 0.1)
    found = filters.sharpen(images, kernels)
    assert found.shape == (6, 10, 18, 3)
    for image, (e0, *errors), sharp in zip(images, drawn.tolist(), found, strict=True):
        middle = 2.5 + 0.1 * e0
        up, left, right, down = ((middle - 1) / 4 + 0.1 * error for error in errors)
        kernel = torch.tensor([[0, -up, 0], [-left, middle, -right], [0, -down, 0]])
        expected = F.conv2d(image.permute(2, 0, 1)[:, None], kernel[None, None])[:, 0]
        torch.testing.assert_close(sharp, expected.clamp(0, 1).permute(1, 2, 0))


def test_rsks_kernels_sum_to_1_on_average_and_ssks_exactly():
    drawn = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(0))
    gains = [1, -1, -1, -1, -1] * filters.sharpening_kernels(drawn, 2.5, 0.1).numpy()
    assert gains.sum(1).mean() == pytest.approx(1, abs=0.005)
    assert gains.sum(1).std() == pytest.approx(0.2, abs=0.005)      # a brightness of +-20 %
    fixed = filters.sharpening_kernels(drawn[:1], 2.5, 0.0)
    assert fixed.tolist() == [[2.5, 0.375, 0.375, 0.375, 0.375]]


def test_ssk_leaves_a_constant_and_triples_what_alternates():
    fixed = filters.sharpening_kernels(torch.zeros(1, 5), 2.5, 0.0)
    constants = torch.arange(256.0)[:, None, None, None].expand(-1, 6, 6, 3) / 255
    torch.testing.assert_close(filters.sharpen(constants, fixed.expand(256, -1)),
                               constants[:, :4, :4])
    board = 0.5 + 0.1 * (torch.arange(6)[:, None] + torch.arange(6) & 1).mul(2).sub(1)
    sharp = filters.sharpen(board[None, ..., None].expand(-1, -1, -1, 3), fixed)
    torch.testing.assert_close(sharp[0, ..., 0] - 0.5, 4 * (board[1:-1, 1:-1] - 0.5))


@pytest.mark.parametrize(("side", "keep", "kept"), [(30, 0.3, 9), (32, 0.3, 9), (10, 1.0, 10)])
def test_low_pass_is_scipys_dct_with_a_mask(side, keep, kept):
    images = drawn_images(3, side, 24)
    found = filters.low_pass(images, keep)
    coefficients = dctn(images.numpy(), axes=(1, 2), norm="ortho")
    coefficients[:, kept:] = 0
    coefficients[:, :, int(24 * keep):] = 0
    np.testing.assert_allclose(found, idctn(coefficients, axes=(1, 2), norm="ortho"), atol=1e-5)
    torch.testing.assert_close(filters.low_pass(found, keep), found)        # idempotent
    constant = torch.full((1, side, side, 3), 0.7)
    torch.testing.assert_close(filters.low_pass(constant, keep), constant)


def by_hand(image: np.ndarray, drawn: torch.Tensor) -> np.ndarray:
    """The release's RSK + FF of one uint8 image (H, W, 3): (H - 2, W - 2, 3), floats."""
    middle = 2.5 + 0.1 * drawn[0]
    up, left, right, down = (middle - 1) / 4 + 0.1 * drawn[1:]
    kernel = torch.tensor([[0, -up, 0], [-left, middle, -right], [0, -down, 0]])
    sharp = F.conv2d(torch.from_numpy(image).permute(2, 0, 1)[:, None] / 255, kernel[None, None])
    coefficients = dctn(sharp[:, 0].clamp(0, 1).double().numpy(), axes=(1, 2), norm="ortho")
    for axis in (1, 2):
        kept = np.arange(coefficients.shape[axis]) < coefficients.shape[axis] * 30 // 100
        coefficients *= kept[:, None] if axis == 1 else kept
    return idctn(coefficients, axes=(1, 2), norm="ortho").clip(0, 1).transpose(1, 2, 0)


@pytest.mark.parametrize("border", ["black", "reflect"])
def test_the_purifier_filters_each_row_by_a_kernel_of_its_own(tmp_path, border):
    levels = np.random.default_rng(0).integers(0, 256, (300, 12, 16, 3), dtype=np.uint8)
    path = write_imageset(tmp_path / "set", levels, np.arange(300) % 10)
    found = np.load(succeed(purify.main, CONFIGS / "purifiers/sharpen_lowpass.yaml",
                            f"data={path}", f"sharpen_lowpass.border={border}") / "images.npy")
    with new_run(tmp_path / "other") as run:
        drawn = torch.cat([torch.randn(256, 5, generator=run.stream("kernels", block))
                           for block in (0, 1)])
    frame = [(1, 1), (1, 1), (0, 0)]
    for row in (0, 255, 256, 299):
        if border == "black":
            expected = np.pad(by_hand(levels[row], drawn[row]), frame)
        else:
            expected = by_hand(np.pad(levels[row], frame, mode="reflect"), drawn[row])
        assert np.abs(found[row] - 255 * expected).max() <= 0.5 + 1e-3


def test_the_learner_gives_the_releases_crops(few, tmp_path):
    """With a padding of 3 around the frame: crops of what the kernel leaves, 4 black pixels a side.
    """
    config = sharpen_lowpass.Config(epochs=1, batch_size=16, crop_padding=3)
    found = torch.cat(shown(sharpen_lowpass, few.first(32), config, tmp_path / "out"))
    with new_run(tmp_path / "again") as run:
        draws = run.stream("classifier/batches", 0)
        order = torch.randperm(32, generator=draws)
        offsets = torch.randint(0, 7, (32, 2), generator=draws)
        mirrored = torch.rand(32, generator=draws) < 0.5
        kernels = torch.cat([torch.randn(16, 5, generator=run.stream("kernels", step))
                             for step in range(2)])
    for row, kernel, image in zip(order.tolist(), kernels, found, strict=True):
        padded = np.pad(by_hand(few.images[row], kernel), [(4, 4), (4, 4), (0, 0)])
        down, right = offsets[row].tolist()
        expected = padded[down : down + 16, right : right + 16]
        expected = expected[:, ::-1] if mirrored[row] else expected
        np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_too_small_images_are_refused(tmp_path):
    path = write_imageset(tmp_path / "set", np.zeros((3, 5, 9, 3), np.uint8), np.arange(3))
    assert run_command(purify.main, "method=sharpen_lowpass", f"data={path}").error == (
        "sharpen_lowpass.keep: 0.3 of the rows of the 3x7 pixels that the kernel leaves of an "
        "image is none; raise it")
