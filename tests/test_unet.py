"""models/unet.py against ermongroup/ddim's parameter counts and against diffusers."""

import math

import pytest
import torch
from conftest import count
from safetensors.torch import save_file

from models.unet import UNet, initialise
from scripts.exchange import import_ddpm


@pytest.mark.parametrize(("width", "parameters"), [
    (32, 2_245_763), (64, 8_952_067), (96, 20_118_915), (128, 35_746_307)])
def test_parameters(width, parameters):
    """Those of ermongroup/ddim: 328 tensors."""
    weights = UNet(width).state_dict()
    assert len(weights) == 328
    assert sum(tensor.numel() for tensor in weights.values()) == parameters


def test_the_default_is_the_cifar_network():
    assert count(UNet()) == 35_746_307
    shapes = {name: tuple(p.shape) for name, p in UNet().state_dict().items()}
    assert shapes["conv_in.weight"] == (128, 3, 3, 3)
    assert shapes["down.1.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert shapes["up.1.block.2.conv1.weight"] == (256, 384, 3, 3)
    assert shapes["up.0.block.0.conv1.weight"] == (128, 384, 3, 3)
    assert shapes["mid.block_1.temb_proj.weight"] == (256, 512)


@pytest.mark.parametrize(("multipliers", "side", "parameters"), [
    ((1, 2, 2, 2, 4), 64, 78_700_803),          # ermongroup/ddim, CelebA
    ((1, 1, 2, 2, 4, 4), 256, 113_673_219)])    # Ho et al., LSUN and CelebA-HQ
def test_networks_for_larger_images(multipliers, side, parameters):
    with torch.device("meta"):
        network = UNet(multipliers=multipliers, image_size=side)
        assert network(torch.empty(1, 3, side, side), torch.zeros(1)).shape == (1, 3, side, side)
    assert count(network) == parameters
    assert sum(len(part.attn) for part in network.down) == 2        # at 16x16 alone


def theirs(width: int = 32, size: int = 32, levels: int = 4) -> torch.nn.Module:
    """diffusers' model with the settings of jcdp.md 9.1; without the package, a skipped test."""
    diffusers = pytest.importorskip("diffusers")
    channels = tuple(width * factor for factor in (1, 2, 2, 2)[:levels])
    attends = [size >> level == 16 for level in range(levels)]
    return diffusers.UNet2DModel(
        sample_size=size, block_out_channels=channels, layers_per_block=2,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6,
        attention_head_dim=None, act_fn="silu").eval()


@pytest.mark.parametrize(("width", "size", "levels"), [(128, 32, 4), (32, 16, 3), (32, 64, 4)])
def test_equals_diffusers(width, size, levels, tmp_path):
    torch.manual_seed(0)
    model = theirs(width, size, levels)
    save_file(model.state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    model.save_config(tmp_path)
    _, weights, side = import_ddpm.from_diffusers(tmp_path)
    assert side == size
    config = import_ddpm.architecture(weights, size)
    assert (config.width, config.blocks) == (width, 2)
    assert config.attention == (16,)
    ours = UNet(width, config.multipliers, 2, config.attention, size).eval()
    ours.load_state_dict(weights)
    x, t = torch.randn(4, 3, size, size), torch.tensor([0, 19, 99, 999])
    with torch.no_grad():
        expected = model(x, t).sample
        assert expected.std((1, 2, 3)).min() > 0.05
        assert (ours(x, t) - expected).abs().max() <= 1e-4
        last = ours(x[-1:].expand(2, -1, -1, -1), t[-1:])       # one step for all
        assert (last - expected[-1:]).abs().max() <= 1e-4


def test_every_image_has_its_own_step():
    torch.manual_seed(0)
    model, x = UNet(32).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        both = model(x, torch.tensor([3, 700]))
        alone = [model(x[i : i + 1], torch.tensor([t])) for i, t in enumerate((3, 700))]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert (both - model(x, torch.tensor([3])))[1].abs().max() > 1e-3


def test_half_precision_keeps_the_time():
    """Weights in bf16: the angle of step 999 must not be rounded, and the output is float32."""
    torch.manual_seed(0)
    model, x = UNet(32).eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x, torch.tensor([999]))
        found = model.to(torch.bfloat16)(x, torch.tensor([999]))
    assert found.dtype == torch.float32
    assert (found - expected).std() < 0.03 * expected.std()


def test_ho_initialisation_starts_near_nothing():
    torch.manual_seed(0)
    model = initialise(UNet(32)).eval()
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32), torch.tensor([5])).abs().max() < 1e-3
    weight = model.down[0].block[0].conv1.weight            # fan 32 * 9 both ways
    limit = math.sqrt(6 / (2 * 32 * 9))
    assert 0.95 * limit < weight.abs().max() <= limit
    assert model.down[0].block[0].conv2.weight.abs().max() <= 1e-5 * limit
    assert not any(p.any() for name, p in model.named_parameters()
                   if name.endswith("bias") and "norm" not in name)


def test_compiling_finds_one_graph():
    """No graph break: every break would be a trip through Python at each step."""
    model = UNet(32, image_size=16, multipliers=(1, 2), attention=(8,)).eval()
    found = torch._dynamo.explain(model)(torch.randn(2, 3, 16, 16), torch.tensor([3]))
    torch._dynamo.reset()
    assert found.graph_break_count == 0
    assert found.graph_count == 1
