"""REM and SEM: the defence step against a plain loop over single images, and what they store."""

import copy
import dataclasses
import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attacks import doubles, poisoned_by, tensors, to_double, to_pixels
from conftest import CONFIGS, as_set, new_run, run_command, succeed
from torchvision.transforms import RandomResizedCrop

from core.imageset import ImageSet
from core.streams import BLOCK, generator
from core.training import Normalised
from core.views import TRIES, random_boxes
from models.resnet import resnet18
from poisons import minmin, rem, sem
from poisons.__main__ import main as poison_main
from poisons.frozen import FrozenSurrogate
from poisons.transforms import crop_and_flip

INNER = {"pgd": rem.attack, "noise": sem.random_neighbour}
CONFIG = rem.Config(steps=2, transforms=3, inner_steps=3, width=8)


class Draws:
    """The same numbers for whoever asks by name, one row an image."""

    def __init__(self, rows: int, only: int | None = None) -> None:
        self.rows, self.only = rows, only

    def __call__(self, name: str, like: torch.Tensor | int) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        generator = torch.Generator().manual_seed(seed)
        drawn = rem.uniform(self.rows, like, generator)
        return drawn if self.only is None else drawn[self.only : self.only + 1]


class ExactDraws(Draws):
    def __call__(self, name: str, like: torch.Tensor | int) -> torch.Tensor:
        return super().__call__(name, like).double()


@pytest.fixture(scope="module")
def digits32(few):
    return tensors(few.first(32))


@pytest.fixture(scope="module")
def surrogate(tmp_path_factory, digits32):
    """Trained for a few steps, in eval mode. Not to be changed."""
    torch.manual_seed(0)
    model = resnet18(10, 8).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(digits32[0]), digits32[1]).backward()
        optimizer.step()
    with new_run(tmp_path_factory.mktemp("rem") / "run") as run:
        yield model.eval(), FrozenSurrogate(model, run.device)


@pytest.fixture(scope="module")
def exact(surrogate):
    """The same in double precision: in float32 the sign of a gradient near 0 is the processor's."""
    model = copy.deepcopy(surrogate[0]).double()
    return model, FrozenSurrogate(model, surrogate[1].device)


def plain_defence(model, image, label, config, draw, inside):
    """The release's loop for one image (3, H, W), one transform after the other, with the
    plain eval-mode network and autograd."""
    def crop(x, drawn):
        p = config.crop_padding
        if p is None:
            i, j, h, w = random_boxes(drawn[None, :-1], *x.shape[1:])[0].int().tolist()
            framed = F.interpolate(x[None, :, i : i + h, j : j + w], x.shape[1:], mode="bilinear")
            framed = framed[0]
        else:
            dy, dx = (int(v * (2 * p + 1)) for v in drawn[:2].tolist())
            framed = F.pad(x, (p, p, p, p))[:, dy : dy + x.shape[1], dx : dx + x.shape[2]]
        return framed.flip(2) if drawn[-1] < 0.5 else framed

    def loss_of(x):
        return F.cross_entropy(model(x[None]), label[None])

    delta = (2 * draw("start", image[None])[0] - 1) * config.epsilon
    for step in range(config.steps):
        total = torch.zeros_like(delta)
        for e in range(config.transforms):
            delta = delta.detach().requires_grad_()
            u = crop((image + delta).clamp(0, 1), draw(f"{step}/{e}", config.numbers)[0])
            offset = (2 * draw(f"{step}/{e}/inner", image[None])[0] - 1) * config.adversary
            a = (u.detach() + offset).clamp(0, 1)
            for _ in range(config.inner_steps if inside == "pgd" else 0):
                a = a.detach().requires_grad_()
                g = torch.autograd.grad(loss_of(a), a)[0]
                moved = a.detach() + config.inner_step_size * g.sign() - u.detach()
                a = (u.detach() + moved.clamp(-config.adversary, config.adversary)).clamp(0, 1)
            total += torch.autograd.grad(loss_of(u + (a - u).detach()), delta)[0]
        delta = delta.detach() - config.step_size * total.sign()
        delta = delta.clamp(-config.epsilon, config.epsilon)
    return (delta * 255).round() / 255


