"""Architectures by name: published parameter counts, shapes, any width, images of every size."""

import functools
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS, count, new_run, run_command, write_imageset
from torch import nn

import evaluate
import purify
import train_ddpm
import train_vae
from core.errors import UserError
from learners import standard
from models.classifiers import Architecture, classifier
from models.wideresnet import WideBlock
from poisons import em, rem
from poisons.__main__ import main as poison_main
from poisons.frozen import FrozenSurrogate
from poisons.surrogates import Training, train_surrogate
from scripts.tables import plan, spec

NAMES = typing.get_args(Architecture)
# torchvision's VGG draws a head of 120 million weights first, which is dropped: some seconds.
QUICK = [pytest.param(name, marks=pytest.mark.slow) if name.startswith("vgg") else name
         for name in NAMES]
# Of ten classes, 32x32. kuangliu/pytorch-cifar, but wrn28_10: the paper's 36.5 M, as code
# xternalz/WideResNet-pytorch prints; vit_small: by hand, below.
PUBLISHED = {"resnet18": 11_173_962, "resnet50": 23_520_842, "wrn28_10": 36_479_194,
             "vgg11": 9_231_114, "vgg16": 14_728_266, "vgg19": 20_040_522,
             "densenet121": 6_956_298 + 2 * 64,         # torchvision has a norm behind the stem
             "mobilenet_v2": 2_236_682,                 # torchvision's without 990 classes
             "vit_small": 10_695_562}
FEATURES = {"resnet18": 512, "resnet50": 2048, "wrn28_10": 640, "vgg11": 512, "vgg16": 512,
            "vgg19": 512, "densenet121": 1024, "mobilenet_v2": 1280, "vit_small": 384}


@functools.cache
def on_meta(name: str, classes: int = 10, side: int = 32, **keys) -> nn.Module:
    """A network that has shapes and no weights."""
    with torch.device("meta"):
        return classifier(name, classes, (side, side), **keys)


def narrow(name: str, side: int = 16, width: int = 8, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return classifier(name, 7, (side, side), width)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    assert count(on_meta(name)) == PUBLISHED[name]


def test_vit_small_by_hand():
    """Of width d: attention 4d^2 + 4d, MLP 8d^2 + 5d, two norms 4d; six times."""
    d = 384
    layers = 6 * (12 * d * d + 13 * d)
    assert PUBLISHED["vit_small"] == layers + (48 + 1) * d + (64 + 1 + 1 + 2) * d + 10 * (d + 1)


@pytest.mark.parametrize(("name", "parameters"), [
    ("resnet50", 25_557_032), ("densenet121", 7_978_856), ("mobilenet_v2", 3_504_872)])
def test_with_the_imagenet_stem_it_is_torchvisions(name, parameters):
    assert count(on_meta(name, 1000, 224)) == parameters


@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize("name", QUICK)
def test_shapes(name, side):
    model, images = narrow(name, side, width=2), torch.rand(2, 3, side, side)
    with torch.no_grad():
        seen = model.eval().features(images)
        assert seen.shape == (2, model.linear.in_features)
        assert model(images).shape == (2, 7)
        torch.testing.assert_close(model(images), model.linear(seen))


@pytest.mark.parametrize(("name", "side"), [
    ("resnet50", 4), ("wrn28_10", 8), ("vgg16", 1), ("densenet121", 4), ("mobilenet_v2", 4)])
def test_of_32_pixels_as_many_are_pooled_as_in_the_releases(name, side):
    model, seen = on_meta(name), []
    handles = [layer.register_forward_hook(lambda *given: seen.append(given[-1].shape[-2:]))
               for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.MaxPool2d)]
    model(torch.rand(2, 3, 32, 32, device="meta"))
    for handle in handles:
        handle.remove()
    assert tuple(seen[-1]) == (side, side)


@pytest.mark.parametrize("name", PUBLISHED)
def test_width_is_a_share_of_the_channels(name):
    whole, half = on_meta(name), on_meta(name, width=32)
    assert 0.2 < count(half) / count(whole) < 0.35
    assert whole.linear.in_features == FEATURES[name]
    ratio = half.linear.in_features / whole.linear.in_features
    assert ratio == (1.0 if name == "mobilenet_v2" else 0.5)    # its last layer never narrows


