"""Views beside torchvision's operations, image by image, and what they are by definition."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import run_command
from torchvision.transforms import ColorJitter, RandomResizedCrop, Resize
from torchvision.transforms import functional as tv

import evaluate
from core import views
from core.config import build, parse
from core.errors import ConfigError, UserError
from core.views import Drawn, Views, apply, draw
from poisons.__main__ import main as poison

ALL = Views(blur=0.5, solarize=0.5, cutout=8, noise=4 / 255)
TENSORS = ("boxes", "mirrored", "factors", "grey", "sigma", "solarized", "corners", "noise")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def drawn_for(asked: Views, count: int = 64, shape: tuple[int, int] = (32, 32), seed: int = 0
              ) -> Drawn:
    return draw(asked, count, shape, torch.Generator().manual_seed(seed))


def close(ours: torch.Tensor, theirs: torch.Tensor, within: float = 2e-6) -> None:
    torch.testing.assert_close(ours, theirs, atol=within, rtol=0)


# --- crop ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "size"), [((32, 32), 32), ((64, 48), 16), ((20, 37), 56)])
def test_a_crop_is_torchvisions(shape, size):
    """Boxes of torchvision's own get_params, larger and smaller than the view."""
    torch.manual_seed(1)
    images = random(12, 3, *shape)
    boxes = [RandomResizedCrop.get_params(images[0], (0.2, 1), (3 / 4, 4 / 3)) for _ in images]
    mirrored = torch.arange(12) % 2 == 0
    ours = apply(images, Drawn((size, size), torch.tensor(boxes).float(), mirrored=mirrored))
    for image, box, mirror, view in zip(images, boxes, mirrored, ours, strict=True):
        theirs = tv.resized_crop(image, *box, [size, size], antialias=True)
        close(view, theirs.flip(2) if mirror else theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(32, 32), (30, 60), (60, 30)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.9, 1.0)])
def test_boxes_are_get_params_replayed(shape, scale, monkeypatch):
    """torchvision's function on our uniform numbers. In a picture of 1 : 2 a crop of 90 % never
    fits, and it takes the middle."""
    drawn = random(200, 2 * views.TRIES + 2)
    ours = views.random_boxes(drawn, *shape, scale)
    for row, box in zip(drawn.double(), ours, strict=True):
        sides = iter(row[: 2 * views.TRIES].view(2, -1).T.flatten())
        corner = iter(row[2 * views.TRIES :])

        class Replayed:
            def __init__(self, *unused): pass
            def uniform_(self, low, high): return low + (high - low) * next(sides)  # noqa: B023
        monkeypatch.setattr(torch, "empty", Replayed)
        monkeypatch.setattr(torch, "randint", lambda low, high, size: torch.tensor(
            [int(low + next(corner) * (high - low))]))                              # noqa: B023
        theirs = RandomResizedCrop.get_params(torch.zeros(3, *shape), scale, (3 / 4, 4 / 3))
        monkeypatch.undo()
        assert box.tolist() == list(theirs)


def test_a_crop_matrix_is_interpolate_on_five_boxes():
    """Its rows sum to 1, the full crop at the same size is the identity."""
    image = random(1, 3, 40, 40).double()
    for top, left, height, width in [(0, 0, 40, 40), (3, 5, 20, 31), (39, 39, 1, 1),
                                     (0, 17, 37, 12), (25, 0, 2, 40)]:
        box = torch.tensor([[top, left, height, width]])
        part = image[:, :, top : top + height, left : left + width]
        theirs = F.interpolate(part, (32, 32), mode="bilinear", antialias=True)
        close(views.resized_crop(image, box, (32, 32)), theirs, 1e-12)
        rows = views.resize_matrix(box[:, 0].double(), box[:, 2].double(), 40, 32)
        close(rows.sum(2), torch.ones(1, 32).double(), 1e-12)
    whole = views.resize_matrix(torch.zeros(1), torch.full((1,), 32.0), 32, 32)
    assert torch.equal(whole[0], torch.eye(32))


