"""Adversarial training against plain slow loops that name the mistakes they would catch."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS, count, new_run, run_command
from torch import nn

import evaluate
from core import records
from core.batches import Augmentation, Batches
from core.request import parse
from core.training import Normalised
from learners import adversarial, standard
from learners.adversarial import Config
from models.resnet import resnet18
from scripts.tables import entries, plan, spec

NORMS = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)      # mean and sd of the inputs of `network`


def network(*, classes: int = 10) -> nn.Module:
    """Small, in double precision, behind normalised inputs; train and eval mode differ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(),
                          nn.Linear(4 * 36, classes))
    model[1].running_mean.normal_()
    return Normalised(model, *NORMS).double().train()


def batch(dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with black and white pixels, and labels that no network has learnt."""
    generator = torch.Generator().manual_seed(1)
    images = torch.empty(5, 8, 8, 3, dtype=dtype).uniform_(-0.3, 1.3, generator=generator)
    return images.clamp(0, 1).permute(0, 3, 1, 2), torch.tensor([3, 1, 4, 1, 5])


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(2)


MISTAKES = {"linf": ["train mode", "no projection", "no clip", "normalised inputs", "no start",
                     "the other start", "descends", "one step too few"],
            "l2": ["train mode", "no projection", "no clip", "normalised inputs", "no start",
                   "the other start", "signed steps", "the ball of the whole batch"]}


def plain_attack(model: nn.Module, images, labels, config: Config, mistake: str = ""):
    """The formula, image by image: x + start; then `iterations` times a step up the cross-entropy,
    back into the ball around x, and into [0, 1]."""
    mean, std = (torch.tensor(values).double()[:, None, None] for values in NORMS)
    start = config.start
    if mistake == "the other start":
        start = {"uniform": "gauss", "gauss": "uniform"}[start]
    drawn = torch.empty(images.permute(0, 2, 3, 1).shape, dtype=torch.float64)
    if config.norm == "linf" and start == "uniform":
        drawn.uniform_(-1, 1, generator=(generator := noise()))
    else:
        drawn.normal_(generator=(generator := noise()))
    shares = torch.empty(len(images), dtype=torch.float64)
    if (config.norm, start) == ("l2", "uniform"):
        shares.uniform_(generator=generator)
    model = model.train() if mistake == "train mode" else model.eval()
    found = []
    for i, (x, y) in enumerate(zip(images, labels, strict=True)):
        before = drawn[i].permute(2, 0, 1)
        if config.norm == "l2":
            before = before / before.norm()
            before = before * (config.step_size if start == "gauss" else
                               config.epsilon * shares[i] ** (1 / x.numel()))
        else:
            before = before * (config.step_size if start == "gauss" else config.epsilon)
        z = x if mistake == "no start" else x + before
        if start == "uniform":
            z = z.clamp(0, 1)
        for _ in range(config.iterations - (mistake == "one step too few")):
            z = z.detach().requires_grad_()
            F.cross_entropy(model(z[None]), y[None]).backward()
            up = -z.grad if mistake == "descends" else z.grad
            step = up.sign() if config.norm == "linf" or mistake == "signed steps" else \
                up / up.norm()
            step = config.step_size * step
            if mistake == "normalised inputs":          # as if the radius were of (x - mean) / std
                z = ((z - mean) / std + step) * std + mean
            else:
                z = z + step
            z = z.detach()
            if mistake != "no projection":
                delta = z - x
                if config.norm == "linf":
                    delta = delta.clamp(-config.epsilon, config.epsilon)
                else:
                    length = delta.norm() * (len(images) ** 0.5 if "batch" in mistake else 1)
                    delta = delta * min(1.0, config.epsilon / length.item())
                z = x + delta
            if mistake != "no clip":
                z = z.clamp(0, 1)
        found.append(z)
    return torch.stack(found)


CASES = [("linf", 8 / 255, 3 / 255), ("l2", 0.5, 0.2)]


@pytest.mark.parametrize("start", ["uniform", "gauss"])
@pytest.mark.parametrize(("norm", "epsilon", "step_size"), CASES)
def test_the_attack_is_the_formula_image_by_image(norm, epsilon, step_size, start):
    config = Config(norm=norm, epsilon=epsilon, step_size=step_size, start=start, iterations=5)
    images, labels = batch()
    found = adversarial.attack(network(), images, labels, config, noise())
    torch.testing.assert_close(found, plain_attack(network(), images, labels, config), rtol=0,
                               atol=1e-12)
    for mistake in MISTAKES[norm]:
        wrong = plain_attack(network(), images, labels, config, mistake)
        assert (found - wrong).abs().max() > 1e-4, mistake


@pytest.mark.parametrize("start", ["uniform", "gauss"])
@pytest.mark.parametrize(("norm", "epsilon", "step_size"), CASES)
def test_images_stay_within_the_radius_and_are_images(norm, epsilon, step_size, start):
    """To float32's last bits; and most of the radius is used."""
    config = Config(norm=norm, epsilon=epsilon, step_size=step_size, start=start)
    images, labels = batch(torch.float32)
    delta = adversarial.attack(network().float(), images, labels, config, noise()) - images
    lengths = delta.abs().flatten(1).amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)
    assert (lengths <= epsilon + 1e-6).all()
    assert (lengths > 0.5 * epsilon).all()
    assert 0 <= (images + delta).min() <= (images + delta).max() <= 1


