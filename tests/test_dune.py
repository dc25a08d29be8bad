"""DUNE: the whole attack typed again as its release's loops, particle by particle and image by
image, in double precision, and must give the same bytes; and what the method says of itself."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacks import (
    LINEAR,
    config_by,
    doubles,
    poison,
    poisoned_by,
    random_network,
    share_seen,
    to_double,
    to_pixels,
)
from conftest import as_set, log_of, new_run, run_command
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from core.config import plain
from core.distance import build_lpips
from core.errors import ConfigError
from core.imageset import ImageSet
from core.perturbation import check_bound, measure
from core.streams import rng
from poisons import dune, ensemble
from poisons.__main__ import main as poison_main
from poisons.frozen import FrozenSurrogate


@pytest.fixture(scope="module")
def contrasts() -> ImageSet:
    """18 images of 8x8 in three classes, a quarter of their values black and a quarter white, but
    every other image dark, where a colour costs most of the SSIM; there are none of
    two more classes."""
    random = np.random.default_rng(0)
    images = np.clip(random.integers(-128, 384, (18, 8, 8, 3)), 0, 255).astype(np.uint8)
    images[::2] //= 6
    return as_set(images, random.permutation(np.arange(18) % 3), classes=5)


def network_of(seed: int) -> torch.nn.Module:
    """A small random network with statistics of its own, in double precision."""
    model = random_network(lambda: torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(72, 5)), seed)
    model[-1].weight.data.mul_(6)           # as sure as a trained one
    return model


def far(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """In the place of LPIPS, whose networks are of float32 and larger images: it notices order and
    units."""
    return (a.mean((2, 3)) - 0.9 * b.mean((2, 3))).abs().mean(1)


# --- the plain loop --------------------------------------------------------------------------

SMALL = {"epsilon": 24 / 255, "step_size": 7 / 255, "steps": 5, "checkpoints": 3,
         "min_psnr": 24.0, "min_ssim": 1.0, "max_lpips": 0.0}
MISTAKES = {
    "spatial": ["own class", "the next class", "away from the class", "one checkpoint",
                "signs averaged", "random start", "never in the box"],
    "colour": ["own class", "the next class", "away from the class", "one checkpoint",
               "losses of checkpoints summed", "all images of the class",
               "last images of the class",
               "images not clipped", "no penalty", "no PSNR", "no SSIM", "no LPIPS",
               "penalties once for all images", "PSNR of all images", "LPIPS in [-1, 1]",
               "Gaussian SSIM", "one swarm for all classes", "worst seen", "last place of the best",
               "first particle", "asynchronous", "no pull to the own best", "no pull to the best",
               "velocity kept whole", "first velocity nought", "colour of the next class"],
    "both": ["colour first", "noise clipped with the colour", "colour within the budget",
             "swarm on noised images"],
}


def plain_dune(clean: ImageSet, config: dune.Config, networks, mistake: str = "") -> np.ndarray:
    """In the release's order, class by class; what comes out is in that of the set."""
    x, labels = doubles(clean)
    made = torch.full_like(x, math.nan)
    for y in range(5):
        rows = torch.nonzero(labels == y)[:, 0]
        if len(rows):
            colour = plain_swarm(x[rows], y, config, networks, mistake) if config.colour else None
            if mistake == "colour of the next class":
                colour = plain_swarm(x[labels == (y + 1) % 3], (y + 1) % 3, config, networks)
            own = plain_noise(x[rows], y, config, networks, mistake) if config.spatial else x[rows]
            if mistake == "swarm on noised images":
                colour = plain_swarm(own, y, config, networks)
            if mistake == "colour first":
                own = plain_noise((x[rows] + colour).clamp(0, 1), y, config, networks)
            elif mistake == "noise clipped with the colour":
                own = plain_noise(x[rows], y, config, networks, "last box left out") + colour
            elif mistake == "colour within the budget":
                own = x[rows] + (own + colour - x[rows]).clamp(-config.epsilon, config.epsilon)
            elif config.colour:
                own = own + colour
            made[rows] = own
    return to_pixels(made)