def test_a_share_of_the_views_is_blurred_and_solarized():
    """By sigmas uniform between their bounds."""
    drawn = draw(Views(blur=0.3, blur_sigma=(0.5, 1.5), solarize=0.4), 4000, (32, 32),
                 torch.Generator().manual_seed(0))
    blurred = drawn.sigma[drawn.sigma > 0]
    assert len(blurred) / 4000 == pytest.approx(0.3, abs=0.02)
    assert drawn.solarized.float().mean() == pytest.approx(0.4, abs=0.02)
    close(blurred.quantile(torch.linspace(0, 1, 9)), torch.linspace(0.5, 1.5, 9), 0.03)


@pytest.mark.parametrize("shape", [(28, 28), (28, 40)])
def test_resize_and_crop_is_torchvisions(shape):
    """As UC and D-VAE at 224: resized to 256/224 of the side, and a plain crop. The crop's rim sees
    the pixels beside it."""
    images = random(10, 3, *shape)
    drawn = drawn_for(Views(size=28, scale=None, resize=8 / 7, flip=0, jitter=0, grey=0), 10, shape)
    ours = apply(images, drawn)
    unit = torch.tensor([shape[0] / 32, shape[1] / int(32 * shape[1] / 28)])
    for image, box, view in zip(images, drawn.boxes, ours, strict=True):
        top, left = (box[:2] / unit).round().int().tolist()
        resized = Resize(32, antialias=True)(image)
        close(view, tv.crop(resized, top, left, 28, 28), 1e-5)
    drawn = drawn_for(Views(size=28, scale=None, resize=8 / 7), 500, (28, 28))
    tops = drawn.boxes[:, 0] * 32 / 28
    assert sorted(set(tops.round().int().tolist())) == [0, 1, 2, 3, 4]


# --- colours ---------------------------------------------------------------------------------

OTHERS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
FACTORS = torch.tensor([[0.6, 1.4, 0.7, -0.1], [1.4, 0.6, 1.3, 0.1], [1.0, 1.0, 1.0, 0.0],
                        [0.0, 2.0, 0.0, 0.5], [1.1, 0.0, 1.9, -0.5]])


@pytest.mark.parametrize("which", range(4))
def test_one_operation_is_torchvisions(which):
    images = random(5, 3, 16, 16)
    images[:, :, 0, :4], images[:, :, 1] = 0, images[:, :1, 1]      # black pixels, a grey row
    ours = apply(images, Drawn((16, 16), factors=FACTORS, order=(which,)))
    for image, factors, view in zip(images, FACTORS, ours, strict=True):
        close(view, OTHERS[which](image, factors[which].item()))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 0, 3, 1)])
def test_jitter_is_torchvisions_in_the_order_drawn(order):
    images = random(5, 3, 16, 16)
    ours = apply(images, Drawn((16, 16), factors=FACTORS, order=order,
                               grey=torch.tensor([True, False, False, True, False])))
    for number, (image, view) in enumerate(zip(images, ours, strict=True)):
        for which in order:
            image = OTHERS[which](image, FACTORS[number, which].item())
        close(view, tv.rgb_to_grayscale(image, 3) if number in (0, 3) else image, 5e-6)