@pytest.mark.parametrize(("inside", "padding"), [("pgd", 4), ("noise", 4), ("pgd", None)])
def test_the_defence_is_that_of_a_plain_loop(exact, inside, padding):
    """Straight-through EOT gradients, on images with black and white pixels; padded crops and
    resized ones."""
    config = dataclasses.replace(CONFIG, crop_padding=padding)
    model, frozen = exact
    torch.manual_seed(1)
    images = (torch.rand(4, 3, 16, 16) * 1.4 - 0.2).clamp(0, 1).double()
    labels = torch.arange(4)
    found = rem.defend(images, labels, frozen, config, ExactDraws(4), INNER[inside])
    for i in range(4):
        expected = plain_defence(model, images[i], labels[i], config, ExactDraws(4, i), inside)
        torch.testing.assert_close(found[i], expected, atol=1e-6, rtol=0)
    levels = found * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert levels.abs().max() <= 8.0001


MISTAKES = ["no decay of the rate", "trained on what is not attacked", "no momentum",
            "no weight decay", "one order for all epochs", "last batch kept",
            "trained in eval mode", "no transform in training",
            "attacked before the transform", "adversary without a step",
            "last pass with the other adversary", "last pass with the first surrogate",
            "trained on clean images"]


def plain_loop(clean: ImageSet, config: rem.Config, run, inside: str, mistake: str = ""
               ) -> np.ndarray:
    """Section 2's (and 10's) outer loop, around the defence that the tests above check."""
    x, y = doubles(clean)
    with run.initialisation("surrogate"):
        network = resnet18(clean.num_classes, config.width).double()
    first = FrozenSurrogate(Normalised(network, (0.5,) * 3, (1.0,) * 3), run.device)
    parameters = list(network.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]

    def numbers(name: str, step: int, rows: int):
        def draw(of: str, like):
            return rem.uniform(rows, like, generator(0, f"rem/{name}{of}", step))

        return draw

    def seen(images):
        return network.eval()(images - 0.5)

    def attacked(u, labels, noise):
        a = (u + (2 * noise - 1) * config.adversary).clamp(0, 1)
        for _ in range(0 if mistake == "adversary without a step" else config.inner_steps):
            a.requires_grad_()
            [g] = torch.autograd.grad(F.cross_entropy(seen(a), labels), a)
            moved = (a.detach() + config.inner_step_size * g.sign() - u)
            a = (u + moved.clamp(-config.adversary, config.adversary)).clamp(0, 1)
        return a

    number, epoch = 0, 0
    while number < config.train_steps:
        order = torch.randperm(len(x), generator=generator(
            0, "rem/batches", 0 if mistake == "one order for all epochs" else epoch))
        for rows in order.split(config.batch_size):
            short = len(rows) < config.batch_size and mistake != "last batch kept"
            if short or number == config.train_steps:
                break
            draw, labels = numbers("", number, len(rows)), y[rows]
            frozen = FrozenSurrogate(Normalised(network, (0.5,) * 3, (1.0,) * 3), run.device)
            delta = rem.defend(x[rows], labels, frozen, config, draw, INNER[inside])
            protected = x[rows] if mistake == "trained on clean images" else x[rows] + delta
            drawn, noise = draw("train", config.numbers), draw("train/start", x)
            u = protected.clamp(0, 1)
            if mistake == "attacked before the transform":
                u = rem.transformed(attacked(u, labels, noise), drawn, config)
            elif mistake != "no transform in training":
                u = rem.transformed(u, drawn, config)
            if mistake not in ("trained on what is not attacked", "attacked before the transform"):
                u = attacked(u, labels, noise)
            network.train(mistake != "trained in eval mode")
            gradients = torch.autograd.grad(F.cross_entropy(network(u - 0.5), labels), parameters)
            rate = config.learning_rate * 0.1 ** (number // config.decay_every)
            if mistake == "no decay of the rate":
                rate = config.learning_rate
            momentum = 0.0 if mistake == "no momentum" else config.momentum
            decay = 0.0 if mistake == "no weight decay" else config.weight_decay
            with torch.no_grad():
                for p, g, v in zip(parameters, gradients, velocity, strict=True):
                    v.mul_(momentum).add_(g + decay * p)
                    p.sub_(rate * v)
            number += 1
        epoch += 1
    frozen = FrozenSurrogate(Normalised(network, (0.5,) * 3, (1.0,) * 3), run.device)
    if mistake == "last pass with the first surrogate":
        frozen = first
    if mistake == "last pass with the other adversary":
        inside = "pgd" if inside == "noise" else "noise"

    def block(of: str, like):
        return numbers("final/", 0, BLOCK)(of, like)[: len(x)]

    delta = rem.defend(x, y, frozen, config, block, INNER[inside])
    return to_pixels(x + delta)


@pytest.mark.parametrize("attack", [rem, sem], ids=["rem", "sem"])
def test_the_outer_loop_is_that_of_the_notes(tmp_path, monkeypatch, attack):
    """The same bytes, in double precision on both sides; and others with each mistake, of which SEM
    can make one of its own."""
    to_double(monkeypatch, rem, makes=["on_device", "uniform"])
    to_double(monkeypatch, minmin, makes=["classifier"])
    random = np.random.default_rng(0)
    clean = as_set(random.integers(0, 256, (22, 8, 8, 3), dtype=np.uint8),
                   random.permutation(np.arange(22) % 3), classes=3)
    config = attack.Config(epsilon=24 / 255, step_size=10 / 255, steps=2, transforms=2,
                           inner_steps=1, inner_step_size=3 / 255, adversary=8 / 255,
                           train_steps=5, batch_size=8, learning_rate=0.1, decay_every=2,
                           weight_decay=0.05, crop_padding=2, width=4)
    inside = "pgd" if attack is rem else "noise"
    ours = poisoned_by(attack, clean, config, tmp_path / "ours")
    with new_run(tmp_path / "plain") as run:
        np.testing.assert_array_equal(ours, plain_loop(clean, config, run, inside))
        for mistake in MISTAKES if attack is rem else ["last pass with the other adversary"]:
            assert (plain_loop(clean, config, run, inside, mistake) != ours).any(), mistake


def test_grouped_transforms_change_speed_alone(exact, monkeypatch):
    _, frozen = exact
    torch.manual_seed(1)
    images, labels = torch.rand(4, 3, 16, 16).double(), torch.arange(4)
    together = rem.defend(images, labels, frozen, CONFIG, ExactDraws(4), rem.attack)
    monkeypatch.setattr(rem, "craft_rows", lambda shape, kind: 4)
    one_by_one = rem.defend(images, labels, frozen, CONFIG, ExactDraws(4), rem.attack)
    torch.testing.assert_close(together, one_by_one, atol=1e-9, rtol=0)


def test_the_final_pass_crafts_large_images_few_at_a_time(exact, monkeypatch):
    """A block of 256 images of 224x224 at once would need tens of gigabytes. Row i stays row i."""
    _, frozen = exact
    torch.manual_seed(1)
    images, labels = torch.rand(7, 3, 16, 16).double(), torch.arange(7)
    sizes, defend = [], rem.defend

    def noting(images, *rest):
        sizes.append(len(images))
        return defend(images, *rest)

    monkeypatch.setattr(rem, "defend", noting)
    whole = rem.defend_in_parts(images, labels, frozen, CONFIG, ExactDraws(7), rem.attack)
    monkeypatch.setattr(rem, "WHOLE_BLOCK", 16 * 16 - 1)
    monkeypatch.setattr(rem, "craft_rows", lambda shape, kind: 3)
    parts = rem.defend_in_parts(images, labels, frozen, CONFIG, ExactDraws(7), rem.attack)
    assert sizes == [7, 3, 3, 1]
    torch.testing.assert_close(whole, parts, atol=1e-9, rtol=0)


def test_boxes_are_those_of_torchvision():
    """Whole pixels inside the image; areas, ratios and places spread as RandomResizedCrop's."""
    height, width, count = 64, 64, 4000
    generator = torch.Generator().manual_seed(0)
    boxes = random_boxes(torch.rand(count, 2 * TRIES + 2, generator=generator), height, width)
    assert torch.equal(boxes, boxes.round())
    top, left, h, w = boxes.T
    assert min(top.min(), left.min()) == 0
    assert (top + h).max() == height
    assert (left + w).max() == width
    assert min(h.min(), w.min()) > 10

    torch.manual_seed(0)
    theirs = torch.tensor([RandomResizedCrop.get_params(
        torch.empty(3, height, width), (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)]).float()
    for of in (lambda b: b[:, 2] * b[:, 3] / (height * width), lambda b: (b[:, 2] / b[:, 3]).log(),
               lambda b: b[:, 0] / height, lambda b: b[:, 1] / width):
        steps = torch.linspace(0.05, 0.95, 10)
        torch.testing.assert_close(of(boxes).quantile(steps), of(theirs).quantile(steps),
                                   atol=0.03, rtol=0)


def test_a_box_that_never_fits_is_the_whole_image():
    drawn = torch.full((1, 2 * TRIES + 2), 0.999)       # nearly all the area, 4 : 3
    assert random_boxes(drawn, 32, 32).tolist() == [[0, 0, 32, 32]]
    drawn[0, [3, TRIES + 3]] = torch.tensor([0.4566, 0.5])      # the fourth try: half of it, square
    assert random_boxes(drawn, 32, 32).tolist() == [[9, 9, 23, 23]]


def test_crop_and_flip_equals_slices():
    """And its gradient is autograd's through pad, slice and flip."""
    torch.manual_seed(0)
    images = torch.rand(6, 3, 10, 12, requires_grad=True)
    offsets = torch.randint(0, 9, (6, 2))
    mirrored = torch.tensor([True, False] * 3)
    expected = []
    for image, (dy, dx), mirror in zip(images, offsets.tolist(), mirrored, strict=True):
        part = F.pad(image, (4, 4, 4, 4))[:, dy : dy + 10, dx : dx + 12]
        expected.append(part.flip(2) if mirror else part)
    expected = torch.stack(expected)
    found = crop_and_flip(images, offsets, mirrored, 4)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    weights = torch.rand_like(expected)
    gradients = [torch.autograd.grad((x * weights).sum(), images, retain_graph=True)[0]
                 for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_the_noise_lowers_the_attacked_loss(surrogate, digits32):
    """What REM is for: through transforms that it has not seen, attacked, its images are recognised
    more easily."""
    _, frozen = surrogate
    torch.manual_seed(2)
    images, labels = digits32
    config = dataclasses.replace(CONFIG, steps=8, epsilon=32 / 255, step_size=6.4 / 255)
    delta = rem.defend(images, labels, frozen, config, Draws(32), rem.attack)
    draw, losses = Draws(32), []
    for noise in (torch.zeros_like(images), delta):
        total = 0.0
        for i in range(8):
            x = rem.transformed((images + noise).clamp(0, 1), draw(f"unseen{i}", 3), config)
            attacked = rem.attack(x, labels, frozen, config, draw(f"unseen{i}/inner", x))
            total += F.cross_entropy(frozen(attacked), labels).item()
        losses.append(total)
    assert losses[1] < 0.9 * losses[0]


def test_the_adversary_raises_the_loss_within_its_radius(surrogate, digits32):
    _, frozen = surrogate
    torch.manual_seed(3)
    images, labels = digits32
    attacked = rem.attack(images, labels, frozen, CONFIG, torch.rand(images.shape))
    assert (attacked - images).abs().max() <= CONFIG.adversary + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert F.cross_entropy(frozen(attacked), labels) > F.cross_entropy(frozen(images), labels)


@pytest.mark.parametrize("name", ["rem", "sem"])
def test_every_row_has_noise_in_whole_levels(name, few_path, few):
    """Also those that fall out of the last minibatch: 320 = 5 x 60 + 20."""
    out = succeed(poison_main, f"method={name}", f"data={few_path}", f"{name}.train_steps=6",
                  f"{name}.steps=2", f"{name}.transforms=1", f"{name}.inner_steps=1",
                  f"{name}.width=4", f"{name}.batch_size=60")
    delta = np.load(out / "images.npy").astype(int) - few.images
    assert np.abs(delta).max() == 8
    assert (delta != 0).any((1, 2, 3)).all()
    steps = [line for line in (out / "log.jsonl").read_text().splitlines() if '"loop"' in line]
    assert any("robust_accuracy" in line for line in steps)


def test_presets_say_what_they_are(few_path):
    out = succeed(poison_main, f"{CONFIGS}/poisons/rem.yaml", "preset=lite", f"data={few_path}",
                  "--smoke", "--limit", 64)
    [step] = ImageSet.load(out).meta["lineage"]
    assert step["preset"] == "rem_lite"
    assert sem.Config() == sem.Config(**dataclasses.asdict(rem.Config()))


def test_a_set_smaller_than_a_batch_is_named(few_path):
    outcome = run_command(poison_main, "method=rem", f"data={few_path}", "rem.batch_size=500")
    assert outcome.status == 1
    assert "the set has 320 rows, too few for a batch of 500" in outcome.stderr