def target_of(y: int, mistake: str) -> int:
    return (y + {"own class": 0, "the next class": 1}.get(mistake, 3)) % 5


def plain_noise(x, y, config, networks, mistake=""):
    z = x.clone()
    if mistake == "random start":
        z = (x + config.epsilon * torch.randn(x.shape).double().sign()).clamp(0, 1)
    target = torch.full((len(x),), target_of(y, mistake))
    for step in range(config.steps):
        gradients = []
        for network in networks[-1:] if mistake == "one checkpoint" else networks:
            z.requires_grad_()
            [gradient] = torch.autograd.grad(F.cross_entropy(network(z), target), z)
            gradients.append(gradient.sign() if mistake == "signs averaged" else gradient)
            z = z.detach()
        sign = -1 if mistake == "away from the class" else 1
        z = z - sign * config.step_size * (sum(gradients) / len(gradients)).sign()
        z = torch.min(torch.max(z, x - config.epsilon), x + config.epsilon)
        if mistake == "never in the box" or (mistake == "last box left out"
                                             and step == config.steps - 1):
            continue
        z = z.clamp(0, 1)
    return z


def plain_swarm(x, y, config, networks, mistake=""):
    """(3, 1, 1)"""
    draws = rng(0, "dune/swarm", 0 if mistake == "one swarm for all classes" else y)
    its = config.swarm
    position = draws.random((its.particles, 3)) * 2 * its.start - its.start
    velocity = draws.random((its.particles, 3)) * 2 * its.velocity - its.velocity
    if mistake == "first velocity nought":
        velocity[:] = 0
    own_place, own_value = position.copy(), [math.inf] * its.particles
    best_place, best_value = np.zeros(3), math.inf
    inertia, to_own, to_best = its.inertia, its.pull_own, its.pull_best
    to_own *= mistake != "no pull to the own best"
    to_best *= mistake != "no pull to the best"
    inertia = 1.0 if mistake == "velocity kept whole" else inertia
    for _ in range(its.iterations):
        for j in range(its.particles):
            value = plain_cost(position[j], x, y, config, networks, mistake)
            value = -value if mistake == "worst seen" else value
            if value < own_value[j]:
                own_value[j], own_place[j] = value, position[j]
            if value < best_value:
                best_value = value
                best_place = position[j] if mistake == "last place of the best" \
                    else position[j].copy()
            if mistake == "asynchronous":
                velocity[j] = inertia * velocity[j] + to_own * (own_place[j] - position[j]) \
                    + to_best * (best_place - position[j])
                position[j] += velocity[j]
        if mistake != "asynchronous":
            velocity = inertia * velocity + to_own * (own_place - position) \
                + to_best * (best_place - position)
            position += velocity
    found = own_place[0] if mistake == "first particle" else best_place
    return torch.tensor(found, dtype=torch.float32).view(3, 1, 1)


def plain_cost(place, x, y, config, networks, mistake):
    if mistake != "all images of the class":
        x = x[-config.swarm.images:] if mistake == "last images of the class" \
            else x[: config.swarm.images]
    shifted = x + torch.tensor(place, dtype=torch.float32).view(1, 3, 1, 1)
    if mistake != "images not clipped":
        shifted = shifted.clamp(0, 1)
    target, total = torch.full((len(x),), target_of(y, mistake)), 0.0
    with torch.no_grad():
        for network in networks[-1:] if mistake == "one checkpoint" else networks:
            total += F.cross_entropy(network(shifted), target).item() * len(x)
    if mistake not in ("losses of checkpoints summed", "one checkpoint"):
        total /= len(networks)
    if mistake == "away from the class":
        total = -total
    if mistake == "no penalty":
        return total / len(x)
    terms = np.array([plain_terms(*pair, config, mistake)
                      for pair in zip(x, shifted, strict=True)])
    if mistake == "PSNR of all images":
        terms[:, 0] = config.min_psnr - peak_signal_noise_ratio(x.numpy(), shifted.numpy(),
                                                                data_range=1)
    for at, name in enumerate(("no PSNR", "no SSIM", "no LPIPS")):
        terms[:, at] *= mistake != name
    if mistake == "penalties once for all images":
        return total / len(x) + np.maximum(terms.mean(0), 0).sum()
    return (total + np.maximum(terms, 0).sum()) / len(x)


