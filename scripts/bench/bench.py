"""How fast the hot paths are, beside a plain loop and this machine's own peak, in one run.

    python scripts/bench.py [NAME ...] [--rounds 5] [--json bench.json] [--smoke] [key=value ...]

Device settings are the commands' (device=, precision=, compile=, threads=). `ratio` is ours over
a plain eager fp32 NCHW loop of the same model, which runs in a process of its own (as it would
without this project: torch's and the allocator's defaults), in turn with ours (on CUDA 20 steps at
a time). `of peak` is the share of the machine's own largest matrix product (fp32, or bf16 where the
run is bf16). Run it with nothing else running.
"""

import argparse
import contextlib
import copy
import functools
import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import core.run
from core import config, files, imageset, training
from core.batches import Augmentation, Batches
from core.command import command
from core.device import Device, DeviceSettings, resolve
from core.distance import build_lpips
from core.errors import UserError
from core.identity import Job
from core.imageset import ImageSet
from core.run import Run
from models.dvae import DVAE, InstanceNormReLU
from models.resnet import resnet18
from models.unet import UNet
from poisons import ar, cuda, lsp, ops, pgd, rem
from purifiers import dvae, jcdp, prior, walk
from purifiers.diffusion import Schedule


@dataclass
class Row:
    """One line of the table. Rates are images a second."""

    name: str
    rate: float
    ratio: float | None = None          # to the plain loop, or as `note` says
    share: float | None = None          # of the matrix-product peak
    memory_gb: float | None = None
    note: str = ""


class Bench:
    """Settings of one call, and the clock."""

    def __init__(self, run: Run, rounds: int, smoke: bool) -> None:
        self.run, self.rounds, self.smoke = run, rounds, smoke
        self.device = run.device
        self.cuda = self.device.kind == "cuda"
        self.steps = 20 if self.cuda and not smoke else 1       # between two waits for the device
        self.peak = self.matrix_peak()

    def seconds(self, *functions: Callable[[], object], steps: int = 1) -> list[float]:
        """Median seconds of a call of each function: `steps` calls, the functions in turn, for
        `rounds` rounds after a warm-up."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device.torch)
        times: list[list[float]] = [[] for _ in functions]
        for round_ in range(self.rounds + 1):
            for function, found in zip(functions, times, strict=True):
                self.wait()
                started = time.perf_counter()
                repeat(function, steps)
                self.wait()
                if round_:
                    found.append((time.perf_counter() - started) / steps)
        return [statistics.median(found) for found in times]

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device.torch)

    def matrix_peak(self) -> float:
        """FLOP/s of the fastest square matrix product here, in the precision of the run."""
        dtype = torch.bfloat16 if self.device.precision == "bf16" else torch.float32
        best, sizes = 0.0, (1024, 2048, 4096, 8192, 16384) if self.cuda else (1024, 2048, 4096)
        for size in (256,) if self.smoke else sizes:
            a, b = (torch.randn(size, size, device=self.device.torch).to(dtype) for _ in "ab")
            torch.mm(a, b)
            for _ in range(5):
                self.wait()
                started = time.perf_counter()
                repeat(lambda a=a, b=b: torch.mm(a, b), self.steps)
                self.wait()
                best = max(best, self.steps * 2 * size**3 / (time.perf_counter() - started))
        return best

    def memory(self) -> float:
        """Peak memory, GB: of the GPU since `seconds` began, or of the process so far."""
        if self.cuda:
            return torch.cuda.max_memory_allocated(self.device.torch) / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    def images(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A channels-last batch and its labels."""
        return random_batch(batch, self.device.torch)


def repeat(function: Callable[[], object], steps: int) -> None:
    if isinstance(function, Plain):     # it waits for its device: once, not after every step
        return function.take(steps)
    for _ in range(steps):
        function()


def random_batch(batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, 32, 32) in [0, 1], channels-last in memory, and labels."""
    x = torch.rand(batch, 32, 32, 3, device=device).permute(0, 3, 1, 2)
    return x, torch.arange(batch, device=device) % 10


class Plain:
    """A textbook loop in a process of its own; `take` lets it take so many steps."""

    def __init__(self, bench: Bench, loop: Callable, *arguments) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve_plain, daemon=True,
            args=(theirs, bench.device.name, bench.device.threads, loop, arguments))
        self.process.start()
        theirs.close()                      # so that its end is the end of the pipe
        self.flop = self.receive()

    def receive(self) -> float | None:
        try:
            return self.pipe.recv()
        except EOFError:
            raise UserError("the plain loop died; it says above why") from None

    def take(self, steps: int) -> None:
        self.pipe.send(steps)
        self.receive()

    def close(self) -> None:
        self.pipe.send(0)
        self.process.join()


def serve_plain(pipe, device: str, threads: int, loop: Callable, arguments: tuple) -> None:
    torch.set_num_threads(threads)
    step = loop(torch.device(device), *arguments)
    pipe.send(flop(step))
    while steps := pipe.recv():
        repeat(step, steps)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        pipe.send(None)


def flop(function: Callable[[], object]) -> float:
    """Multiply-adds of convolutions and matrix products, times two, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


