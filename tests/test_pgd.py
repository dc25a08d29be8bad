"""The PGD engine against the loop of EM's release, typed again for one image,
and its folded surrogate against the plain network in eval mode.

Where a sign could hang on a last bit, both sides compute in double precision and must agree to
1e-12.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from core.device import DeviceSettings, resolve
from core.pgd import gradient_of, pgd
from models.resnet import resnet18
from poisons.frozen import FrozenSurrogate, conv_norm_pairs

EPSILON, STEP = 8 / 255, 0.8 / 255
CPU = resolve(DeviceSettings(device="cpu", precision="fp32"))


def craft(images, delta, gradient, steps=20, **keys):
    return pgd(images, delta, gradient, epsilon=EPSILON, step_size=STEP, steps=steps, **keys)


def uniform(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=generator)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, biases and running statistics: fresh batch norms would fold to almost
    nothing."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    return model


def network(width: int = 8, stem: str = "cifar", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(resnet18(10, width, stem), seed).double()


def plain_gradient(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    images = images.clone().requires_grad_()
    loss = F.cross_entropy(model.eval()(images), labels, reduction="sum")
    return torch.autograd.grad(loss, images)[0]


# --- signed steps ----------------------------------------------------------------------------


def notes_loop(x, delta, gradient, steps, sign):
    """Section 1.1 for one image, as written there (NumPy, double precision)."""
    z = np.clip(x + delta, 0, 1)
    for step in range(steps):
        stepped = z + sign * STEP * np.sign(gradient(z, step))
        delta = np.clip(stepped - x, -EPSILON, EPSILON)
        z = np.clip(x + delta, 0, 1)
    return delta


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("ascend", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_steps_are_those_of_the_notes(steps, ascend, dtype, tolerance):
    """From a warm start, on images with black and white pixels, a gradient that turns."""
    images = uniform(6, 3, 5, 4, low=-0.3, high=1.3).clamp(0, 1)
    start = uniform(6, 3, 5, 4, low=-EPSILON, high=EPSILON, seed=1)
    found = craft(images.to(dtype), start.to(dtype), lambda z, step: torch.sin(60 * z + step),
                  steps, ascend=ascend)
    assert found.dtype == dtype
    for x, delta, ours in zip(images, start, found, strict=True):
        expected = notes_loop(x.numpy(), delta.numpy(), lambda z, step: np.sin(60 * z + step),
                              steps, 1 if ascend else -1)
        np.testing.assert_allclose(ours.numpy(), expected, atol=tolerance)


def test_a_black_pixel_keeps_one_step():
    """-0.8 grey levels, not -8: the image is clipped before a step and the noise after it."""
    images = torch.tensor([0.0, 0.5, 1.0]).expand(1, 3, 2, 3).contiguous()
    down = craft(images, torch.zeros_like(images), lambda z, step: torch.ones_like(z))
    up = craft(images, torch.zeros_like(images), lambda z, step: torch.ones_like(z), ascend=True)
    for found, levels in ((down, [-0.8, -8, -8]), (up, [8, 8, 0.8])):
        expected = (torch.tensor(levels) / 255).expand_as(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_gradient_is_taken_inside_the_box_once_a_step():
    images = uniform(4, 3, 4, 4, low=-0.3, high=1.3).clamp(0, 1)
    calls = []

    def gradient(z, step):
        calls.append(step)
        assert z.min() >= 0
        assert z.max() <= 1
        return 0.5 - images                     # out of the box, wherever there is a way

    craft(images, torch.zeros_like(images), gradient, 7)
    assert calls == list(range(7))


@pytest.mark.parametrize(("clip", "seen"), [
    ("all", [0.0, 0.0, 0.0]),
    ("moved", [-0.5 * EPSILON, 0.0, 0.0]),              # the start as it was drawn
    ("none", [-0.5 * EPSILON, -0.5 * EPSILON - STEP, -0.5 * EPSILON - 2 * STEP]),
])
def test_what_of_the_steps_is_clipped(clip, seen):
    """A black pixel that is pushed below black: where the gradients are taken."""
    points = []

    def gradient(z, _):
        points.append(z.clone())
        return torch.ones_like(z)

    black = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    craft(black, black - 0.5 * EPSILON, gradient, steps=3, clip=clip)
    for found, expected in zip(points, seen, strict=True):
        torch.testing.assert_close(found, torch.full_like(black, expected))


@pytest.mark.parametrize("start", [0.0, EPSILON, 3 * EPSILON])
def test_noise_stays_within_epsilon(start):
    """Whatever the start and the gradients, to the last bit of float32."""
    images = uniform(4, 3, 8, 8).float()
    delta = uniform(4, 3, 8, 8, low=-start, high=start, seed=1).float()
    found = craft(images, delta, lambda z, step: uniform(*z.shape, low=-1, seed=step).float(), 40)
    assert found.abs().max() <= torch.tensor(EPSILON, dtype=torch.float32)
    assert found.abs().max() > 0.99 * EPSILON


def test_no_steps_and_no_gradient_leave_the_noise():
    images = uniform(4, 3, 8, 8, low=0.1, high=0.9).float()
    warm = uniform(4, 3, 8, 8, low=-EPSILON, high=EPSILON, seed=1).float()
    zero = torch.zeros_like(images)
    assert torch.equal(craft(images, warm, None, steps=0), warm)
    assert torch.equal(craft(images, zero, None, steps=0), zero)
    assert torch.equal(craft(images, zero, lambda z, step: torch.zeros_like(z)), zero)
    # x + delta - x loses a last bit each step.
    torch.testing.assert_close(craft(images, warm, lambda z, step: torch.zeros_like(z)), warm,
                               rtol=0, atol=20 * 2**-24)


def test_images_and_start_are_left_alone():
    images, start = uniform(4, 3, 8, 8), uniform(4, 3, 8, 8, high=EPSILON, seed=1)
    before = images.clone(), start.clone()
    craft(images, start, lambda z, step: torch.sin(60 * z))
    assert torch.equal(images, before[0])
    assert torch.equal(start, before[1])


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_the_scale_of_the_loss_is_of_no_account(scale):
    frozen, labels = FrozenSurrogate(network(), CPU), torch.arange(6)
    images = uniform(6, 3, 8, 8)
    gradient = frozen.gradient(labels)
    found = craft(images, torch.zeros_like(images), lambda z, step: scale * gradient(z, step), 5)
    assert torch.equal(found, craft(images, torch.zeros_like(images), gradient, 5))


@pytest.mark.parametrize("ascend", [False, True])
def test_descent_lowers_and_ascent_raises_the_loss_of_every_image(ascend):
    model = network().eval()
    images, labels = uniform(12, 3, 16, 16, low=0.2, high=0.8), torch.arange(12) % 10
    gradient = FrozenSurrogate(model, CPU).gradient(labels)
    delta = craft(images, torch.zeros_like(images), gradient, 10, ascend=ascend)
    before, after = (F.cross_entropy(model(x), labels, reduction="none")
                     for x in (images, images + delta))
    assert ((after > before) if ascend else (after < before)).all()


def crafted_by(frozen, images, labels, parts):
    """Noise of every image, crafted in the given groups of rows."""
    found = torch.full_like(images, torch.nan)
    for rows in parts:
        found[rows] = craft(images[rows], torch.zeros_like(images[rows]),
                            frozen.gradient(labels[rows]), 10)
    return found


@pytest.mark.parametrize(("double", "share", "tolerance"), [(True, 0, 1e-12), (False, 0.01, 1e-6)])
def test_neither_batch_nor_order_matters(double, share, tolerance):
    """Equal to 1e-12 in double precision. In float32 the rounding of convolutions depends on the
    batch, and flips a sign of fewer than 1 in 100 gradients."""
    model, images = network(), uniform(12, 3, 16, 16)
    labels = torch.arange(12) % 10
    if not double:
        model, images = model.float(), images.float()
    frozen = FrozenSurrogate(model, CPU)
    whole = crafted_by(frozen, images, labels, [torch.arange(12)])
    for parts in (torch.arange(12).split(1), torch.arange(12).split(5),
                  [torch.randperm(12, generator=torch.Generator().manual_seed(0))]):
        other = crafted_by(frozen, images, labels, parts)
        assert ((whole - other).abs() > tolerance).double().mean() <= share


# --- the folded surrogate --------------------------------------------------------------------


def make(kind: str) -> nn.Module:
    if kind != "torchvision":
        return network(stem=kind)
    torch.manual_seed(0)
    return randomise(torchvision.models.resnet18(num_classes=10)).double()


@pytest.mark.parametrize("kind", ["cifar", "imagenet", "torchvision"])
def test_the_surrogate_is_the_model_in_eval_mode(kind):
    """Logits and gradients; and again once the model has learnt on and `update` was called."""
    model, images, labels = make(kind), uniform(4, 3, 32, 32), torch.arange(4)
    assert len(conv_norm_pairs(model)) == 20
    frozen = FrozenSurrogate(model, CPU)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())

    def agree() -> bool:
        with torch.no_grad():
            return torch.allclose(frozen(images), model.eval()(images), rtol=1e-9, atol=1e-9)

    assert agree()
    torch.testing.assert_close(frozen.gradient(labels)(images, 0),
                               plain_gradient(model, images, labels), rtol=1e-8, atol=1e-10)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model.train()(uniform(4, 3, 32, 32, seed=1)), labels).backward()
    optimizer.step()
    assert not agree()                          # a copy, which does not follow by itself
    frozen.update(model)
    assert agree()
    torch.testing.assert_close(frozen.gradient(labels)(images, 0),
                               plain_gradient(model, images, labels), rtol=1e-8, atol=1e-10)


def test_folding_is_exact_up_to_rounding_in_float32():
    model, images = network(16).float(), uniform(8, 3, 32, 32).float()
    with torch.no_grad():
        torch.testing.assert_close(FrozenSurrogate(model, CPU)(images), model.eval()(images),
                                   rtol=1e-4, atol=1e-5)


def test_the_model_itself_is_not_touched():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = FrozenSurrogate(model, CPU)
    frozen.gradient(torch.arange(4))(uniform(4, 3, 16, 16), 0)
    frozen.update(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_gradient_of_an_image_does_not_depend_on_its_batch():
    frozen, labels = FrozenSurrogate(network(), CPU), torch.arange(4)
    images = uniform(4, 3, 16, 16)
    with torch.no_grad():                       # asks for its own gradients
        whole = frozen.gradient(labels)(images, 0)
        for i in range(4):
            torch.testing.assert_close(frozen.gradient(labels[i:i + 1])(images[i:i + 1], 0)[0],
                                       whole[i], rtol=1e-9, atol=1e-12)
    assert not images.requires_grad


def test_only_a_norm_right_after_its_convolution_is_folded():
    """A norm before its convolution, or of another width, is kept and follows `update`; a
    convolution's own bias and a norm without weights are folded."""
    model = randomise(nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(),
        nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3), nn.PixelShuffle(2), nn.BatchNorm2d(2),
        nn.Flatten(), nn.Linear(128, 10))).double()
    assert [(conv, norm) for _, conv, norm in conv_norm_pairs(model)] == [("1", "2")]
    mismatched = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(8))
    assert conv_norm_pairs(mismatched) == []
    frozen, images = FrozenSurrogate(model, CPU), uniform(5, 3, 8, 8)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(frozen(images), model.eval()(images))
            model.train()(uniform(5, 3, 8, 8, high=3, seed=1))      # moves the running statistics
        frozen.update(model)