def plain_terms(image, shifted, config, mistake):
    """Of one image: what it falls short of each limit, below 0 where it does not."""
    if mistake == "LPIPS in [-1, 1]":
        distance = far(2 * image[None] - 1, 2 * shifted[None] - 1)
    else:
        distance = far(image[None], shifted[None])
    one, other = (part.permute(1, 2, 0).numpy() for part in (image, shifted))
    gaussian = {"gaussian_weights": True, "sigma": 0.8, "use_sample_covariance": False} \
        if mistake == "Gaussian SSIM" else {}
    similarity = structural_similarity(one, other, channel_axis=-1, data_range=1, **gaussian)
    return (config.min_psnr - peak_signal_noise_ratio(one, other, data_range=1),
            config.min_ssim - similarity, distance.item() - config.max_lpips)


@pytest.fixture
def networks() -> list[torch.nn.Module]:
    return [network_of(seed) for seed in range(3)]


@pytest.fixture
def in_double(monkeypatch, networks):
    """The attack in double precision on these networks, its trunk of LPIPS replaced; what it asks
    of the ensemble is noted."""
    asked = []

    def given(clean, checkpoints, surrogate, run):
        asked.append((checkpoints, surrogate))
        return [FrozenSurrogate(network, run.device) for network in networks]

    to_double(monkeypatch, dune, makes=["on_device"])
    monkeypatch.setattr(dune, "train_ensemble", given)
    monkeypatch.setattr("poisons.crafting.CRAFT_BATCH", {"cpu": (2, 2)})    # a class in parts
    monkeypatch.setattr(dune, "build_lpips", lambda *_: far)
    monkeypatch.setattr(dune, "check_lpips", lambda *_: None)
    return asked


@pytest.mark.parametrize("part", MISTAKES)
def test_the_attack_is_the_releases_loop(tmp_path, contrasts, networks, in_double, part):
    """The same bytes; and each mistake that one could make gives others."""
    config = dune.Config(**SMALL, spatial=part != "colour", colour=part != "spatial",
                         swarm=dune.Swarm(images=3, particles=5, iterations=5,
                                          pull_own=0.9))
    ours = poisoned_by(dune, contrasts, config, tmp_path / "ours")
    np.testing.assert_array_equal(ours, plain_dune(contrasts, config, networks))
    assert in_double == [(3, config.surrogate)]
    for mistake in MISTAKES[part]:
        assert (plain_dune(contrasts, config, networks, mistake) != ours).any(), mistake


# --- the swarm, and what it pays -------------------------------------------------------------


def test_what_the_swarm_returns_is_the_best_that_it_has_seen():
    """Also where later ones are worse, as at most of these costs; the release's is not."""
    seen: list[tuple[float, np.ndarray]] = []

    def cost(positions: np.ndarray) -> np.ndarray:
        found = np.sin(400 * positions).sum(1)
        seen.extend(zip(found, positions.copy(), strict=True))
        return found

    for seed in range(20):
        seen.clear()
        best = dune.search(cost, dune.Swarm(particles=4, iterations=6), np.random.default_rng(seed))
        assert len(seen) == 24
        np.testing.assert_array_equal(best, min(seen, key=lambda pair: pair[0])[1])
    assert all(np.abs(position).max() < 0.2 for _, position in seen)


