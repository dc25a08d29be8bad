"""Attacks: signed gradient steps, REM's defence step, and the attacks in closed form."""

import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from core.pgd import pgd
from models.resnet import resnet18
from poisons import ar, cuda, lsp, ops, rem
from poisons.frozen import FrozenSurrogate
from scripts.bench.clock import Bench, Plain, Row, flop
from scripts.bench.scratch import random_batch, random_set, scratch_run


def plain_pgd(device: torch.device, width: int, batch: int) -> Callable[[], None]:
    """What a textbook step does: eval mode, NCHW, fp32, a full backward."""
    model = resnet18(width=width).to(device).eval()
    x, y = random_batch(batch, device)
    x = x.contiguous()
    delta = torch.zeros_like(x)

    def step():
        nonlocal delta
        noised = (x + delta).clamp(0, 1).requires_grad_()
        model.zero_grad()
        F.cross_entropy(model(noised), y).backward()
        delta = (noised.detach() - 0.8 / 255 * noised.grad.sign() - x).clamp(-8 / 255, 8 / 255)

    return step


def pgd_step(bench: Bench) -> Iterator[Row]:
    """EM's PGD steps over a frozen surrogate."""
    batches = (128, 1024) if bench.cuda else (128,)
    for width, batch in itertools.product((8,) if bench.smoke else (64, 16), batches):
        x, y = bench.images(batch)
        model = bench.device.place(resnet18(width=width))
        frozen = FrozenSurrogate(model, bench.device)
        gradient, delta = frozen.gradient(y), torch.zeros_like(x)
        work = 2 * flop(lambda frozen=frozen, x=x: frozen(x))       # backward to the input: as much

        def ours(x=x, delta=delta, gradient=gradient):
            pgd(x, delta, gradient, epsilon=8 / 255, step_size=0.8 / 255, steps=1)

        plain = Plain(bench, plain_pgd, width, batch)
        mine, theirs = bench.seconds(ours, plain, steps=bench.steps)
        plain.close()
        yield Row(f"PGD step of EM, width {width}, batch {batch}", batch / mine, theirs / mine,
                  work / mine / bench.peak, bench.memory(), "ratio to the plain step")


def rem_step(bench: Bench) -> Iterator[Row]:
    """One step of REM's defence beside as many PGD steps as it has passes, and its transform."""
    width, batch = (8, 32) if bench.smoke else (64, 128)
    config = rem.Config(steps=1) if not bench.smoke else rem.Config(steps=1, transforms=2,
                                                                    inner_steps=2)
    x, y = bench.images(batch)
    frozen = FrozenSurrogate(bench.device.place(resnet18(width=width)), bench.device)
    gradient, passes = frozen.gradient(y), config.transforms * (config.inner_steps + 1)
    draw = rem.batch_draws(bench.run, 0, batch)
    drawn = draw("0", config.numbers)

    def step():
        pgd(x, torch.zeros_like(x), gradient, epsilon=8 / 255, step_size=1.6 / 255, steps=1)

    def defend():
        rem.defend(x, y, frozen, config, draw, rem.attack)

    def transform():
        rem.transformed(x, drawn, config)

    one, whole, crop = bench.seconds(step, defend, transform)
    yield Row(f"REM defence step of {passes} passes, width {width}, batch {batch}", batch / whole,
              passes * one / whole, note="ratio: its passes as PGD steps, over its own time")
    yield Row(f"crop and flip of {batch} images", batch / crop, one / crop,
              note=f"{crop / one:.1%} of a PGD step")


def free(bench: Bench) -> Iterator[Row]:
    """The attacks in closed form on 50,000 images, from the clean set to the written file."""
    rows = 2000 if bench.smoke else 50_000
    data = random_set(rows)
    for module in (lsp, ar, ops, cuda):
        name = module.__name__.rsplit(".", 1)[1]

        def make(module=module, name=name):
            with scratch_run(bench.device, name) as run:
                module.poison(data, module.Config(), run)

        (seconds,) = bench.seconds(make)
        yield Row(f"{name.upper()}, {rows:,} images", rows / seconds, note=f"{seconds:.1f} s")
