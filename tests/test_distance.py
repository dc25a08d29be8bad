"""LPIPS against torchvision's network."""

from pathlib import Path

import pytest
import torch

from core.distance import SQUEEZE, TRUNKS, build_lpips, url_of


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