def test_the_swarm_finds_the_bottom_of_a_bowl():
    bottom = np.array([0.05, -0.08, 0.02])
    best = dune.search(lambda p: ((p - bottom)**2).sum(1), dune.Swarm(30, 30, 60),
                       np.random.default_rng(0))
    np.testing.assert_allclose(best, bottom, atol=2e-3)


def test_the_price_is_that_of_the_packages(tmp_path):
    """PSNR and SSIM of scikit-image, and LPIPS of images in [0, 1]."""
    random = torch.Generator().manual_seed(0)
    clean = torch.rand(6, 3, 4, 4, generator=random).repeat_interleave(8, 2).repeat_interleave(8, 3)
    shifted = (clean + torch.linspace(0, 0.3, 6)[:, None, None, None]).clamp(0, 1)
    config = dune.Config(lpips_net="squeeze", min_psnr=18, min_ssim=0.97, max_lpips=0.01)
    with new_run(tmp_path / "out") as run, torch.no_grad():
        price = dune.make_price((32, 32), config, run)(clean, shifted)
        distances = build_lpips("squeeze", None, None, (32, 32))(clean, shifted)
    assert price[0] == 0
    terms = []
    for one, other, distance in zip(clean, shifted, distances.tolist(), strict=True):
        one, other = (image.permute(1, 2, 0).numpy() for image in (one, other))
        with np.errstate(divide="ignore"):
            terms.append([18 - peak_signal_noise_ratio(one, other, data_range=1),
                          0.97 - structural_similarity(one, other, channel_axis=-1, data_range=1),
                          distance - 0.01])
    paid = np.maximum(terms, 0)
    assert (paid > 0).any(0).all()
    assert not (paid > 0).all(0).any()
    np.testing.assert_allclose(price, paid.sum(1), atol=1e-4)


# --- what it makes ---------------------------------------------------------------------------


def make(few_path, *keys: str) -> tuple[np.ndarray, list[dict], np.ndarray | None]:
    """Images, log and colours in grey levels, of a few digits and a linear surrogate."""
    out = poison("dune", few_path, *LINEAR, "checkpoints=3", "penalties=psnr", "swarm.images=20",
                 *keys)
    colours = out / "colours.npy"
    return np.load(out / "images.npy"), log_of(out), \
        255 * np.load(colours) if colours.exists() else None


def test_the_noise_alone_is_within_its_budget_and_reaches_its_target(few_path, few):
    """The last checkpoint says (y + 3) mod K."""
    images, log, colours = make(few_path, "colour=false", "epsilon=96/255", "step_size=6/255")
    assert colours is None
    assert np.abs(images.astype(int) - few.images).max() == 96
    assert share_seen(log) > 0.95


def test_the_colours_alone_are_one_shift_a_class(few_path, few):
    """Of every channel by itself, but where an image is black or white."""
    images, log, colours = make(few_path, "spatial=false")
    assert colours.shape == (10, 3)
    assert len(np.unique(colours.round(3), axis=0)) == 10
    exact = few.images + np.rint(colours).astype(int)[few.labels][:, None, None]
    np.testing.assert_array_equal(images, exact.clip(0, 255))
    [line] = [line for line in log if line["loop"] == "colour"]
    np.testing.assert_allclose(line["levels"], colours, atol=1e-3)


def test_both_together_are_the_noise_and_then_the_colour(few_path, few):
    """So each value moves by the budget and its colour at most, and row i is nearest to clean row i
    in its colour."""
    images, _, colours = make(few_path, "epsilon=16/255", "step_size=1/255")
    shifted = (few.images + colours[few.labels][:, None, None]).clip(0, 255)
    assert np.abs(images - shifted).max() <= 16.5 + 1e-3
    assert np.abs(images.astype(int) - few.images).max() > 16
    one, other = (torch.from_numpy(part.reshape(len(part), -1).astype(float))
                  for part in (images, shifted))
    np.testing.assert_array_equal(torch.cdist(one, other).argmin(1), np.arange(len(images)))


