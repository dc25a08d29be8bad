"""The toy of D-VAE's analysis: its formulas against simulations and published values."""

import math
from pathlib import Path

import pytest
from conftest import run_command

from scripts.pictures import toy


def test_toy_1_formula_and_simulation():
    published = {(0, 1): 0.9772, (0.1, 0.1): 0.5707, (0.3, 0.3): 0.6979, (0.3, 0.1): 0.5238,
                 (0.3, 0.03): 0.5021, (1, 0.1): 0.5071}
    assert tuple(published) == toy.PAIRS
    for (a, s), expected in published.items():
        assert toy.formula(a, s) == pytest.approx(expected, abs=5e-5)
        assert toy.simulated_accuracy(a, s) == pytest.approx(expected, abs=0.005)


def test_toy_2_the_poison_goes_when_its_nats_are_too_dear():
    rates = {0.01: 30.2, 0.05: 20.0, 0.15: 13.9, 0.25: 11.2, 0.5: 7.8, 1: 4.3}
    for beta in toy.BETAS:
        point = toy.through_vae(beta)
        assert point.accuracy < 0.55 if beta <= 0.15 else point.accuracy > 0.96
        assert point.rate == (pytest.approx(rates[beta], abs=0.1) if beta else math.inf)
        if beta == 0.25:
            assert point.residual_poison == pytest.approx(0.057, abs=0.003)
            assert point.residual_image == pytest.approx(0.005, abs=0.002)
    assert toy.poison_variance() == pytest.approx(0.093, abs=0.0005)


def test_toy_3_entropies():
    published = {0.2: (0.336, 0.527), 0.1: (-0.194, 0.689), 0.05: (-0.884, 0.693)}
    for sigma, expected in published.items():
        assert toy.mixture_entropy(0.3, sigma) == pytest.approx(expected, abs=5e-4)
    # far apart: the entropy of one part plus log 2
    assert toy.mixture_entropy(9, 1)[0] == pytest.approx(
        math.log(2 * math.pi * math.e) / 2 + math.log(2))


@pytest.mark.slow
def test_the_toy_prints_and_draws():
    outcome = run_command(toy.main, "--out", "toy.png")
    assert outcome.status == 0, outcome.stderr
    assert Path("toy.png").read_bytes().startswith(b"\x89PNG")
    assert "| formula | 0.977 | 0.571 | 0.698 | 0.524 | 0.502 | 0.507 |" in outcome.stdout