def test_a_start_lies_in_the_ball_evenly():
    """L2's share of the volume: of 48 values, half of the starts lie beyond 0.986 of the radius."""
    images = torch.zeros(4000, 3, 4, 4)
    config = Config(norm="l2", epsilon=2.0)
    lengths = adversarial.begin(images, config, noise()).flatten(1).norm(dim=1)
    assert lengths.max() <= 2 + 1e-5
    assert (lengths > 2 * 0.5 ** (1 / 48)).float().mean() == pytest.approx(0.5, abs=0.03)
    gauss = Config(norm="l2", epsilon=2.0, step_size=0.3, start="gauss")
    torch.testing.assert_close(adversarial.begin(images, gauss, noise()).flatten(1).norm(dim=1),
                               torch.full((4000,), 0.3))


def test_labels_may_be_shares_of_classes():
    """As a transform such as mixup gives them: all of one class is that class."""
    images, labels = batch()
    config = Config(iterations=3)
    found = adversarial.attack(network(), images, F.one_hot(labels, 10).double(), config, noise())
    assert torch.equal(found, adversarial.attack(network(), images, labels, config, noise()))


# --- the network -----------------------------------------------------------------------------


def test_the_attack_leaves_the_network_as_it_was():
    """Modes, what learns, weights and running statistics, layer by layer: frozen stays frozen."""
    model = network()
    model.network[1].eval()                             # frozen statistics
    model.network[0].requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def state() -> list:
        return [*(module.training for module in model.modules()),
                *((p.requires_grad, p.grad) for p in model.parameters())]

    expected = state()
    config = Config(iterations=2)
    adversarial.attack(model, *batch(), config, noise())
    assert state() == expected
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    images, labels = batch()
    with pytest.raises(IndexError):                     # and where it breaks
        adversarial.attack(model, images, labels + 10, config, noise())
    assert state() == expected