def test_a_quieter_price_allows_larger_colours(few_path):
    """Nothing else bounds them."""
    sizes = [np.abs(make(few_path, "spatial=false", "swarm.start=0.3", *keys)[2]).mean()
             for keys in (["min_psnr=30"], ["penalties=none"])]
    assert sizes[1] > 1.5 * sizes[0]


def test_no_row_depends_on_another_but_through_networks_and_colours(tmp_path, contrasts, in_double,
                                                                    monkeypatch):
    """Rows stay where they are, as the set is shuffled; a class without images gets no colour."""
    config = dune.Config(**SMALL)
    with new_run(tmp_path / "first") as run:
        first = np.array(dune.poison(contrasts, config, run).images)
        colours = np.load(run.work / "colours.npy")
    assert not colours[3:].any()
    assert colours[:3].any(1).all()
    monkeypatch.setattr(dune, "find_colours", lambda *_: torch.from_numpy(colours))
    order = np.random.default_rng(1).permutation(len(contrasts))
    np.testing.assert_array_equal(
        poisoned_by(dune, contrasts.subset(order, "shuffled"), config, tmp_path / "second"),
        first[order])


def test_the_bound_is_the_noises_or_none(contrasts):
    assert dune.bound(dune.Config(colour=False, epsilon=0.1)) == ("linf", 0.1)
    assert dune.bound(dune.Config()) is None
    check_bound(dune.bound(dune.Config()), measure(contrasts, dataclasses.replace(
        contrasts, images=255 - contrasts.images)), 192, "round")


# --- keys ------------------------------------------------------------------------------------


def test_values_are_the_releases():
    usual = config_by("dune")
    assert usual == dune.Config()
    assert (usual.shift, usual.steps, usual.checkpoints) == (3, 30, 5)
    assert (255 * usual.epsilon, 255 * usual.step_size) == (8, 0.5)
    assert usual.steps * usual.step_size * 255 == 15
    assert plain(usual.swarm) == {
        "images": 1000, "particles": 10, "iterations": 10, "start": 0.1, "velocity": 0.01,
        "inertia": 0.5, "pull_own": 0.3, "pull_best": 0.3}
    assert (usual.min_psnr, usual.min_ssim, usual.max_lpips) == (20, 0.8, 0.03)
    assert (usual.penalties, usual.lpips_net) == ("psnr+ssim+lpips", "alex")
    assert config_by("dune", "preset=spatial") == dune.Config(colour=False)
    assert config_by("dune", "preset=colour") == dune.Config(spatial=False)
    assert config_by("dune", "data=imagenet100").surrogate.mean is None


@pytest.mark.parametrize("files", [5, 10, 30, 60, 120])
def test_the_checkpoints_are_the_releases_of_a_list_of_all_epochs(files):
    """Where their number is a multiple of five."""
    interval, late, used = files // 5, 0, []
    while len(used) != 5:
        used = list(range(files))[interval - late :: interval]
        late += 1
    assert ensemble.spaced(files, 5) == used


@pytest.mark.parametrize(("keys", "message"), [
    (["shift=10", "penalties=psnr"], "dune.shift: 10 of 10 classes further is the own one"),
    (["spatial=false", "colour=false"], "dune.spatial: without the colour too, nothing is changed"),
    (["checkpoints=9", "surrogate.epochs=8"], "dune.checkpoints: 9 do not fit the surrogate's 8"),
    (["surrogate.steps=9"], "dune.surrogate.steps: checkpoints are of epochs"),
    (["epsilon=8"], "dune.epsilon: 8 is above 1"),
    (["lpips_net=alex"], "lpips_net: alex takes images of at least 31 pixels, not 16"),
    (["lpips_net=squeeze", "lpips_resize=32", "lpips_weights=none.npz"],
     "lpips_weights: none.npz: no such file"),
    (["penalties=lpips"], "dune.penalties: 'lpips'"),
])
def test_a_mistake_is_said(few_path, keys, message):
    outcome = run_command(poison_main, "method=dune", f"data={few_path}",
                          *(f"dune.{key}" for key in keys))
    assert outcome.status == 1
    assert message in outcome.error


