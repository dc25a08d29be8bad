"""Named streams: what is drawn depends on (seed, name, step) and on nothing else."""

import hashlib

import numpy as np
import pytest
import torch
from conftest import new_run
from torch import nn

from core import streams


def formula(seed: int, name: str, step: int) -> int:
    """The documented derivation, retyped from the other end: big-endian of the reversed bytes."""
    digest = hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()
    return int(digest[:8][::-1].hex(), 16) // 2


@pytest.mark.parametrize("key", [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (-3, "é", 9)])
def test_seed_is_the_documented_hash(key):
    assert streams.derive(*key) == formula(*key)
    assert 0 <= streams.derive(*key) < 2**63


def test_seeds_stay_apart_in_the_32_bits_that_torch_keeps():
    keys = [(seed, name, step) for seed in range(10) for name in ("a", "b", "a/b", "ab")
            for step in range(200)]
    low = {streams.derive(*key) % 2**32 for key in keys}
    # 8,000 draws from 2^32 collide with probability 0.7 %; this fixed grid does not.
    assert len(low) == len(keys)


def test_a_stream_is_the_generator_of_its_seed(tmp_path):
    expected = torch.rand(5, generator=torch.Generator().manual_seed(formula(7, "noise", 3)))
    sfc = np.random.Generator(np.random.SFC64(formula(7, "noise", 3)))
    with new_run(tmp_path / "out", seed=7) as run:
        assert torch.equal(torch.rand(5, generator=run.stream("noise", 3)), expected)
        np.testing.assert_array_equal(run.rng("noise", 3).random(5), sfc.random(5))


def test_drawing_from_one_stream_shifts_no_other():
    alone = torch.randn(100, generator=streams.generator(0, "a"))
    first, second = streams.generator(0, "b"), streams.generator(0, "a")
    torch.randn(1000, generator=first)
    torch.rand(17)
    assert torch.equal(torch.randn(100, generator=second), alone)


def test_streams_do_not_touch_the_global_generators():
    torch.manual_seed(5)
    np.random.seed(5)       # noqa: NPY002 (the point is the global generator)
    expected = torch.rand(3), np.random.rand(3)     # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)       # noqa: NPY002
    torch.rand(10, generator=streams.generator(0, "a"))
    streams.rng(0, "a").random(10)
    with streams.initialisation(0, "a"):
        nn.Linear(3, 3)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])   # noqa: NPY002


def test_initialisation_repeats_and_depends_on_seed_and_name():
    def weights(seed, name):
        torch.rand(3)       # whatever happened before does not matter
        with streams.initialisation(seed, name):
            return nn.Linear(4, 4).weight

    torch.manual_seed(formula(3, "model", 0))
    expected = nn.Linear(4, 4).weight
    assert torch.equal(weights(3, "model"), expected)
    assert torch.equal(weights(3, "model"), expected)
    assert not torch.equal(weights(4, "model"), expected)
    assert not torch.equal(weights(3, "other"), expected)


def test_initialisation_restores_the_generator_after_an_error():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(ZeroDivisionError), streams.initialisation(0, "a"):
        _ = torch.rand(3) / (1 // 0)
    assert torch.equal(torch.rand(3), expected)


def test_a_block_of_noise_has_the_documented_length():
    assert streams.BLOCK == 256     # part of every swept result: a change changes bytes


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 256), (200, 300), (256, 700), (511, 513)])
def test_rows_get_what_their_block_draws(start, stop):
    """Row i has number i % BLOCK of block i // BLOCK, wherever a slice begins."""
    drawn = streams.by_block(slice(start, stop), lambda block: torch.stack(
        [torch.full((streams.BLOCK,), block), torch.arange(streams.BLOCK)], 1))
    expected = [[row // streams.BLOCK, row % streams.BLOCK] for row in range(start, stop)]
    assert drawn.tolist() == expected