class Frozen(nn.Sequential):
    """What is fine-tuned with its statistics as they are: always in eval mode."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


@pytest.mark.parametrize("kind", ["statistics of the batch", "always in eval mode"])
def test_a_network_with_other_statistics_is_trained(kind, few, tmp_path, monkeypatch):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, track_running_stats=kind != "statistics of the batch")
    model = (Frozen if kind == "always in eval mode" else nn.Sequential)(
        norm, nn.Flatten(), nn.Linear(768, 10))
    monkeypatch.setattr(standard, "build", lambda train, config, run: model)
    with new_run(tmp_path / "run") as run:
        result = adversarial.fit(few, few, Config(
            epochs=3, iterations=2, batch_size=64, learning_rate=0.05, crop_padding=0, flip=False),
            run)
    assert result.last > 0.5
    if kind == "always in eval mode":
        assert norm.running_mean.abs().max() == 0


# --- the training ----------------------------------------------------------------------------

TRAINING_MISTAKES = ["attacked in train mode", "trained in eval mode", "trained on the clean",
                     "the same draw every step", "normalised outside"]


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 10))


def test_each_step_is_taken_where_the_attack_ends(few, tmp_path, monkeypatch):
    """Two epochs of two batches, through the loop that all learners have."""
    config = Config(epochs=2, batch_size=160, iterations=2, learning_rate=0.05, crop_padding=0,
                    flip=False, mean=NORMS[0], std=NORMS[1], milestones=(1,))
    monkeypatch.setattr(standard, "build", lambda train, config, run: small())
    with new_run(tmp_path / "ours") as run:
        result = adversarial.fit(few, few, config, run)

    def plain(mistake: str, run) -> tuple[list, float]:
        inner, hits = small(), 0.0
        model = Normalised(inner, *NORMS)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        batches = Batches(few, 160, run, "classifier", augmentation=Augmentation(0, False))
        for step in range(4):
            if step == 2:
                optimizer.param_groups[0]["lr"], hits = 0.005, 0.0
            x, y = list(batches.epoch(step // 2))[step % 2]
            seen = model
            if mistake == "normalised outside":
                x, seen = (x - model.mean) / model.std, inner
            seen.train(mistake == "attacked in train mode")
            generator = run.stream("adversarial/start", 0 if "same draw" in mistake else step)
            z = x + torch.empty(x.permute(0, 2, 3, 1).shape).uniform_(
                -8 / 255, 8 / 255, generator=generator).permute(0, 3, 1, 2)
            for _ in range(config.iterations):
                z = z.clamp(0, 1).detach().requires_grad_()
                F.cross_entropy(seen(z), y).backward()
                z = x + (z.detach() + 2 / 255 * z.grad.sign() - x).clamp(-8 / 255, 8 / 255)
            seen.train(mistake != "trained in eval mode")
            logits = seen(x if mistake == "trained on the clean" else z.clamp(0, 1))
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5)
            optimizer.step()
            hits += (logits.argmax(1) == y).float().mean().item() / 2
        return [*inner.state_dict().values()], hits

    for mistake in ("", *TRAINING_MISTAKES):
        with new_run(tmp_path / f"plain {mistake}") as run:
            expected, hits = plain(mistake, run)
        same = all(torch.allclose(mine, value, rtol=1e-3, atol=1e-5) for mine, value in zip(
            result.network.state_dict().values(), expected, strict=True))
        assert same == (not mistake), mistake
        if not mistake:
            assert result.train_accuracy == pytest.approx(hits, abs=1e-6)


# --- keys, presets and labels ----------------------------------------------------------------

YAML = str(CONFIGS / "learners" / "adversarial.yaml")


@pytest.mark.parametrize(("words", "message"), [
    (["adversarial.epsilon=8"], r"adversarial\.epsilon: 8 is above 1, .* write 8/255"),
    (["adversarial.step_size=2"], r"adversarial\.step_size: 2 is above 1, .* write 2/255"),
    (["adversarial.iterations=0"], r"adversarial\.iterations: 0 is out of range"),
    (["adversarial.norm=l2", "adversarial.epsilon=8/255"],
     r"adversarial\.epsilon: an l2 radius of 0\.03137 is next to none"),
])
def test_impossible_attacks_are_refused_in_a_sentence(words, message):
    outcome = run_command(evaluate.main, YAML, "data=digits", *words, "--dry-run")
    assert outcome.status == 1
    assert outcome.stdout == ""
    assert re.search(message, outcome.error)


# defences.md 1.1 and 2: radius, step, start, epochs, milestones (of the rate), clipping
PRESETS = {
    None: (8 / 255, 2 / 255, "uniform", 100, "multistep", (75, 90), 5.0),
    "eps8": (8 / 255, 2 / 255, "uniform", 100, "multistep", (75, 90), 5.0),
    "eps4": (4 / 255, 1 / 255, "uniform", 100, "multistep", (75, 90), 5.0),
    "em": (8 / 255, 2 / 255, "gauss", 100, "multistep", (75, 90), 5.0),
    "iss": (0.031, 0.007, "gauss", 100, "cosine", (75, 90), None),
    "apb": (8 / 255, 2 / 255, "gauss", 200, "multistep", (100,), None),
    "bp": (8 / 255, 2 / 255, "gauss", 120, "multistep", (80, 100), None),
    "rem": (4 / 255, 0.8 / 255, "uniform", 100, "multistep", (16000, 32000), None),
    "miue": (8 / 255, 2 / 255, "uniform", 100, "multistep", (40, 80), None),
    "ecl": (8 / 255, 2 / 255, "uniform", 80, "constant", (), None),
    "l2": (128 / 255, 15 / 255, "gauss", 100, "multistep", (75, 90), 5.0),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_steps_on_imagenet_are_d_vaes_5_and_other_studies_own(preset):
    words = [f"preset={preset}"] if preset else []
    request = parse([str(YAML), *words, "like=imagenet100", "data=digits"], "", "evaluate")
    own = {"rem": 8, "ecl": 7, **dict.fromkeys(("iss", "apb", "bp", "miue", "l2"), 10)}
    assert request.config.iterations == own.get(preset, 5)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_releases(preset):
    words = [f"preset={preset}"] if preset else []
    request = parse([YAML, "data=cifar10", *words], "", "evaluate")
    found = request.config
    assert (found.epsilon, found.step_size, found.start, found.epochs, found.schedule,
            found.milestones, found.clip_norm) == PRESETS[preset]
    assert found.iterations == (7 if preset == "ecl" else 10)
    assert found.weight_decay == (0 if preset == "ecl" else 5e-4)
    assert found.norm == ("l2" if preset == "l2" else "linf")
    assert found.drop_last == (preset not in ("iss", "bp", "miue", "ecl"))
    assert (found.gamma, found.shuffle) == ((0.5, False) if preset == "apb" else (0.1, True))
    assert found.steps == (40000 if preset == "rem" else None)
    assert found.mean == ((0.5, 0.5, 0.5) if preset == "rem" else None)
    assert request.data.split == ("first:40000" if preset == "bp" else "train")
    quick = parse([YAML, "data=digits", *words], "", "evaluate").config
    assert (quick.epochs, quick.steps, quick.schedule) == (10, None, "onecycle")


def test_every_number_has_its_radius_beside_it(few):
    """A record's line on the screen, and a table's column."""
    config = Config(epsilon=4 / 255)
    assert records.label("adversarial", {"epsilon": 4 / 255}) == "epsilon=4/255, norm=linf"
    record = {"learner": "adversarial", "protocol": "adversarial_eps4",
              "config": {"epsilon": config.epsilon, "norm": "l2"},
              "train": {"root": {"data": "digits"}, "lineage": [{"method": "lsp"}]}}
    assert records.lineage_text(record) == \
        "digits > lsp > adversarial_eps4 (epsilon=4/255, norm=l2)"
    record |= {"learner": "standard", "protocol": "em60"}
    assert records.lineage_text(record) == "digits > lsp"
    assert records.label("a learner of before", {}) == ""

    Path("table.yaml").write_text(
        f"data: digits\nevaluate: {{evaluate: {CONFIGS}/learners/em60.yaml}}\nrows: {{clean: []}}\n"
        f"columns:\n  none: []\n  at: {{evaluate: {YAML}, preset: eps4}}\n"
        "derived: {either: {max: [none, at]}}\n")
    table = spec.read_one("table.yaml")
    names = [entry.column for entry in entries.collect(table, plan.cells_of([table]))]
    assert names == ["none", "at (epsilon=16/255, norm=linf)", "either"]


def test_it_trains_a_resnet_of_any_width(few, tmp_path):
    with new_run(tmp_path / "run") as run:
        result = adversarial.fit(few.first(64), few.first(64), Config(
            epochs=1, width=2, batch_size=32, iterations=1), run)
    assert result.images == 64
    assert count(result.network) == count(resnet18(10, 2))
