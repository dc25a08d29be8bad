"""CLIP's visual tower as UC's surrogate: typed again layer by layer, and files that do not do."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS, as_floats, as_set, count, new_run, run_command
from safetensors.torch import save_file

from core.device import DeviceSettings, resolve
from core.errors import UserError
from models.clip import ClipResNet
from poisons import uc
from poisons.__main__ import main
from poisons.clip import load_tower
from poisons.frozen import FrozenSurrogate

DEPTHS, WIDTH, GRID, CHANNELS = (1, 2, 1, 1), 4, 2, 6
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Of a narrow tower for images of 64x64, its norms away from their start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = ClipResNet(DEPTHS, WIDTH, GRID, CHANNELS).state_dict()
        norms = {name: 0.5 + torch.rand_like(tensor) for name, tensor in found.items()
                 if ("bn" in name or "downsample.1" in name) and not name.endswith("tracked")}
        return found | norms


@pytest.fixture
def file(tmp_path, weights):
    """As open_clip writes it: the text's tower and the temperature beside, here in half precision.
    """
    save_file({f"visual.{name}": tensor.half() if tensor.is_floating_point() else tensor
               for name, tensor in weights.items()}
              | {"logit_scale": torch.ones(1), "token_embedding.weight": torch.rand(3, 2)},
              tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors"


def retyped(w: Weights, x: torch.Tensor) -> torch.Tensor:
    """Radford et al. 2021, section 2.4, by functions of tensors; attention is torch's own."""
    def norm(name, x):
        return F.batch_norm(x, w[f"{name}.running_mean"], w[f"{name}.running_var"],
                            w[f"{name}.weight"], w[f"{name}.bias"])

    x = F.relu(norm("bn1", F.conv2d(x, w["conv1.weight"], stride=2, padding=1)))
    x = F.relu(norm("bn2", F.conv2d(x, w["conv2.weight"], padding=1)))
    x = F.relu(norm("bn3", F.conv2d(x, w["conv3.weight"], padding=1)))
    x = F.avg_pool2d(x, 2)
    for group, depth in enumerate(DEPTHS, 1):
        for block in range(depth):
            at = f"layer{group}.{block}"
            smaller = group > 1 and block == 0
            out = F.relu(norm(f"{at}.bn1", F.conv2d(x, w[f"{at}.conv1.weight"])))
            out = F.relu(norm(f"{at}.bn2", F.conv2d(out, w[f"{at}.conv2.weight"], padding=1)))
            out = F.avg_pool2d(out, 2) if smaller else out
            out = norm(f"{at}.bn3", F.conv2d(out, w[f"{at}.conv3.weight"]))
            if block == 0:
                x = F.avg_pool2d(x, 2) if smaller else x
                x = norm(f"{at}.downsample.1", F.conv2d(x, w[f"{at}.downsample.0.weight"]))
            x = F.relu(out + x)
    x = x.flatten(2).permute(2, 0, 1)                   # positions, images, channels
    x = torch.cat([x.mean(0, keepdim=True), x]) + w["attnpool.positional_embedding"][:, None]
    of = {part: (w[f"attnpool.{part}_proj.weight"], w[f"attnpool.{part}_proj.bias"])
          for part in "qkvc"}
    attended, _ = F.multi_head_attention_forward(
        x[:1], x, x, x.shape[2], x.shape[2] // 64, None, torch.cat([of[p][1] for p in "qkv"]), None,
        None, False, 0, *of["c"], use_separate_proj_weight=True, q_proj_weight=of["q"][0],
        k_proj_weight=of["k"][0], v_proj_weight=of["v"][0], need_weights=False, training=False)
    return attended[0]


