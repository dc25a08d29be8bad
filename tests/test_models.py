"""The networks against the numbers of the D-VAE release and against plain torch operations."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import count
from torch import nn

from models.dvae import DVAE, InstanceNormReLU, kl_divergence
from models.resnet import resnet18


def small_dvae(**options) -> DVAE:
    torch.manual_seed(0)
    return DVAE(width=16, latent_channels=32, **options)


def batch_for(model: DVAE, size: int, rows: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, 3, size, size, generator=generator)
    noise = torch.randn(rows, *model.latent_shape, generator=generator)
    return x, torch.arange(rows) % 3, noise


def macs(model: nn.Module, *inputs) -> dict[str, int]:
    """Multiply-accumulates of each convolution and linear layer in one forward pass, by name."""
    counts = {}

    def hook(name):
        def add(module, args, output):
            weight = module.weight
            if isinstance(module, nn.ConvTranspose2d):      # every input value meets every tap
                counts[name] = args[0].numel() * weight.numel() // module.in_channels
            else:
                counts[name] = output.numel() * weight.numel() // weight.shape[0]
        return add

    layers = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules()
               if isinstance(m, layers)]
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    return counts


@pytest.mark.parametrize(("num_classes", "parameters"), [(10, 11_173_962), (100, 11_220_132)])
def test_resnet18_parameter_count(num_classes, parameters):
    assert count(resnet18(num_classes)) == parameters


@pytest.mark.parametrize(("options", "parameters"), [
    ({}, 1_181_382),
    ({"num_classes": 100}, 4_130_502),
    ({"spatial_embedding": False}, 854_982),
    ({"num_classes": 100, "spatial_embedding": False, "image_size": 224, "stem": "imagenet"},
     904_198),
    ({"num_classes": 100, "spatial_embedding": False, "image_size": 224, "trunk": "layer4"},
     11_980_806),
    ({"num_classes": 100, "spatial_embedding": False, "image_size": 224, "trunk": "layer3"},
     3_427_142),
])
def test_dvae_parameter_count(options, parameters):
    assert count(DVAE(**options)) == parameters


def test_dvae_parameters_of_each_part():
    model = DVAE()
    assert count(model.encoder) == 379_968
    assert count(model.to_mu) == count(model.to_logvar) == 33_024
    assert count(model.post_conv) == 32_896
    assert count(model.decoder) == count(model.perturbation_decoder) == 187_395
    assert count(model.class_embedding) == 327_680


@pytest.mark.parametrize(("trunk", "gigamacs", "decoder", "latent"), [
    ("layer4", 30.3, 2_543_587, 28), ("layer3", 28.0, 804_867, 56)])
def test_the_networks_as_configured_for_224_pixels(trunk, gigamacs, decoder, latent):
    """stem_end_block 15 and 11. The embedding is as wide as the trunk: the release's has 128, which
    cannot be added to 512 channels."""
    with torch.device("meta"):
        model = DVAE(100, image_size=224, spatial_embedding=False, trunk=trunk)
        inputs = (torch.empty(1, 3, 224, 224), torch.zeros(1, dtype=torch.int64),
                  torch.empty(1, *model.latent_shape))
    assert model.latent_shape == (256, latent, latent)
    assert count(model.decoder) == count(model.perturbation_decoder) == decoder
    assert model.class_embedding.weight.shape == (100, model.post_conv.out_channels)
    found = macs(model, *inputs)
    assert round(sum(found.values()) / 1e9, 1) == gigamacs
    with torch.device("meta"):
        spatial = DVAE(100, image_size=224, trunk=trunk).class_embedding
    assert count(spatial) == 100 * model.post_conv.out_channels * latent**2


@pytest.mark.parametrize(("size", "stem"), [(8, "cifar"), (32, "cifar"), (45, "cifar"),
                                            (64, "imagenet")])
def test_resnet_shapes(size, stem):
    model = resnet18(7, width=8, stem=stem)
    x = torch.rand(3, 3, size, size)
    assert model.features(x).shape == (3, 64)
    assert model(x).shape == (3, 7)


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize(("size", "stem", "trunk", "latent"), [
    (16, "cifar", "layer2", 8), (32, "cifar", "layer2", 16), (224, "imagenet", "layer2", 28),
    (64, "cifar", "layer3", 16), (64, "cifar", "layer4", 8)])
def test_dvae_shapes(size, stem, trunk, latent, spatial):
    model = small_dvae(image_size=size, stem=stem, trunk=trunk, spatial_embedding=spatial)
    x, labels, noise = batch_for(model, size, rows=2)
    with torch.no_grad():
        x_hat, p_hat, mu, logvar = model(x, labels, noise)
        z = model.latent(mu, logvar, noise)
    assert model.latent_shape == (32, latent, latent)
    assert mu.shape == logvar.shape == (2, 32, latent, latent)
    assert z.shape == (2, {"layer2": 32, "layer3": 64, "layer4": 128}[trunk], latent, latent)
    assert x_hat.shape == p_hat.shape == x.shape
    assert x_hat.min() > 0
    assert x_hat.max() < 1
    assert p_hat.min() < 0


def test_unknown_stem_and_size_are_refused():
    with pytest.raises(ValueError, match="stem is 'tiny'"):
        resnet18(stem="tiny")
    with pytest.raises(ValueError, match="stem is 'tiny'"):
        DVAE(stem="tiny")
    with pytest.raises(ValueError, match="image_size is 33"):
        DVAE(image_size=33)
    with pytest.raises(ValueError, match=r"image_size is 36; .* a multiple of 8"):
        DVAE(image_size=36, trunk="layer4")
    with pytest.raises(ValueError, match="goes with trunk 'layer2', not 'layer3'"):
        DVAE(image_size=224, stem="imagenet", trunk="layer3")


def test_macs_of_every_block():
    model = DVAE()
    found = macs(model, *batch_for(model, 32, rows=1))
    blocks = {
        "encoder.0": 1_769_472,             # conv1
        "encoder.1": 150_994_944 // 2,      # layer1, two blocks
        "encoder.2": 150_994_944 // 2,
        "encoder.3": 58_720_256,            # layer2[0]
        "to_mu": 8_388_608, "to_logvar": 8_388_608, "post_conv": 8_388_608,
        "decoder": 91_062_272, "perturbation_decoder": 91_062_272,
    }
    for block, expected in blocks.items():
        assert sum(n for name, n in found.items() if name.startswith(block + ".")
                   or name == block) == expected, block
    assert sum(found.values()) == sum(blocks.values())
    parts = [n for name, n in found.items() if name.startswith("decoder.")]
    assert [round(n / 1e6, 2) for n in parts] == [33.55, 37.75, 18.87, 0.88]


def test_macs_of_resnet18_and_of_the_imagenet_variant():
    assert round(sum(macs(resnet18(), torch.rand(1, 3, 32, 32)).values()) / 1e6, 2) == 555.42
    model = DVAE(100, image_size=224, spatial_embedding=False, stem="imagenet")
    assert round(sum(macs(model, *batch_for(model, 224, rows=1)).values()) / 1e9, 2) == 1.52


@pytest.mark.parametrize("shape", [(1, 256, 16, 16), (3, 256, 4, 4)])
@pytest.mark.parametrize(("mu", "logvar", "nats"), [(0, 0, 0.0), (1, 0, 128.0),
                                                    (0, math.log(4), 206.554)])
def test_kl_divergence_values(shape, mu, logvar, nats):
    kld = kl_divergence(torch.full(shape, float(mu)), torch.full(shape, float(logvar)))
    assert kld.item() == pytest.approx(nats, abs=1e-3)


def test_kl_divergence_matches_torch_with_gradients():
    generator = torch.Generator().manual_seed(1)
    mu = torch.randn(5, 8, 3, 2, generator=generator).requires_grad_()
    logvar = torch.randn(5, 8, 3, 2, generator=generator).requires_grad_()
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, torch.exp(logvar / 2)), torch.distributions.Normal(0, 1)
    ).sum(1).mean()
    kld = kl_divergence(mu, logvar)
    torch.testing.assert_close(kld, expected)
    grads = torch.autograd.grad(3 * kld, (mu, logvar))
    torch.testing.assert_close(grads, torch.autograd.grad(3 * expected, (mu, logvar)))


def test_kl_divergence_of_half_precision_is_float32():
    mu = torch.full((2, 256, 4, 4), 1.0, dtype=torch.bfloat16)
    kld = kl_divergence(mu, torch.zeros_like(mu))
    assert kld.dtype == torch.float32
    assert kld.item() == 128.0


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_instance_norm_relu_matches_torch(layout, offset):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 5, 8, 6, generator=generator) + offset
    x[1, 2] = 0.3                                           # a constant channel: only eps remains
    gradient = torch.randn(x.shape, generator=generator)
    x = x.contiguous(memory_format=layout).requires_grad_()
    exact = x.detach().double().contiguous().requires_grad_()
    expected = F.relu(F.instance_norm(exact))
    expected.backward(gradient.double())
    out = InstanceNormReLU()(x)
    out.backward(gradient)

    assert out.is_contiguous(memory_format=layout)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    # The constant channel's values are exactly at ReLU's kink, where rounding decides.
    smooth = torch.ones(3, 5, dtype=torch.bool)
    smooth[1, 2] = False
    torch.testing.assert_close(x.grad.double()[smooth], exact.grad[smooth], rtol=1e-4, atol=1e-5)


def test_x_hat_ignores_the_label_and_p_hat_does_not():
    model = small_dvae().eval()
    x, labels, noise = batch_for(model, 32)
    with torch.no_grad():
        x_hat, p_hat, mu, logvar = model(x, labels, noise)
        other = model(x, labels + 1, noise)
    assert torch.equal(x_hat, other[0])
    assert torch.equal(mu, other[2])
    assert torch.equal(logvar, other[3])
    assert ((p_hat - other[1]).abs().amax((1, 2, 3)) > 1e-3).all()


def test_nothing_is_detached_in_the_residual_loss():
    model = small_dvae()
    x, labels, noise = batch_for(model, 32)
    x_hat, p_hat, _, _ = model(x, labels, noise)
    F.mse_loss(x_hat + p_hat, x).backward()
    for part in (model.encoder[0], model.to_mu, model.to_logvar, model.post_conv, model.decoder,
                 model.perturbation_decoder):
        weights = [p for p in part.parameters() if p.ndim == 4]
        assert all(p.grad.abs().max() > 0 for p in weights)


@pytest.mark.parametrize("output", [0, 1], ids=["x_hat", "p_hat"])
def test_each_decoder_alone_trains_the_encoder(output):
    model = small_dvae()
    x, labels, noise = batch_for(model, 32)
    F.mse_loss(model(x, labels, noise)[output], x).backward()
    for part in (model.encoder[0], model.to_mu, model.to_logvar, model.post_conv):
        assert all(p.grad.abs().max() > 0 for p in part.parameters() if p.ndim == 4)


@pytest.mark.parametrize("spatial", [True, False])
def test_only_embeddings_of_labels_in_the_batch_get_gradient(spatial):
    model = small_dvae(spatial_embedding=spatial)
    x, _, noise = batch_for(model, 32)
    model(x, torch.tensor([7, 2, 2, 7]), noise)[1].square().mean().backward()
    moved = model.class_embedding.weight.grad.abs().amax(1) > 0
    assert moved.nonzero().flatten().tolist() == [2, 7]


def test_untrained_statistics():
    # Six seeds gave KLD 64.0-68.2 and mean p_hat^2 1.2-2.8.
    torch.manual_seed(3)
    model = DVAE()
    x, labels, noise = batch_for(model, 32, rows=16)
    with torch.no_grad():
        x_hat, p_hat, mu, logvar = model(x, labels, noise)
    assert 55 < kl_divergence(mu, logvar) < 80
    assert 0.8 < p_hat.square().mean() < 4
    assert 0.25 < F.mse_loss((x_hat + p_hat).clamp(0, 1), x) < 0.32


def test_evaluation_of_a_row_ignores_its_batch():
    model = small_dvae().eval()
    x, labels, noise = batch_for(model, 32, rows=6)
    classifier = resnet18(width=8).eval()
    with torch.no_grad():
        together = model(x, labels, noise)
        alone = model(x[4:5], labels[4:5], noise[4:5])
        torch.testing.assert_close(classifier(x)[4:5], classifier(x[4:5]))
    for whole, row in zip(together, alone, strict=True):
        torch.testing.assert_close(whole[4:5], row, rtol=1e-4, atol=1e-5)


def test_noise_none_is_the_mean_and_noise_scales_with_the_deviation():
    model = small_dvae()
    mu, noise = torch.randn(2, 2, *model.latent_shape)
    with torch.no_grad():
        mean = model.latent(mu, torch.zeros_like(mu), None)
        torch.testing.assert_close(mean, model.post_conv(mu))
        sampled = model.latent(mu, torch.full_like(mu, 2 * math.log(3)), noise)
        torch.testing.assert_close(sampled, model.post_conv(mu + 3 * noise))


def test_channels_last_changes_nothing_but_speed():
    model = small_dvae().eval()
    x, labels, noise = batch_for(model, 32)
    with torch.no_grad():
        plain = model(x, labels, noise)
        model.to(memory_format=torch.channels_last)
        fast = model(*(t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
                       for t in (x, labels, noise)))
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert fast[0].is_contiguous(memory_format=torch.channels_last)


def test_narrow_networks_train_on_64_pixels():
    """torch 2.15's strided 1x1 convolution corrupts the heap here; in a process of its own."""
    code = """
import torch
from models.resnet import BasicBlock
torch.set_num_threads(1)
for channels in (4, 8):
    block = BasicBlock(channels, 2 * channels, 2).to(memory_format=torch.channels_last)
    for _ in range(5):
        x = torch.rand(2, channels, 64, 64).contiguous(memory_format=torch.channels_last)
        block(x.requires_grad_()).sum().backward()
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=Path(__file__).parents[1], check=False,
                          env={**os.environ, "MALLOC_CHECK_": "3"})
    assert done.stdout == "ok\n", (done.returncode, done.stderr)