# --- classifiers -----------------------------------------------------------------------------


def classifier_step(model, forward, bench: Bench, x, y, protocol: training.Protocol):
    """The arithmetic of one training step of core.training, on a batch that is there already."""
    optimizer = training.make_optimizer(model, protocol)

    def step():
        with bench.device.autocast():
            logits = forward(x)
        loss = F.cross_entropy(logits.float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), protocol.clip_norm)
        optimizer.step()

    return step


def plain_classifier(device: torch.device, width: int, batch: int):
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


def resnet(bench: Bench):
    """ResNet-18 training steps."""
    batches = (128, 512) if bench.cuda else (128,)
    for width, batch in itertools.product((8,) if bench.smoke else (64, 16), batches):
        x, y = bench.images(batch)
        model = bench.device.place(resnet18(width=width))
        forward = bench.device.maybe_compile(model)
        ours = classifier_step(model, forward, bench, x, y, training.Protocol())
        plain = Plain(bench, plain_classifier, width, batch)
        mine, theirs = bench.seconds(ours, plain, steps=bench.steps)
        plain.close()
        yield Row(f"ResNet-18 width {width} training, batch {batch}", batch / mine, theirs / mine,
                  plain.flop / mine / bench.peak, bench.memory(), "ratio to the plain loop")


def evaluate(bench: Bench):
    """core.training's whole loop against its bare step."""
    width = 8 if bench.smoke else 16
    rows = 512 if bench.smoke else 128 * 24
    protocol = training.Protocol(epochs=1, test_every=0)
    data = random_set(rows)
    x, y = bench.images(128)
    model = bench.device.place(resnet18(width=width))
    step = classifier_step(model, bench.device.maybe_compile(model), bench, x, y, protocol)
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


# --- attacks ---------------------------------------------------------------------------------


def plain_pgd(device: torch.device, width: int, batch: int):
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


def pgd_step(bench: Bench):
    """EM's PGD steps over a frozen surrogate."""
    batches = (128, 1024) if bench.cuda else (128,)
    for width, batch in itertools.product((8,) if bench.smoke else (64, 16), batches):
        x, y = bench.images(batch)
        model = bench.device.place(resnet18(width=width))
        frozen = pgd.FrozenSurrogate(model, bench.device)
        gradient, delta = frozen.gradient(y), torch.zeros_like(x)
        work = 2 * flop(lambda frozen=frozen, x=x: frozen(x))       # backward to the input: as much

        def ours(x=x, delta=delta, gradient=gradient):
            pgd.pgd(x, delta, gradient, epsilon=8 / 255, step_size=0.8 / 255, steps=1)

        plain = Plain(bench, plain_pgd, width, batch)
        mine, theirs = bench.seconds(ours, plain, steps=bench.steps)
        plain.close()
        yield Row(f"PGD step of EM, width {width}, batch {batch}", batch / mine, theirs / mine,
                  work / mine / bench.peak, bench.memory(), "ratio to the plain step")


def rem_step(bench: Bench):
    """One step of REM's defence beside as many PGD steps as it has passes, and its transform."""
    width, batch = (8, 32) if bench.smoke else (64, 128)
    config = rem.Config(steps=1) if not bench.smoke else rem.Config(steps=1, transforms=2,
                                                                    inner_steps=2)
    x, y = bench.images(batch)
    frozen = pgd.FrozenSurrogate(bench.device.place(resnet18(width=width)), bench.device)
    gradient, passes = frozen.gradient(y), config.transforms * (config.inner_steps + 1)
    draw = rem.batch_draws(bench.run, 0, batch)
    drawn = draw("0", config.numbers)

    def step():
        pgd.pgd(x, torch.zeros_like(x), gradient, epsilon=8 / 255, step_size=1.6 / 255, steps=1)

    def defend():
        rem.defend(x, y, frozen, config, draw)

    def transform():
        rem.transformed(x, drawn, config)

    one, whole, crop = bench.seconds(step, defend, transform)
    yield Row(f"REM defence step of {passes} passes, width {width}, batch {batch}", batch / whole,
              passes * one / whole, note="ratio: its passes as PGD steps, over its own time")
    yield Row(f"crop and flip of {batch} images", batch / crop, one / crop,
              note=f"{crop / one:.1%} of a PGD step")


# --- D-VAE -----------------------------------------------------------------------------------


def plain_dvae(device: torch.device, width: int, batch: int, kld_target: float):
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


def vae(bench: Bench):
    """D-VAE training, and purification against it."""
    width = 8 if bench.smoke else 64
    train = dvae.TrainConfig(width=width)
    x, y = bench.images(train.batch_size)
    model = bench.device.place(DVAE(width=width))
    optimizer = torch.optim.Adam(model.parameters(), lr=train.learning_rate)
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


