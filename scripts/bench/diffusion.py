"""The diffusion model: its network, JCDP's walks and DDPM's training steps."""

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from core.distance import build_lpips
from models.unet import UNet
from purifiers import jcdp, prior, walk
from purifiers.diffusion import Schedule
from scripts.bench.clock import Bench, Plain, Row


def plain_unet(device: torch.device, width: int, batch: int, train: bool) -> Callable[[], None]:
    """The network forward, or a training step of it, as a textbook would write them."""
    model = UNet(width).to(device).train(train)
    x = torch.randn(batch, 3, 32, 32, device=device)
    t = torch.randint(1000, (batch,), device=device)
    optimizer, ema = torch.optim.Adam(model.parameters(), lr=2e-4), copy.deepcopy(model)
    betas = torch.linspace(1e-4, 0.02, 1000, device=device)
    abar = (1 - betas).cumprod(0)

    def forward():
        with torch.no_grad():
            model(x, t)

    def step():
        noise, a = torch.randn_like(x), abar[torch.randint_like(t, 1000)][:, None, None, None]
        loss = F.mse_loss(model(a.sqrt() * x + (1 - a).sqrt() * noise, t), noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(ema.parameters(), model.parameters(), strict=True):
                kept.mul_(0.9999).add_(new, alpha=1e-4)

    return step if train else forward


def unet(bench: Bench) -> Iterator[Row]:
    """The UNet of DDPM and JCDP: forward, guidance, sub-sampled passes, a training step."""
    width = 32 if bench.smoke else 128
    batch = 8 if bench.smoke else 1024 if bench.cuda else 32
    config = prior.TrainConfig(width=width, batch_size=batch)
    model = prior.build_model(config, (32, 32), bench.run).eval().requires_grad_(False)
    dtype = torch.bfloat16 if bench.device.precision == "bf16" else torch.float32
    network = bench.device.maybe_compile(model.to(dtype))
    x, _ = bench.images(batch)
    t = torch.zeros(1, dtype=torch.long, device=bench.device.torch)

    @torch.no_grad()
    def forward(images: torch.Tensor, _: slice) -> None:
        network(images, t)

    forward = functools.partial(as_walked, bench, forward, x)
    plain = Plain(bench, plain_unet, width, batch, False)
    mine, theirs = bench.seconds(forward, plain)
    plain.close()
    yield Row(f"UNet width {width} forward, batch {batch}", batch / mine, theirs / mine,
              plain.flop / mine / bench.peak, bench.memory(), "ratio to the plain loop")

    floats = x.permute(0, 2, 3, 1)[: batch // 4]
    short = {"t_star": 4, "passes": 1, "threshold": 2, "lpips_net": "squeeze"}
    walks = {name: purifying(network, bench, options) for name, options in {
        "unguided": {**short, "mode": "none"}, "guided": short,
        "20": {"passes": 1, "mode": "none"},
        "5": {"passes": 1, "mode": "none", "sampler": "subsampled"}}.items()}
    free, guided = bench.seconds(*(functools.partial(as_walked, bench, walks[name], floats)
                                   for name in ("unguided", "guided")))
    yield Row(f"JCDP, {len(floats)} images, 4 steps", len(floats) / guided, guided / free,
              note="seconds guided / unguided")
    long, few = bench.seconds(*(functools.partial(as_walked, bench, walks[name], floats)
                                for name in ("20", "5")))
    yield Row("JCDP, a pass of 5 evaluations", len(floats) / few, few / long,
              note="seconds / those of 20")

    size = 8 if bench.smoke else 128 if bench.cuda else 16
    config = prior.TrainConfig(width=width, batch_size=size)
    model = prior.build_model(config, (32, 32), bench.run).train()
    ema, numbers = copy.deepcopy(model).requires_grad_(False), itertools.count()
    one_step = prior.training_step(model, prior.make_optimizer(model, config, bench.run), config,
                                   bench.run)
    images, _ = bench.images(size)

    def step():
        one_step(images, next(numbers))
        prior.update_ema(ema, model, 1e-4)

    plain = Plain(bench, plain_unet, width, size, True)
    mine, theirs = bench.seconds(step, plain, steps=bench.steps)
    plain.close()
    yield Row(f"DDPM width {width} training, batch {size}", size / mine, theirs / mine,
              plain.flop / mine / bench.peak, bench.memory(), "ratio to the plain loop")


def levers(bench: Bench) -> Iterator[Row]:
    """The UNet's forward with one lever after the other; ratio to the plain loop's images/s."""
    width, batch = (32, 8) if bench.smoke else (128, 1024 if bench.cuda else 32)
    others = (4,) if bench.smoke else (64, 256, 2048) if bench.cuda else (1, 8, 128)
    config = prior.TrainConfig(width=width, batch_size=batch)
    model = prior.build_model(config, (32, 32), bench.run).eval().requires_grad_(False)
    flat = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    half = copy.deepcopy(model).to(torch.bfloat16)
    compiled = [torch.compile(network, dynamic=False) for network in (model, half)]
    t = torch.zeros(1, dtype=torch.long, device=bench.device.torch)
    plain = Plain(bench, plain_unet, width, batch, False)
    for name, network, rows in (
        ("NCHW, freed memory kept", flat, batch), ("channels-last", model, batch),
        *((f"channels-last, batch {rows}", model, rows) for rows in others),
        ("compiled", compiled[0], batch), ("bf16", half, batch),
        ("bf16, compiled", compiled[1], batch),
    ):
        x, _ = bench.images(rows)
        x = x.contiguous() if network is flat else x
        forward = torch.no_grad()(functools.partial(network, x, t))
        mine, theirs = bench.seconds(forward, plain, steps=bench.steps)
        yield Row(f"UNet width {width}: {name}", rows / mine, rows / mine * theirs / batch,
                  plain.flop / batch * rows / mine / bench.peak, bench.memory())
    plain.close()


def purifying(network, bench: Bench, options: dict) -> Callable:
    """What JCDP with these keys gives to map_rows."""
    config, schedule = jcdp.Config(**options), Schedule()
    guide = None
    if config.mode != "none":
        guide = jcdp.make_guide(schedule, config, build_lpips(
            config.lpips_net, None, None, (32, 32), bench.device.torch))
    return walk.walker(network, schedule, guide, config, bench.run)


def as_walked(bench: Bench, purify: Callable, floats: torch.Tensor) -> None:
    """What walk.walk does with a slice of rows: it keeps the run's precision where that is tf32."""
    with contextlib.nullcontext() if bench.device.precision == "tf32" else bench.device.exact():
        purify(floats, slice(0, len(floats)))
