"""PSNR and SSIM against slow loops and known values, LPIPS against torchvision's network."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from core.distance import SQUEEZE, TRUNKS, build_lpips, psnr, ssim, url_of


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 3, 14, 17, generator=generator)
    return a, (a + 0.2 * torch.randn(a.shape, generator=generator)).clamp(0, 1)


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One image (3, H, W), window by window, with the variance as a mean of squared deviations."""
    line = [math.exp(-(i - 5) ** 2 / (2 * 1.5**2)) for i in range(11)]
    window = np.outer(line, line) / sum(line) ** 2
    c1, c2 = (0.01 * 1) ** 2, (0.03 * 1) ** 2
    values = []
    for channel in range(3):
        for top in range(a.shape[1] - 10):
            for left in range(a.shape[2] - 10):
                x, y = (image[channel, top : top + 11, left : left + 11] for image in (a, b))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                values.append((2 * mx * my + c1) * (2 * cov + c2)
                              / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_ssim_is_the_slow_loop(pair):
    a, b = pair
    expected = [slow_ssim(*(x.double().numpy() for x in both)) for both in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b), expected, atol=2e-5)
    np.testing.assert_allclose(ssim(a.double(), b.double()), expected, atol=1e-12)


def test_ssim_of_equal_weights_is_scikit_images(pair):
    """Its default; the Gaussian one is another number."""
    a, b = (images.double() for images in pair)
    expected = [structural_similarity(*(x.permute(1, 2, 0).numpy() for x in both), channel_axis=-1,
                                      data_range=1) for both in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b, "uniform"), expected, atol=1e-12)
    np.testing.assert_allclose(ssim(*pair, "uniform"), expected, atol=2e-5)
    assert (ssim(a, b, "uniform") - ssim(a, b)).abs().min() > 1e-3
    small = torch.rand(1, 3, 7, 7)
    assert ssim(small, small, "uniform").item() == pytest.approx(1)


def test_ssim_of_equal_flat_and_opposite_images(pair):
    a, b = pair
    torch.testing.assert_close(ssim(a, a), torch.ones(3))
    torch.testing.assert_close(ssim(a, b), ssim(b, a))
    black, white = torch.zeros(1, 3, 16, 16).double(), torch.ones(1, 3, 16, 16).double()
    assert ssim(black, white).item() == pytest.approx(1e-4 / (1 + 1e-4))    # c1 / (1 + c1)
    assert (ssim(a, 1 - a) < 0).all()


def test_each_image_has_a_score_of_its_own(pair):
    a, b = pair
    for metric in (psnr, ssim):
        together = metric(a, b)
        assert together.shape == (3,)
        for i in range(3):
            torch.testing.assert_close(metric(a[i : i + 1], b[i : i + 1])[0], together[i])


def test_psnr_is_its_formula(pair):
    a, b = (x.double().numpy() for x in pair)
    expected = [10 * math.log10(1 / ((x - y) ** 2).mean()) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(*pair), expected, rtol=1e-5)
    assert psnr(pair[0], pair[0]).tolist() == [math.inf] * 3


@pytest.mark.parametrize(("level", "decibel"), [(8 / 255, 30.07), (1 / 255, 48.13), (1, 0)])
def test_psnr_of_a_constant_shift(level, decibel):
    flat = torch.zeros(1, 3, 32, 32)
    assert psnr(flat, flat + level).item() == pytest.approx(decibel, abs=0.005)


@pytest.mark.parametrize(("radius", "decibel"), [(1.0, 34.87), (1.3041, 32.57)])
def test_psnr_of_the_two_l2_budgets_at_32_pixels(radius, decibel):
    """20 log10(sqrt(3 * 32 * 32) / radius): of LSP, here and in ISS."""
    delta = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    delta = delta / delta.norm() * radius
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert psnr(flat, flat + delta).item() == pytest.approx(decibel, abs=0.01)


# --- LPIPS -----------------------------------------------------------------------------------


def test_lpips_is_the_real_one():
    """The sums of LPIPS through SqueezeNet, retyped on torchvision's own network
    with the heads that the package ships."""
    import lpips
    import numpy as np
    from torchvision.models import squeezenet1_1

    trunk = squeezenet1_1().eval().features
    with np.load(SQUEEZE) as weights:
        trunk.load_state_dict({name.removeprefix("features."): torch.from_numpy(weights[name])
                               .float() for name in weights if name.startswith("features.")})
    heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/squeeze.pth",
                       map_location="cpu", weights_only=True)
    c, i, j = torch.meshgrid(torch.arange(3), torch.arange(32), torch.arange(32), indexing="ij")
    a = (((3 * i + 5 * j + 7 * c) % 32) / 15.5 - 1)[None]
    b = a.flip(3)

    def taps(x):
        x = (x - torch.tensor([-.030, -.088, -.188])[:, None, None]) \
            / torch.tensor([.458, .448, .450])[:, None, None]
        found = []
        for number, layer in enumerate(trunk):
            x = layer(x)
            if number in (1, 4, 7, 9, 10, 11, 12):
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    with torch.no_grad():
        expected = sum((heads[f"lin{k}.model.1.weight"] * (p - q).square()).sum(1).mean()
                       for k, (p, q) in enumerate(zip(taps(a), taps(b), strict=True)))
        distance = build_lpips("squeeze", None, None, (32, 32))
        assert distance(a, b).item() == pytest.approx(expected.item(), rel=1e-4)
        assert distance(a, a).item() == 0


def test_lpips_of_noise_grows_with_it():
    """Random signs on smooth images; on CIFAR-10, 2, 4, 8, 16 levels give .0012 .0062 .0278
    .1097."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(16, 3, 5, 5, generator=generator), size=(32, 32), mode="bicubic") * 2 - 1
    signs = torch.randint(0, 2, smooth.shape, generator=generator) * 2.0 - 1
    distance = build_lpips("squeeze", None, None, (32, 32))
    found = [distance(smooth, smooth + level / 127.5 * signs).mean().item()
             for level in (2, 4, 8, 16)]
    assert found == sorted(found)
    assert 0.0003 < found[0] < 0.003
    assert 0.05 < found[3] < 0.3


@pytest.mark.parametrize("net", TRUNKS)
def test_weights_are_where_torchvision_has_them(net):
    from torchvision.models import get_model_weights

    assert url_of(net) == get_model_weights(TRUNKS[net][0]).DEFAULT.url
