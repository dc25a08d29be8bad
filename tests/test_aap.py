"""AAP against code EhanW/AUE-AAP: its crafting typed again on the same trained surrogate."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacks import config_by, doubles, poisoned_by, random_set, to_double
from conftest import new_run

from core.imageset import ImageSet
from core.streams import BLOCK
from core.training import learning_rate
from core.views import apply, draw
from poisons import aap
from poisons.transforms import contrastive_views

MISTAKES = ["ascent", "towards the own class", "the reference's strength", "no augmentation",
            "the same draws for every step", "one draw for all blocks", "one step fewer",
            "to the nearest level"]
CONFIG = aap.Config(steps=3, epsilon=15 / 255, step_size=6.3 / 255, strength=0.9,
                    surrogate=aap.Surrogate(width=2, epochs=1, warmup_epochs=0, batch_size=100,
                                            strength=0.2))


@pytest.fixture(scope="module")
def small() -> ImageSet:
    """Two blocks of rows; no value becomes black or white, see test_turns.py."""
    return random_set(BLOCK + 20, 16, 240)


def plain_aap(clean: ImageSet, model, config: aap.Config, run, mistake: str = "") -> np.ndarray:
    x, y = doubles(clean)
    towards = y if mistake == "towards the own class" else (y + 1) % 4
    sign = -1 if config.targeted == (mistake == "ascent") else 1
    if not config.targeted:
        towards = y
    strength = 0.2 if mistake == "the reference's strength" else 0.9
    delta = torch.zeros_like(x)
    for step in range(config.steps - (mistake == "one step fewer")):
        at = 0 if mistake == "the same draws for every step" else step
        for block in (0, 1):
            rows = slice(block * BLOCK, min((block + 1) * BLOCK, len(x)))
            number = 0 if mistake == "one draw for all blocks" else block
            drawn = draw(contrastive_views(strength, True), BLOCK, (8, 8),
                         run.stream(f"aap/noise/{at}", number)).part(
                             slice(0, rows.stop - rows.start))
            inside = (x[rows] + delta[rows]).clamp(0, 1)
            noised = inside.clone().requires_grad_()
            seen = noised if mistake == "no augmentation" else apply(noised, drawn)
            loss = F.cross_entropy(model(seen), towards[rows])
            [gradient] = torch.autograd.grad(loss, noised)
            delta[rows] = (inside - sign * config.step_size * gradient.sign() - x[rows]).clamp(
                -config.epsilon, config.epsilon)
    made = (x + delta).float().clamp(0, 1).permute(0, 2, 3, 1) * 255
    rounded = made.round() if mistake == "to the nearest level" else (made + 0.01).floor()
    return rounded.numpy().astype(np.uint8)


@pytest.mark.parametrize("targeted", [True, False])
def test_the_crafting_is_the_releases(tmp_path, small, monkeypatch, targeted):
    """In double precision, the same bytes; each mistake that one could make gives others."""
    trained, train = [], aap.train_surrogate
    config = aap.Config(**{**vars(CONFIG), "targeted": targeted})

    def double_train(*arguments, **keys):
        trained.append(train(*arguments, **keys).double())
        return trained[0]

    monkeypatch.setattr(aap, "train_surrogate", double_train)
    to_double(monkeypatch, aap)
    ours = poisoned_by(aap, small, config, tmp_path / "ours", "aap")
    with new_run(tmp_path / "plain", method="aap") as run:
        plain = {mistake: plain_aap(small, trained[0], config, run, mistake)
                 for mistake in ["", *MISTAKES]}
    np.testing.assert_array_equal(ours, plain[""])
    same = [mistake for mistake in MISTAKES if (plain[mistake] == ours).all()]
    assert same == ([] if targeted else ["towards the own class"])


def test_the_surrogate_learns_from_its_own_augmentation(tmp_path, small, monkeypatch):
    """Of its own strength, drawn anew for every step."""
    seen, seeds = [], []

    def noting(views, count, shape, generator, device):
        seen.append(views)
        seeds.append(generator.initial_seed())
        return draw(views, count, shape, generator, device)

    monkeypatch.setattr(aap, "draw", noting)
    monkeypatch.setattr("core.views.draw", noting)          # of `fresh`
    with new_run(tmp_path / "out", method="aap") as run:
        aap.poison(small, CONFIG, run)
    assert seen[:3] == [contrastive_views(0.2, True)] * 3       # 276 rows, the last too
    assert seen[3:] == [contrastive_views(0.9, True)] * 2 * 3       # two blocks, three steps
    assert len(set(seeds)) == len(seeds) == 9       # each step's, and each block's, are its own


def test_noise_at_the_budget_is_not_rounded_beyond_it(tmp_path, small):
    """One step as large as the budget is whole levels: there, or 0 where no crop looked."""
    config = aap.Config(steps=1, epsilon=8 / 255, step_size=8 / 255, surrogate=CONFIG.surrogate)
    made = poisoned_by(aap, small, config, tmp_path / "out", "aap")
    levels, counts = np.unique(made.astype(int) - small.images, return_counts=True)
    assert set(levels) <= {-8, 0, 8}
    assert counts[levels != 0].sum() > made.size / 2


def test_values_are_the_releases():
    config = config_by("aap")
    assert config == aap.Config()
    large = config_by("aap", "like=cifar100")
    assert (large.strength, large.surrogate.strength) == (0.8, 0.8)
    surrogate = aap.Surrogate()
    rates = [learning_rate(surrogate, epoch * 391, 40 * 391, 391) for epoch in (0, 9, 25, 39)]
    assert rates == pytest.approx([0.05, 0.5, 0.250001, 0.001371], abs=2e-6)
    assert config.steps * config.step_size == pytest.approx(2.5 * config.epsilon)
