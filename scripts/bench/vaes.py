"""D-VAE: training steps and purification."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.graphs import adam, set_rate
from models.dvae import DVAE, InstanceNormReLU
from purifiers import dvae
from scripts.bench.clock import Bench, Plain, Row
from scripts.bench.scratch import random_batch, random_set


def plain_dvae(device: torch.device, width: int, batch: int, kld_target: float
               ) -> Callable[[], None]:
    """The same D-VAE as the textbook writes it: NCHW, fp32, eager, torch's own instance norm."""
    model = DVAE(width=width)
    for decoder in (model.decoder, model.perturbation_decoder):
        for i, layer in enumerate(decoder):
            if isinstance(layer, InstanceNormReLU):
                channels = decoder[i - 1].out_channels
                decoder[i] = nn.Sequential(nn.InstanceNorm2d(channels), nn.ReLU())
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    x, y = random_batch(batch, device)
    x = x.contiguous()

    def step():
        noise = torch.randn(len(x), *model.latent_shape, device=x.device)
        mu, logvar = model.encode(x)
        z = model.post_conv(mu + torch.exp(logvar / 2) * noise)
        x_hat, p_hat = model.reconstruct(z), model.perturbation(z, y)
        kld = (-0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1)).mean()
        loss = (F.mse_loss(x_hat, x) + F.mse_loss((x_hat + p_hat).clamp(0, 1), x)
                + 0.01 * kld.clamp(min=kld_target) + p_hat.square().mean().clamp(min=0.002))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def vae(bench: Bench) -> Iterator[Row]:
    """D-VAE training, and purification against it."""
    width = 8 if bench.smoke else 64
    train = dvae.TrainConfig(width=width)
    x, y = bench.images(train.batch_size)
    model = bench.device.place(DVAE(width=width))
    optimizer = adam(model, bench.device, lr=train.learning_rate)
    set_rate(optimizer, train.learning_rate, bench.device)
    step = dvae.training_step(model, optimizer, dvae.Stage(3.0, "both"), train, bench.run)
    plain = Plain(bench, plain_dvae, width, train.batch_size, 3.0)
    generator = bench.run.stream("bench", 0, bench.device.torch)
    mine, theirs = bench.seconds(lambda: step(x, y, generator, train.p_hat_start), plain,
                                 steps=bench.steps)
    plain.close()
    yield Row(f"D-VAE width {width} training, batch 128", train.batch_size / mine, theirs / mine,
              plain.flop / mine / bench.peak, bench.memory(), "ratio to the plain loop")

    rows = 256 if bench.smoke else 1024
    data = random_set(rows)
    floats = torch.from_numpy(np.array(data.images)).float().div(255).to(bench.device.torch)
    model.eval()
    for output in ("subtract", "reconstruct", "both"):
        purify = dvae.purify_rows(data, [(model, 1, output)], "sample", "round", bench.run)
        again, seconds = bench.seconds(lambda: step(x, y, generator, 0),
                                       functools.partial(exactly, bench, purify, floats),
                                       steps=bench.steps)
        yield Row(f"D-VAE purification, {output}", rows / seconds,
                  rows / seconds / (train.batch_size / again), None, bench.memory(),
                  "ratio to the training rate")


def exactly(bench: Bench, purify: Callable, floats: torch.Tensor) -> None:
    """What map_rows does with a slice of rows."""
    with bench.device.exact():
        purify(floats, slice(0, len(floats)))