def as_walked(bench: Bench, purify: Callable, floats: torch.Tensor) -> None:
    """The same for walk.walk, which keeps the run's precision where that is tf32."""
    with contextlib.nullcontext() if bench.device.precision == "tf32" else bench.device.exact():
        purify(floats, slice(0, len(floats)))


# --- diffusion -------------------------------------------------------------------------------


def plain_unet(device: torch.device, width: int, batch: int, train: bool):
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


def unet(bench: Bench):
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
    one_step = prior.training_step(model, prior.make_optimizer(model, config, bench.run),
                                   config, bench.run)
    images, _ = bench.images(size)

    def step():
        one_step(images, next(numbers))
        prior.update_ema(ema, model, 1e-4)

    plain = Plain(bench, plain_unet, width, size, True)
    mine, theirs = bench.seconds(step, plain, steps=bench.steps)
    plain.close()
    yield Row(f"DDPM width {width} training, batch {size}", size / mine, theirs / mine,
              plain.flop / mine / bench.peak, bench.memory(), "ratio to the plain loop")


def levers(bench: Bench):
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


# --- data ------------------------------------------------------------------------------------


def free(bench: Bench):
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


def loader(bench: Bench):
    """Crop-and-flip batches, beside what the width-64 ResNet-18 eats."""
    rows = 2560 if bench.smoke else 25_600
    batches = Batches(random_set(rows), 128, bench.run, "bench",
                      augmentation=Augmentation(4, True))
    x, y = bench.images(128)
    model = bench.device.place(resnet18(width=8 if bench.smoke else 64))
    step = classifier_step(model, bench.device.maybe_compile(model), bench, x, y,
                           training.Protocol())
    epochs = itertools.count()

    def one_epoch():
        for _ in batches.epoch(next(epochs)):
            pass

    seconds, eating = bench.seconds(one_epoch, step, steps=bench.steps)
    yield Row("augmented batches of 128", rows / seconds, rows / seconds / (128 / eating),
              note="ratio to what the ResNet eats")


def random_set(rows: int) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 32, 32, 3), np.uint8)
    labels = np.arange(rows, dtype=np.int64) % 10
    return imageset.from_arrays(pixels, labels, name="random", root={}, test=None,
                                classes=[str(i) for i in range(10)])


@contextlib.contextmanager
def scratch_run(device: Device, method: str = "bench") -> Iterator[Run]:
    """A run in a temporary folder that is never finished."""
    job = Job("bench", "bench", method, 1, {}, 0, {})
    with (tempfile.TemporaryDirectory(prefix="bench-") as folder,
          Run(job, out=Path(folder, "run"), device=device.as_settings()) as run):
        yield run


BENCHES = {"resnet": resnet, "evaluate": evaluate, "pgd": pgd_step, "dvae": vae, "unet": unet,
           "rem": rem_step, "free": free, "batches": loader, "levers": levers}


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python scripts/bench.py",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME | key=value",
                        help=f"some of {', '.join(BENCHES)}; all but levers by default")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds after the warm-up")
    parser.add_argument("--json", type=config.as_path, help="also write the numbers here")
    parser.add_argument("--smoke", action="store_true", help="tiny models, one round")
    arguments = parser.parse_intermixed_args(argv)
    names = [word for word in arguments.names if "=" not in word]
    names = names or [name for name in BENCHES if name != "levers"]
    for name in names:
        if name not in BENCHES:
            parser.error(f"unknown bench '{name}'{config.suggest(name, list(BENCHES))}")
    if arguments.json:
        arguments.json = files.replaceable(arguments.json, b"{")
    overrides = config.read([], [word for word in arguments.names if config.is_setting(word)])
    device = resolve(config.build(DeviceSettings, overrides, ""))

    core.run.SAVE_SECONDS = float("inf")
    with scratch_run(device) as run:
        bench = Bench(run, 1 if arguments.smoke else arguments.rounds, arguments.smoke)
        about = device.describe()
        print(f"{about['hardware']}, {device.name}, {device.precision}, compile {device.compile}, "
              f"{device.threads} threads, torch {torch.__version__}; largest matrix product "
              f"{bench.peak / 1e9:,.0f} GFLOP/s\n")
        print("| what | images/s | ratio | of peak | peak GB | |\n|---|---|---|---|---|---|")
        rows = []
        for name in names:
            for row in BENCHES[name](bench):
                rows.append(row)
                rate = f"{row.rate:,.0f}" if row.rate >= 100 else f"{row.rate:.1f}"
                print(f"| {row.name} | {rate} | {cell(row.ratio, '.2f')} | "
                      f"{cell(row.share, '.0%')} | {cell(row.memory_gb, '.1f')} | {row.note} |",
                      flush=True)
    if arguments.json:
        files.write_json(arguments.json, {
            **about, "torch": torch.__version__, "peak_flops": bench.peak,
            "rows": [vars(row) for row in rows]})


def cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
