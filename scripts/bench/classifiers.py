"""ResNet-18: training steps, and core.training's whole loop around them."""

import functools
import itertools
import statistics
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from core import training
from core.graphs import Recorded, set_rate
from learners import adversarial
from models.resnet import resnet18
from scripts.bench.clock import Bench, Plain, Row
from scripts.bench.scratch import random_batch, random_set, scratch_run


def classifier_step(model: nn.Module, bench: Bench, x: torch.Tensor, y: torch.Tensor,
                    protocol: training.Protocol, loss: training.Loss = training.cross_entropy
                    ) -> Callable[[], object]:
    """One training step of core.training, on a batch that is there already."""
    optimizer = training.make_optimizer(model, protocol, bench.device)
    set_rate(optimizer, protocol.learning_rate, bench.device)
    network = training.InPrecision(model, bench.device)
    step = functools.partial(training.training_step(
        model, optimizer, functools.partial(loss, network), protocol), step=0)
    step = Recorded(step, bench.device) if loss is training.cross_entropy else step
    return functools.partial(step, x, y)


def plain_classifier(device: torch.device, width: int, batch: int) -> Callable[[], None]:
    """What a textbook loop does: NCHW, fp32, eager."""
    model = resnet18(width=width).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    x, y = random_batch(batch, device)
    x = x.contiguous()

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return step


def resnet(bench: Bench) -> Iterator[Row]:
    """ResNet-18 training steps."""
    batches = (128, 512) if bench.cuda else (128,)
    for width, batch in itertools.product((8,) if bench.smoke else (64, 16), batches):
        x, y = bench.images(batch)
        model = bench.device.place(resnet18(width=width))
        ours = classifier_step(model, bench, x, y, training.Protocol())
        plain = Plain(bench, plain_classifier, width, batch)
        mine, theirs = bench.seconds(ours, plain, steps=bench.steps)
        plain.close()
        yield Row(f"ResNet-18 width {width} training, batch {batch}", batch / mine, theirs / mine,
                  plain.flop / mine / bench.peak, bench.memory(), "ratio to the plain loop")


def adversarial_step(bench: Bench) -> Iterator[Row]:
    """A step of adversarial training beside as many plain ones as it passes the network."""
    batch = 16 if bench.smoke else 128
    width = 8 if bench.smoke else 64 if bench.cuda else 16
    config, (x, y) = adversarial.Config(), bench.images(batch)
    model = bench.device.place(resnet18(width=width))
    noise = bench.run.stream("noise", 0, bench.device.torch)

    def attacked(network, images, labels, step):
        logits = network(adversarial.attack(network, images, labels, config, noise))
        return F.cross_entropy(logits, labels), logits

    plain, ours = (classifier_step(model, bench, x, y, config, loss)
                   for loss in (training.cross_entropy, attacked))
    theirs, mine = bench.seconds(plain, ours, steps=bench.steps)
    yield Row(f"adversarial training, width {width}, batch {batch}", batch / mine,
              (config.iterations + 1) * theirs / mine,
              note=f"ratio to {config.iterations + 1} plain steps")


def evaluate(bench: Bench) -> Iterator[Row]:
    """core.training's whole loop against its bare step."""
    width = 8 if bench.smoke else 16
    rows = 512 if bench.smoke else 128 * 24
    protocol = training.Protocol(epochs=1, test_every=0)
    data = random_set(rows)
    x, y = bench.images(128)
    model = bench.device.place(resnet18(width=width))
    step = classifier_step(model, bench, x, y, protocol)
    rates = []

    def whole():
        with scratch_run(bench.device) as run:
            _, result = training.train_classifier(resnet18(width=width), data, None, protocol, run)
        rates.append(result.images_per_second)

    def bare():
        for _ in range(rows // 128):
            step()

    _, bare_seconds = bench.seconds(whole, bare)
    rate = statistics.median(rates[1:])
    yield Row(f"evaluate.py, width {width}, batch 128", rate, rate * bare_seconds / rows,
              note="ratio to its bare training step")
