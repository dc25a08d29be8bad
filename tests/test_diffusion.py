"""purifiers/diffusion.py against the constants of the linear schedule, a Gaussian whose posterior
is known in closed form, and formulas retyped here."""

import math

import pytest
import torch

from purifiers import diffusion
from purifiers.diffusion import Schedule, jumps, kappa, times

SCHEDULE = Schedule()


@pytest.mark.parametrize(("t", "beta", "abar", "r", "variance"), [
    (0, 0.0001, 0.9999, 0.0100005, 0),
    (1, 0.00011991992, 0.99978009, 0.014830924, 5.4531877e-05),
    (10, 0.0002991992, 0.99780657, 0.04688549, 0.00025846362),
    (19, 0.00047847848, 0.99423095, 0.076174296, 0.00043900406),
    (20, 0.0004983984, 0.99373543, 0.079398134, 0.00045897544),
    (99, 0.0020720721, 0.89701815, 0.33882835, 0.0020345963),
    (999, 0.02, 4.0358298e-05, 157.40728, 0.019999984)])
def test_the_schedule(t, beta, abar, r, variance):
    assert SCHEDULE.betas.dtype == SCHEDULE.abar.dtype == torch.float64
    assert SCHEDULE.betas[t].item() == pytest.approx(beta, rel=1e-7)
    assert SCHEDULE.abar[t].item() == pytest.approx(abar, rel=1e-7)
    assert SCHEDULE.posterior_variance[t].item() == pytest.approx(variance, rel=1e-7)
    assert SCHEDULE.jump(t, t - 1).ratio == pytest.approx(r, rel=1e-7)


@pytest.mark.parametrize(("t", "on_x0", "on_x"), [
    (0, 1, 0), (1, 0.5452915, 0.4547085), (10, 0.13627786, 0.86372207),
    (19, 0.082719099, 0.91728058), (99, 0.019076345, 0.98089602)])
def test_the_posterior_mean(t, on_x0, on_x):
    jump = SCHEDULE.jump(t, t - 1)
    assert jump.on_x0 == pytest.approx(on_x0, rel=1e-7)
    assert jump.on_x == pytest.approx(on_x, rel=1e-7)


def test_the_variances():
    """fixedlarge: beta, and the posterior variance of step 1 at step 0, where it only guides."""
    for t in (1, 10, 19):
        assert SCHEDULE.jump(t, t - 1).variance == pytest.approx(SCHEDULE.betas[t].item())
        assert SCHEDULE.jump(t, t - 1, "small").variance == pytest.approx(
            SCHEDULE.posterior_variance[t].item())
    assert SCHEDULE.jump(0, -1).variance == pytest.approx(5.4531877e-05, rel=1e-7)


def test_the_visited_steps():
    assert times(20, 20) == list(range(19, -1, -1))
    assert times(20, 5) == [19, 15, 11, 7, 3]
    assert times(20, 4) == [19, 14, 9, 4]
    assert times(1000, 50)[:2] == [999, 979]
    assert [(jump.t, jump.to) for jump in jumps(SCHEDULE, times(20, 4))] == [
        (19, 14), (14, 9), (9, 4), (4, -1)]


@pytest.mark.parametrize(("t", "expected"), [
    (19, 0.079418), (15, 0.0549508), (11, 0.0348934)])
def test_kappa(t, expected):
    jump = SCHEDULE.jump(t, t - 1)
    assert kappa(jump, 1.0, 3072) == pytest.approx(expected, rel=1e-5)
    assert kappa(jump, 1 / 500, 3072) == pytest.approx(expected / 500, rel=1e-5)


@pytest.mark.parametrize(("strength", "expected"), [
    (1.0, 0.404567), (1 / 100, 0.00501713), (1 / 500, 0.00100521)])
def test_kappa_over_a_pass(strength, expected):
    left = math.prod(1 - kappa(jump, strength, 3072)
                     for jump in jumps(SCHEDULE, times(20, 20)) if jump.t >= 11)
    assert 1 - left == pytest.approx(expected, rel=1e-5)


def test_kappa_of_sub_sampled_steps():
    assert kappa(jumps(SCHEDULE, times(20, 5))[0], 1.0, 3072) == pytest.approx(0.298, abs=5e-4)


ORACLE = {      # sampler -> (prior variance -> kept fraction, output variance relative to it)
    "ancestral": {.25: (.9773, 1.000), .05: (.8960, .999), .01: (.6328, .999), .001: (.1470, .991)},
    "small": {.25: (.9773, .996), .05: (.8960, .983), .01: (.6328, .939), .001: (.1470, .780)},
    "subsampled": {.25: (.9773, .998), .05: (.8960, .992), .01: (.6328, .985), .001: (.1470, .910)},
    "one": {.25: (.9773, .977), .05: (.8960, .896), .01: (.6328, .633), .001: (.1470, .147)},
    "ddim": {.25: (.9879, .999), .05: (.9436, .994), .01: (.7849, .974), .001: (.3550, .857)},
    "ddim4": {.25: (.9856, .994), .05: (.9331, .972), .01: (.7492, .887), .001: (.2811, .538)},
}