def test_only_whole_batches_with_gradients_are_compiled(monkeypatch):
    """One graph for crafting and one for its features, whatever the last batch and the scoring."""
    from torch._dynamo.testing import CompileCounter

    counter, original = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: original(
        function, dynamic=dynamic, fullgraph=True, backend=counter))
    monkeypatch.setenv("CXX", "none is called")
    compiling = resolve(DeviceSettings(device="cpu", compile="true"))
    frozen = FrozenSurrogate(resnet18(4, 4), compiling)
    for rows in (64, 64, 23, 128 + 7):
        gradient = frozen.gradient(torch.arange(rows) % 4)
        assert gradient(torch.rand(rows, 3, 16, 16), 0).shape == (rows, 3, 16, 16)
    with torch.no_grad():
        frozen(torch.rand(64, 3, 16, 16))
    assert counter.frame_count == 1
    frozen.features(torch.rand(64, 3, 16, 16).requires_grad_())
    assert counter.frame_count == 2


def test_crafting_in_bf16_if_asked():
    """Logits come back in float32, rounded; signs of all but the smallest gradients agree."""
    asked = resolve(DeviceSettings(device="cpu", craft_precision="bf16"))
    model, images = randomise(resnet18(4, 8)).eval(), torch.rand(8, 3, 16, 16)
    exact, rounded = (FrozenSurrogate(model, device) for device in (CPU, asked))
    one, two = exact(images), rounded(images)
    assert two.dtype == torch.float32
    assert 0 < (one - two).abs().max() < 0.05 * one.abs().max()
    labels = torch.arange(8) % 4
    one, two = (frozen.gradient(labels)(images, 0) for frozen in (exact, rounded))
    large = one.abs() > one.abs().median()
    assert (one.sign() == two.sign())[large].float().mean() > 0.95


def test_pgd_in_an_l2_ball():
    """Against the step and the projection retyped, for a loss whose gradient is known."""
    torch.manual_seed(0)
    images, weights = torch.rand(3, 3, 4, 4) * 0.2 + 0.4, torch.randn(3, 3, 4, 4)
    found = pgd(images, torch.zeros_like(images), gradient_of(lambda x, _: (x * weights).sum()),
                epsilon=0.05, step_size=0.02, steps=4, norm="l2")
    for image_delta, weight in zip(found, weights, strict=True):
        delta = torch.zeros_like(weight)
        for _ in range(4):
            delta = delta - 0.02 * weight / weight.norm()
            delta = delta * min(1.0, 0.05 / delta.norm().item())
        torch.testing.assert_close(image_delta, delta)