def test_the_tower_is_the_papers_also_folded(file, weights):
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    half = {name: tensor.half().float() if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()}
    tower = load_tower(file)
    assert tower.size == 64
    assert not tower.training
    assert {tensor.dtype for tensor in tower.parameters()} == {torch.float32}
    with torch.no_grad():
        theirs = retyped(half, images)
        assert theirs.shape == (3, CHANNELS)
        torch.testing.assert_close(tower.features(images), theirs, atol=1e-5, rtol=1e-5)
        device = resolve(DeviceSettings(threads=1, precision="fp32"))
        folded = FrozenSurrogate(tower, device)
        assert len(folded.convolutions) == 3 + 3 * sum(DEPTHS) + 4
        torch.testing.assert_close(folded.features(images), theirs, atol=1e-4, rtol=1e-4)


def test_rn50_is_as_published():
    """38,316,896 parameters in 339 tensors, 1,024 features of 224x224 images."""
    with torch.device("meta"):
        tower = ClipResNet((3, 4, 6, 3), 64, 7, 1024)
        assert tower(torch.rand(1, 3, 224, 224)).shape == (1, 1024)
    assert count(tower) == 38_316_896
    assert len(tower.state_dict()) == 339


def test_uc_clusters_by_what_it_sees(tmp_path, file):
    random = np.random.default_rng(0)
    clean = as_set(random.integers(0, 256, (12, 64, 64, 3), np.uint8), np.arange(12) % 2, classes=2)
    config = uc.Config(clusters=2, width=4, epochs=1, batch_size=12, weights=str(file),
                       surrogate=uc.Surrogate(architecture="clip", mean=(0.5, 0.4, 0.3),
                                              std=(0.3, 0.2, 0.1)))
    with new_run(tmp_path / "out") as run:
        poisoned = uc.poison(clean, config, run)
        centres, clusters = (np.load(run.work / name) for name in ("centres.npy", "clusters.npy"))
    assert 1 <= np.abs(poisoned.images.astype(int) - clean.images).max() <= 16
    pixels = as_floats(clean.images)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.3, 0.2, 0.1)))
    with torch.no_grad():
        features = load_tower(file).features((pixels - mean) / std).numpy()
    for number in (0, 1):
        np.testing.assert_allclose(centres[number], features[clusters == number].mean(0), atol=1e-5)
    small = as_set(np.zeros((4, 32, 32, 3), np.uint8), np.arange(4) % 2, classes=2)
    with new_run(tmp_path / "small") as run, pytest.raises(
            UserError, match="takes images of 64x64 pixels, and these have 32x32"):
        uc.surrogate(small, config, run)


def test_smoke_takes_a_network_without_a_file():
    outcome = run_command(main, CONFIGS / "poisons/uc.yaml", "preset=clip", "uc.weights=none.pt",
                          "--smoke", "--dry-run")
    assert outcome.status == 0
    assert "--smoke has its own uc.weights" in outcome.stderr
    assert "weights: null" in outcome.stdout


def test_what_does_not_do_is_one_sentence(tmp_path, weights):
    with pytest.raises(UserError, match="CLIP is not trained here: name a file"):
        uc.Config(surrogate=uc.Surrogate(architecture="clip")).check_images((224, 224))
    wide = {"conv3.weight": torch.zeros(1 << 20, 0, 3, 3)}      # a claim of a gigantic network
    for change, message in (
            (dict.fromkeys(weights, None), "holds no visual tower of a ResNet of CLIP's"),
            (wide, "holds the weights of another network: conv1.weight is"),
            ({"conv3.weight": torch.zeros(3, 2, 3, 3)}, "holds no visual tower"),
            ({"attnpool.positional_embedding": torch.zeros(0, 128)}, "holds no visual tower"),
            ({"layer1.0.bn2.bias": None}, r"layer1\.0\.bn2\.bias is not there, but in a ResNet of"),
            ({"layer1.1.conv1.weight": torch.zeros(4, 16, 1, 1)}, r"layer1\.1\.bn1\.weight is not"),
            ({"proj": torch.zeros(2)}, "proj is 2 float32, but in a ResNet of CLIP's")):
        path = tmp_path / "wrong.pt"
        torch.save({f"visual.{name}": tensor for name, tensor in (weights | change).items()
                    if tensor is not None}, path)
        with pytest.raises(UserError, match=message) as error:
            load_tower(path)
        assert str(error.value).startswith(str(path))