def test_factors_spread_as_torchvisions():
    """As many images jittered and grey as asked for; every order comes."""
    drawn = drawn_for(Views(), 4000)
    jittered = (drawn.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    assert jittered.float().mean() == pytest.approx(0.8, abs=0.02)
    assert drawn.grey.float().mean() == pytest.approx(0.2, abs=0.02)
    assert drawn.mirrored.float().mean() == pytest.approx(0.5, abs=0.02)
    torch.manual_seed(0)
    theirs = torch.tensor([ColorJitter.get_params((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1)
                                                  )[1:] for _ in range(2000)])
    steps = torch.linspace(0, 1, 9)
    torch.testing.assert_close(drawn.factors[jittered].quantile(steps, 0),
                               theirs.quantile(steps, 0), atol=0.03, rtol=0)
    orders = {drawn_for(Views(), 1, seed=seed).order for seed in range(300)}
    assert orders == set(itertools.permutations(range(4)))


def test_hue_by_a_whole_turn_and_of_grey():
    images = random(4, 3, 8, 8)
    close(views.turn_hue(images, torch.ones(4)), images)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    turned = torch.tensor([0.1, -0.3, 0.5, 0.0])
    assert torch.equal(views.turn_hue(grey, turned), grey)
    saturated = views.saturation(grey.clone(), torch.tensor([0.0, 0.5, 1.4, 2.0]))
    close(saturated, grey, 1e-4)                                    # GREY sums to 0.9999


# --- the rest --------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "kernel"), [((32, 32), 3), ((20, 28), 23), ((9, 12), 17)])
def test_a_blur_is_torchvisions(shape, kernel):
    images, sigma = random(6, 3, *shape), torch.tensor([0.1, 0.5, 1.0, 2.0, 0.0, 5.0])
    ours = apply(images, Drawn(shape, sigma=sigma, kernel=kernel))
    for image, width, view in zip(images, sigma, ours, strict=True):
        if width == 0:
            assert torch.equal(view, image)
        elif kernel // 2 < min(shape):
            close(view, tv.gaussian_blur(image, kernel, width.item()))


def test_kernels_are_a_tenth_of_the_side():
    """And no kernel is so small that it blurs nothing."""
    sides = [drawn_for(Views(blur=1), 1, (side, side)).kernel for side in (8, 16, 32, 96, 224)]
    assert sides == [3, 3, 3, 9, 23]


def test_solarizing_is_torchvisions():
    images = (random(4, 3, 8, 8) * 255).round()
    chosen = torch.tensor([True, False, True, False])
    ours = apply(images / 255, Drawn((8, 8), solarized=chosen))
    for image, solarized, view in zip(images, chosen, ours, strict=True):
        theirs = tv.solarize(image.byte(), 128) if solarized else image.byte()
        assert torch.equal((view * 255).round().byte(), theirs)


def test_holes_are_where_they_were_drawn():
    """Their centres reach every pixel, and the rim cuts them off."""
    drawn = drawn_for(Views(scale=None, flip=0, jitter=0, grey=0, cutout=4), 3000, (8, 8))
    images = torch.ones(3000, 3, 8, 8)
    holes = apply(images, drawn) == 0
    assert set(drawn.corners.flatten().tolist()) == set(range(-2, 6))
    for hole, (top, left) in zip(holes[:20], drawn.corners.int().tolist(), strict=False):
        by_hand = torch.zeros(8, 8, dtype=torch.bool)
        by_hand[max(0, top) : max(0, top + 4), max(0, left) : max(0, left + 4)] = True
        assert torch.equal(hole, by_hand.expand(3, 8, 8))


def test_noise_is_uniform_and_clipped():
    drawn = drawn_for(Views(scale=None, flip=0, jitter=0, grey=0, noise=8 / 255))
    added = apply(torch.full((64, 3, 32, 32), 0.5), drawn) - 0.5
    assert added.abs().max() <= 8 / 255 + 1e-7
    assert added.mean().abs() < 1e-3
    assert added.std().item() == pytest.approx(8 / 255 / 3**0.5, rel=0.01)
    assert apply(torch.ones(64, 3, 32, 32), drawn).max() == 1


# --- as a whole ------------------------------------------------------------------------------


def test_the_default_is_torchvisions_chain_image_by_image():
    """CP's: crop, flip, jitter, grey, all of one draw."""
    images = random(32, 3, 32, 32)
    drawn = drawn_for(Views(), 32)
    ours = apply(images, drawn)
    for number, image in enumerate(images):
        one = tv.resized_crop(image, *drawn.boxes[number].int().tolist(), [32, 32], antialias=True)
        one = one.flip(2) if drawn.mirrored[number] else one
        for which in drawn.order:
            one = OTHERS[which](one, drawn.factors[number, which].item())
        close(ours[number], tv.rgb_to_grayscale(one, 3) if drawn.grey[number] else one, 1e-5)


def test_what_is_not_asked_for_is_not_drawn():
    nothing = Views(scale=None, flip=0, jitter=0, grey=0)
    drawn = drawn_for(nothing)
    assert all(getattr(drawn, name) is None for name in TENSORS)
    images = random(64, 3, 32, 32)
    assert torch.equal(apply(images, drawn), images)
    resized = apply(images, drawn_for(Views(size=48, scale=None, flip=0, jitter=0, grey=0)))
    close(resized, F.interpolate(images, (48, 48), mode="bilinear", antialias=True))


def test_an_operation_draws_the_same_beside_others():
    """And the same for the same generator, other numbers for another."""
    every, default, again = drawn_for(ALL), drawn_for(Views()), drawn_for(ALL)
    for name in ("boxes", "mirrored", "factors", "grey"):
        assert torch.equal(getattr(every, name), getattr(default, name)), name
    for name in TENSORS:
        assert torch.equal(getattr(every, name), getattr(again, name)), name
        assert not torch.equal(getattr(every, name), getattr(drawn_for(ALL, seed=1), name)), name


def test_a_view_depends_on_its_own_image_alone():
    images = random(64, 3, 32, 32)
    drawn = drawn_for(ALL)
    rows = torch.tensor([5, 3, 60])
    close(apply(images[rows], drawn.part(rows)), apply(images, drawn)[rows])
    close(apply(images[10:20], drawn.part(slice(10, 20))), apply(images, drawn)[10:20])


def test_views_stay_in_range_and_inputs_as_they_were():
    images = random(64, 3, 32, 32)
    kept = images.clone()
    for asked in (replace(ALL, scale=None, flip=0), replace(ALL, scale=None), ALL):
        out = apply(images, drawn_for(asked))
        assert torch.equal(images, kept)
    assert out.min() >= 0
    assert out.max() <= 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(apply(images, drawn_for(ALL)), out)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_gradients_are_finite_on_grey_black_and_white(level):
    images = torch.full((64, 3, 32, 32), level, requires_grad=True)
    apply(images, drawn_for(ALL)).square().sum().backward()
    assert images.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    asked = Views(size=5, blur=1, solarize=0.5, cutout=2)
    images = (0.3 + 0.4 * random(4, 3, 7, 6)).double().requires_grad_()
    drawn = drawn_for(asked, 4, (7, 6), seed=3)
    assert torch.autograd.gradcheck(lambda x: apply(x, drawn), images, eps=1e-7, atol=1e-4)


@pytest.mark.parametrize(("text", "message"), [
    ("scale: [1, 0.2]", "views:1: scale: the least comes first: write .0.2, 1"),
    ("scale: [0.5]", "scale: takes two numbers, the least and the largest"),
    ("scale: [0, 1]", "scale.0: 0 is out of range"),
    ("hue: 0.6", "hue: 0.6 is out of range"),
    ("resize: 256/224", "resize: goes with scale: null"),
    ("{resize: 0.9, scale: null}", "resize: 0.9 is out of range"),
    ("{resize: 256, scale: null}", "resize: 256 is out of range: .* at most 4"),
    ("blur_kernel: 4", "blur_kernel: 4 is out of range"),
    ("noise: 8", "write 8/255"),
    ("size: 1", "size: 1 is out of range: it must be at least 2"),
])
def test_wrong_keys_are_named(text, message):
    with pytest.raises(UserError, match=message):
        build(Views, parse(text, "views"), "")


@pytest.mark.parametrize(("values", "shape", "key", "message"), [
    ({"blur": 1, "blur_kernel": 17}, (8, 8), "blur_kernel",
     "17 is too large to be mirrored at the border of views of 8x8; at most 15"),
    ({"cutout": 9}, (8, 12), "cutout", "a square of 9 is larger than views of 8x12; at most 8"),
    ({"cutout": 9, "size": 5}, (32, 32), "cutout",
     "a square of 9 is larger than views of 5x5; at most 5"),
    ({}, (1, 1), "size", "images of 1x1 give no views, which have two pixels a side or more")])
def test_views_that_images_do_not_give(values, shape, key, message):
    with pytest.raises(ConfigError) as caught:
        Views(**values).check_images(shape)
    assert (caught.value.key, str(caught.value)) == (key, message)
    Views(blur_kernel=17, cutout=8).check_images((8, 8))        # no blur is asked for


@pytest.mark.parametrize(("main", "method", "section"), [
    (evaluate.main, "simclr", "simclr"), (evaluate.main, "standard", "standard"),
    (poison, "cp", "cp"), (poison, "tap", "tap.surrogate")])
def test_errors_of_views_name_the_section_they_stand_in(main, method, section):
    words = [f"{section}.views.cutout=17"]
    if section in ("standard", "tap.surrogate"):
        words += [f"{section}.crop_padding=0", f"{section}.flip=false"]
    outcome = run_command(main, f"method={method}", "data=digits", *words, "--dry-run")
    assert outcome.error == (f"{section}.views.cutout: a square of 17 is larger than views of "
                             "16x16; at most 16")
