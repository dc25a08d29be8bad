"""What vae, dvae and ae share: a network trained on the poisoned set, then a sweep over its rows.

Source: Yu et al., ICML 2024, and code yuyi-sd/D-VAE: no clean data, no augmentation, a cosine to 0
stepped once an epoch, the gradient clipped.
"""

from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import nn

from core.batches import Batches
from core.checkpoint import save_weights
from core.errors import UserError
from core.graphs import Recorded, set_rate
from core.imageset import ImageSet
from core.loop import Loop
from core.run import Run
from core.streams import BLOCK
from core.training import cosine

PURIFY_BATCH = BLOCK            # rows a network pass, up to SMALL
SETTLED = 50            # steps after which 0.9^n, batch norm's share of its start, is below 1 %
SMALL = 96 * 96                 # pixels; of larger images as many rows fewer, so that memory holds


def initialised(make: Callable[[], nn.Module], run: Run, name: str) -> nn.Module:
    """A network with the weights that this run draws for `name`, on the run's device."""
    with run.initialisation(name):
        model = make()
    return run.device.place(model)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable, images: ImageSet,
          config, run: Run, name: str) -> nn.Module:
    """Walk `images` for `config.epochs`, at its batch size and learning rate; resumable.

    step(x, labels, generator, epoch) returns the losses to log. Writes `<name>.safetensors` into
    the run and returns the model in eval mode.
    """
    batches = Batches(images, config.batch_size, run, name)     # no augmentation
    loop = Loop(run, name, config.epochs, model=model, optimizer=optimizer)
    model.train()
    for epoch in loop:
        set_rate(optimizer, cosine(config.learning_rate, 0.0, epoch / config.epochs), run.device)
        for x, labels in loop.steps(batches):
            generator = run.stream(f"{name}/noise", loop.number, x.device)
            loop.add(len(x), **step(x, labels, generator, epoch))
        loop.end_epoch()
    save_weights(model, run, name)
    return model.eval()


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, losses: Callable,
                  total: Callable, noise_shape: tuple[int, int, int], clip_norm: float, run: Run,
                  phase: Callable[[int], Hashable] = lambda epoch: None,
                  ) -> Callable[..., dict[str, torch.Tensor]]:
    """A function (x, labels, generator, epoch) that takes one step and returns its losses.

    losses(model, x, labels, noise) are the terms by name, with noise N(0, 1) of `noise_shape` for
    each image; total(terms, phase) is what descends, with the `phase` that an epoch is in.
    """
    losses = run.device.maybe_compile(losses)
    recorded: dict[Hashable, Recorded] = {}

    def descend(x, labels, noise, now):
        with run.device.autocast():
            terms = losses(model, x, labels, noise)
        loss = total(terms, now)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        return {"loss": loss.detach(), **{key: term.detach() for key, term in terms.items()}}

    def step(x, labels, generator, epoch):
        noise = draw_noise(noise_shape, len(x), generator)
        now = phase(epoch)
        if now not in recorded:
            recorded.clear()
            recorded[now] = Recorded(partial(descend, now=now), run.device)
        return recorded[now](x, labels, noise)

    return step


def draw_noise(shape: tuple[int, int, int], count: int, generator: torch.Generator
               ) -> torch.Tensor:
    """N(0, 1) for `count` images of shape (C, h, w), laid out channels-last."""
    channels, height, width = shape
    noise = torch.randn(count, height, width, channels, generator=generator,
                        device=generator.device)
    return noise.permute(0, 3, 1, 2)


def in_batches(purify_batch: Callable[[torch.Tensor, slice], torch.Tensor]) -> Callable:
    """A function for map_rows from purify_batch(x, rows): (B, 3, H, W) in [0, 1] -> the same.

    Always float32: in bf16 a reconstruction would be off by a grey level. Raises UserError with the
    row if a result is not finite.
    """

    @torch.no_grad()
    def rows(floats: torch.Tensor, rows: slice) -> torch.Tensor:
        done, batch = [], rows_a_pass(floats.shape[1] * floats.shape[2])
        for offset in range(0, len(floats), batch):
            x = floats[offset : offset + batch].permute(0, 3, 1, 2)
            start = rows.start + offset
            part = slice(start, start + len(x))
            done.append(finite(purify_batch(x, part), part).permute(0, 2, 3, 1))
        return torch.cat(done)

    return rows


def finite(values: torch.Tensor, rows: slice) -> torch.Tensor:
    """What the network made of these rows, (B, 3, H, W), as it is, before clipping hides infinities
    and grey levels hide NaN. Raises UserError with the row if it is not finite.

    After a few steps the running averages of batch norm are still those of the start (after n steps
    0.9^n of them), and what an encoder then gives in eval mode grows from layer to layer: exp of a
    log-variance in the thousands overflows, though the loss, by the batches' own statistics, is
    small.
    """
    bad = torch.isfinite(values).flatten(1).all(1).logical_not().nonzero()
    if len(bad):
        raise UserError(f"row {rows.start + bad[0].item()}: the network gives pixels that are not "
                        "finite; it was trained for too few steps (averages of its batch norm "
                        f"settle in {SETTLED}), or at too high a rate: train longer, or lower it")
    return values


def rows_a_pass(pixels: int) -> int:
    """PURIFY_BATCH halved until it has no more pixels than that many small images: 32 of 224x224.
    """
    batch = PURIFY_BATCH
    while batch > 1 and batch * pixels > PURIFY_BATCH * SMALL:
        batch //= 2
    return batch