@pytest.mark.parametrize("sampler", ORACLE)
def test_the_gaussian_oracle(sampler):
    """The network replaced by the exact noise of a Gaussian prior: a million pixels through our
    functions keep what was derived by hand."""
    visited = times(20, {"subsampled": 5, "one": 1, "ddim4": 4}.get(sampler, 20))
    steps = jumps(SCHEDULE, visited, "small" if sampler == "small" else "large")
    generator = torch.Generator().manual_seed(0)
    for v, (kept, spread) in ORACLE[sampler].items():

        def eps(x, t, v=v):
            abar = SCHEDULE.abar[t].item()
            return math.sqrt(1 - abar) * x / (v * abar + 1 - abar)

        def walk(x, generator, v=v):
            for jump in steps:
                x0 = diffusion.predict_x0(x, eps(x, jump.t), jump, clamp=False)
                if "ddim" in sampler:
                    x = diffusion.ddim(x, x0, jump, None)
                else:
                    noise = None if jump.last else torch.randn(x.shape, generator=generator)
                    x = diffusion.ancestral(x, x0, jump, None, noise)
            return x

        image = torch.randn(1_000_000, generator=generator) * math.sqrt(v)
        noise = torch.randn(image.shape, generator=generator)
        out, moved = (walk(SCHEDULE.noised(image + delta, 19, noise),
                           torch.Generator().manual_seed(1)) for delta in (0.0, 0.01))
        assert (moved - out).mean().item() / 0.01 == pytest.approx(kept, abs=2e-4)
        assert out.var().item() / v == pytest.approx(spread, abs=6e-3)


@pytest.mark.parametrize(("strength", "kept", "variance"), [
    (0, .644, .0302), (0.1, .671, .0252), (0.3, .717, .0183), (1, .817, .0083), (3, .907, .0038)])
def test_what_guidance_trades(strength, kept, variance):
    """Section 3.5: four passes of 20 steps from index 20, squared error from step 11 up, a prior of
    variance 0.05. The oracle is linear: the factors of perturbation and noise multiply."""
    v, a, n = 0.05, 1.0, 0.0         # x = a y + noise of variance n, over all passes
    for _ in range(4):
        abar = SCHEDULE.abar[20].item()
        a, n = a * math.sqrt(abar), n * abar + 1 - abar
        for jump in jumps(SCHEDULE, times(20, 20)):
            abar = SCHEDULE.abar[jump.t].item()
            posterior = v * math.sqrt(abar) / (v * abar + 1 - abar)         # x0 = posterior x
            x = torch.tensor([1.0, 0.0], dtype=torch.float64)               # response to x and to y
            mean = diffusion.ancestral(x, posterior * x, jump, None, None)
            if jump.t >= 11:
                target = torch.tensor([0.0, math.sqrt(abar)], dtype=torch.float64)
                k = kappa(jump, strength, 3072)
                mean = mean - k * (x - target)
                noise = k * k * (1 - abar)              # of the target, drawn afresh
            else:
                noise = 0.0
            by_x, by_y = mean.tolist()
            a, n = by_x * a + by_y, by_x**2 * n + noise + (0 if jump.last else jump.variance)
    assert a == pytest.approx(kept, abs=2e-3)
    assert n == pytest.approx(variance, abs=4e-4)


def test_the_shift_is_the_gradient_of_the_squared_error():
    """released(B) == per-image(1/B): autograd through the batch mean of the released code."""
    torch.manual_seed(0)
    x, target = torch.randn(2, 5, 3, 8, 8, dtype=torch.float64)
    jump = SCHEDULE.jump(15, 14)
    s = 70_000 * (3 * 255 / (2 * 8)) * jump.ratio               # ptb = 8
    leaf = x.clone().requires_grad_()
    loss = -s * torch.nn.functional.mse_loss(leaf, target)
    expected = jump.variance * torch.autograd.grad(loss, leaf)[0]
    torch.testing.assert_close(diffusion.mse_shift(x, target, jump, 1 / 5), expected)

    def distance(a, b):
        return (a - b).square().flatten(1).mean(1)

    torch.testing.assert_close(diffusion.distance_shift(x, target, jump, 1 / 5, distance), expected)


def test_euler_maruyama_is_avatars():
    """Retyped from section 2, with a network that predicts its own input."""
    x, asked = torch.full((1, 3, 2, 2), 0.5), []

    def network(x, t):
        asked.append(t.item())
        return x

    found = diffusion.euler_maruyama(x, network, 100, lambda i: torch.full_like(x, 0.1))
    t, expected = 0.1, 0.5
    for i in range(100):
        dt = 1e-3 if i < 99 else 0.00099                # torchsde stops at 1e-5
        beta = 0.1 + 19.9 * t
        score = -expected / math.sqrt(1 - math.exp(-9.95 * t**2 - 0.1 * t))
        expected += dt * (beta * expected / 2 + beta * score) + math.sqrt(beta * dt) * 0.1
        t -= 1e-3
    assert found.flatten()[0].item() == pytest.approx(expected, rel=1e-4)
    assert len(asked) == 100
    assert asked[0] == pytest.approx(99.9)