def test_three_classes_have_no_class_three_further(tmp_path, contrasts):
    few = dataclasses.replace(contrasts, meta={**contrasts.meta, "classes": list("abc")})
    with new_run(tmp_path / "out") as run, pytest.raises(ValueError, match="3 of 3 classes"):
        dune.poison(few, dune.Config(penalties="psnr"), run)


def test_images_that_are_too_small_to_tell_their_quality_are_refused():
    with pytest.raises(ConfigError, match="SSIM needs images of 7 pixels, and these have 6x9"):
        dune.Config(penalties="psnr+ssim").check_images((6, 9))
    for allowed in (dune.Config(colour=False), dune.Config(penalties="psnr")):
        allowed.check_images((6, 9))


# --- PSNR and SSIM ---------------------------------------------------------------------------


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 3, 14, 17, generator=generator)
    return a, (a + 0.2 * torch.randn(a.shape, generator=generator)).clamp(0, 1)


def test_ssim_is_scikit_images(pair):
    a, b = (images.double() for images in pair)
    expected = [structural_similarity(*(x.permute(1, 2, 0).numpy() for x in both), channel_axis=-1,
                                      data_range=1) for both in zip(a, b, strict=True)]
    np.testing.assert_allclose(dune.ssim(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(dune.ssim(*pair), expected, atol=2e-5)
    small = torch.rand(1, 3, 7, 7)
    assert dune.ssim(small, small).item() == pytest.approx(1)


def test_ssim_of_equal_flat_and_opposite_images(pair):
    a, b = pair
    torch.testing.assert_close(dune.ssim(a, a), torch.ones(3))
    torch.testing.assert_close(dune.ssim(a, b), dune.ssim(b, a))
    black, white = torch.zeros(1, 3, 16, 16).double(), torch.ones(1, 3, 16, 16).double()
    assert dune.ssim(black, white).item() == pytest.approx(1e-4 / (1 + 1e-4))    # c1 / (1 + c1)
    assert (dune.ssim(a, 1 - a) < 0).all()


def test_each_image_has_a_score_of_its_own(pair):
    a, b = pair
    for metric in (dune.psnr, dune.ssim):
        together = metric(a, b)
        assert together.shape == (3,)
        for i in range(3):
            torch.testing.assert_close(metric(a[i : i + 1], b[i : i + 1])[0], together[i])


def test_psnr_is_its_formula(pair):
    a, b = (x.double().numpy() for x in pair)
    expected = [10 * math.log10(1 / ((x - y) ** 2).mean()) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(dune.psnr(*pair), expected, rtol=1e-5)
    assert dune.psnr(pair[0], pair[0]).tolist() == [math.inf] * 3


@pytest.mark.parametrize(("level", "decibel"), [(8 / 255, 30.07), (1 / 255, 48.13), (1, 0)])
def test_psnr_of_a_constant_shift(level, decibel):
    flat = torch.zeros(1, 3, 32, 32)
    assert dune.psnr(flat, flat + level).item() == pytest.approx(decibel, abs=0.005)


@pytest.mark.parametrize(("radius", "decibel"), [(1.0, 34.87), (1.3041, 32.57)])
def test_psnr_of_the_two_l2_budgets_at_32_pixels(radius, decibel):
    """20 log10(sqrt(3 * 32 * 32) / radius): of LSP, here and in ISS."""
    delta = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    delta = delta / delta.norm() * radius
    flat = torch.full((1, 3, 32, 32), 0.5)
    assert dune.psnr(flat, flat + delta).item() == pytest.approx(decibel, abs=0.01)