@pytest.mark.parametrize("name", QUICK)
def test_a_seed_is_a_network_and_every_weight_learns(name):
    one, same, other = narrow(name), narrow(name), narrow(name, seed=1)
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(one(x), torch.arange(4)).backward()
    assert [key for key, weight in one.named_parameters()
            if weight.grad is None or not weight.grad.any()] == []
    with torch.no_grad():
        logits = [model.eval()(x) for model in (one, narrow(name).eval(), same, other)]
        assert torch.equal(logits[1], logits[2])
        assert not torch.equal(logits[2], logits[3])
        torch.testing.assert_close(same(x)[2:3], same(x[2:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", QUICK)
def test_every_architecture_trains(name, few, tmp_path):
    config = standard.Config(**{**standard.SMOKE, "architecture": name, "steps": 1})
    with new_run(tmp_path / "out") as run:
        assert standard.fit(few.first(64), few.first(64), config, run).images == 64


@pytest.mark.parametrize("name", QUICK)
def test_a_frozen_surrogate_is_the_network(name, tmp_path):
    """Its norms folded, where one stands behind a convolution."""
    model = narrow(name, width=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    with new_run(tmp_path / "out") as run:
        frozen = FrozenSurrogate(model, run.device)
    x = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        expected = model.eval()(x)
        assert expected.std() > 1e-6
        torch.testing.assert_close(frozen(x), expected, rtol=1e-3, atol=1e-4)


def test_the_wide_block_is_its_formula():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    for block in (WideBlock(4, 4, 1), WideBlock(4, 6, 2)):
        before, norm = x.clone(), [F.batch_norm(x, None, None, training=True)]
        h = F.conv2d(norm[0].relu(), block.conv1.weight, stride=block.stride, padding=1)
        h = F.conv2d(F.batch_norm(h, None, None, training=True).relu(), block.conv2.weight,
                     padding=1)
        skipped = x if block.stride == 1 else F.conv2d(norm[0].relu(), block.shortcut.weight,
                                                       stride=2)
        torch.testing.assert_close(block(x), h + skipped, rtol=1e-4, atol=1e-5)
        assert torch.equal(x, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "vgg16", "densenet121", "mobilenet_v2"])
def test_at_full_width_torchvisions_weights_are_drawn_as_ever(name):
    from torchvision import models

    torch.manual_seed(0)
    expected = getattr(models, "vgg16_bn" if name == "vgg16" else name)().state_dict()
    torch.manual_seed(0)
    found = classifier(name, 10, (224, 224)).body.state_dict()
    assert all(torch.equal(expected[key], value) for key, value in found.items())


# --- what no network is made for -------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape", "stem", "words"), [
    ("vit_small", (30, 30), "auto", "multiple of 4, and these have 30x30"),
    ("vit_small", (32, 28), "auto", "square .* and these have 32x28"),
    ("vit_small", (100, 100), "auto", "patches of 16x16 .* have 100x100"),
    ("densenet121", (4, 4), "auto", "of 4x4 pixels nothing is left"),
    ("densenet121", (16, 16), "imagenet", "of 16x16 pixels nothing is left"),
    ("resnet19", (32, 32), "auto", "there is no architecture 'resnet19'")])
def test_images_that_a_network_cannot_take_are_refused(name, shape, stem, words):
    with pytest.raises(ValueError, match=words):
        classifier(name, 10, shape, 8, stem)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(("main", "line", "side", "said"), [
    (evaluate.main, "standard standard.architecture=vit_small", 14,
     "standard: vit_small cuts square images into patches of 4x4"),
    (evaluate.main, "simclr simclr.architecture=vit_small", 14,
     "simclr: vit_small cuts square images into patches of 4x4"),
    (evaluate.main, "simclr simclr.architecture=densenet121 simclr.views.size=4", 16,
     "simclr: densenet121 halves images three times"),
    (evaluate.main, "cutout cutout.size=16", 14, "cutout.size: 16 is larger than the images"),
    (evaluate.main, "sharpen_lowpass sharpen_lowpass.keep=0.05", 14,
     "sharpen_lowpass.keep: 0.05 of the rows of the 12x12 pixels"),
    (poison_main, "em em.architecture=vit_small", 14, "em: vit_small cuts square images"),
    (poison_main, "tap tap.surrogate.architecture=vit_small", 14, "tap.surrogate: vit_small cuts"),
    (poison_main, "cp cp.architecture=vit_small", 14, "cp: vit_small cuts square images"),
    (poison_main, "cuda cuda.kernel=15", 14, "cuda.kernel: 15 is larger than the images, 14x14"),
    (poison_main, "uc", 7, "uc: images of 7x7 pixels are too small for the generator"),
    (poison_main, "gue", 12, "gue: images of 12x12 pixels do not fit the generator"),
    (purify.main, "blur blur.kernel=31", 14, "blur.kernel: 31 is too large to be mirrored"),
    (purify.main, "bilateral bilateral.diameter=31", 14, "bilateral.diameter: 31 is too large"),
    (purify.main, "sharpen_lowpass sharpen_lowpass.keep=0.05 sharpen_lowpass.border=reflect", 14,
     "sharpen_lowpass.keep: 0.05 of the rows of the 14x14 pixels"),
    (train_vae.main, "dvae", 15, "dvae.train: a VAE takes square images of sides that 2 divides"),
    (train_vae.main, "ae", 15, "ae.train: AE takes images with even sides, not 15x15"),
    (train_ddpm.main, "ddpm", 14, "ddpm.train: a DDPM of 4 levels takes square"),
    (train_ddpm.main, "ddpm ddpm.train.crop=16", 14, "ddpm.train.crop: 16 pixels, but the images")])
def test_a_command_and_its_plan_refuse_such_images(main, line, side, said, more, images, labels,
                                                   tmp_path):
    data = write_imageset(tmp_path / "odd", images[:, :side, :side], labels)
    method, *keys = line.split()
    test = [f"test={data}"] if main is evaluate.main else []
    outcome = run_command(main, f"method={method}", f"data={data}", *test, *keys, "out=out", *more)
    assert outcome.status == 1, outcome.stdout
    assert outcome.error.startswith(said)
    assert not list(tmp_path.glob("out*"))


def test_a_table_refuses_such_images_before_anything_is_made(tmp_path):
    Path("t.yaml").write_text(
        "rows: {clean: []}\ncolumns: {none: []}\n"
        "settings: {data: folder, test: folder}\n"
        "evaluate:\n  evaluate: configs/learners/em60.yaml\n"
        "  standard.architecture: vit_small\n")
    (tmp_path / "configs").symlink_to(CONFIGS)
    images = np.zeros((4, 14, 14, 3), np.uint8)
    write_imageset(tmp_path / "folder", images, np.arange(4))
    with pytest.raises(UserError, match=r"t\.yaml:5: standard: vit_small cuts square images"):
        plan.cells_of(spec.read("t.yaml"))


def test_a_methods_own_error_is_no_users_mistake(tmp_path):
    """A ValueError while a network is made is a fault of the code: its traceback is needed."""
    with pytest.raises(ValueError, match="a fault") as raised, \
            new_run(tmp_path / "out") as run, run.initialisation("x"):
        raise ValueError("a fault")
    assert not isinstance(raised.value, UserError)


# --- surrogates ------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "name"), [(em, "vit_small"), (rem, "wrn28_10")])
def test_poisons_craft_on_any_of_them(module, name, few, tmp_path):
    config = module.Config(**{**module.SMOKE, "architecture": name, "width": 1, "batch_size": 8})
    with new_run(tmp_path / "out") as run:
        poisoned = module.poison(few.first(16), config, run)
        assert (poisoned.images != few.first(16).images).any((1, 2, 3)).all()


def test_a_trained_surrogate_may_be_any_and_take_adam(few, tmp_path):
    config = Training(architecture="vit_small", width=2, epochs=1, batch_size=16, optimizer="adam",
                      learning_rate=1e-3)
    with new_run(tmp_path / "out") as run:
        model = train_surrogate(few.first(32), config, run)
        assert model(torch.rand(2, 3, 16, 16)).shape == (2, 10)
