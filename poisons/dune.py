"""DUNE: noise towards another class, and one colour for each class.

The noise moves every image within its budget towards the class `shift` further, down the mean
gradient of several checkpoints of one training. The colour, a shift of red, green and blue that all
images of a class get after it, has no budget. It is where a particle swarm, on the first clean
images x of class y, finds the least of

    mean over x of  1/M sum_m CE(f_m(x'), y + shift) + Q(x, x'),    x' = clip(x + colour)
    Q = max(0, 20 - PSNR) + max(0, 0.8 - SSIM) + max(0, LPIPS - 0.03)

Source: Wang et al., ICML 2026; code wxldragon/DUNE, whose --adv and --colorshift are
`preset=spatial` and `preset=colour`.

Deviations: the surrogate is trained here, as SEP's release trains its own, and its checkpoints are
equally spaced over all epochs (the release reads 26 of such a training, which are not published,
and takes every fifth); row i is the clean row i (the release groups rows by class); rounding to the
nearest level (released loaders truncate: `rounding: floor`); of ImageNet, too, the swarm sees the
first images of a class (the release: random ones); on a GPU the surrogate learns in bf16. As in the
release, LPIPS sees images in [0, 1], although it is made for [-1, 1]. One bug of the release is not
repeated, by no key: its best position is a view into the swarm, so that what pulls the particles,
and what it returns in the end, is where that particle has gone since.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from core import files
from core.config import Place
from core.distance import Net, build_lpips, check_lpips
from core.errors import ConfigError, UserError
from core.imageset import ImageSet, Rounding
from core.pgd import pgd
from core.ranges import (
    BelowOne,
    Count,
    Keys,
    Levels,
    LinfRadius,
    PositiveOrZero,
    StepSize,
    Weight,
)
from core.run import Run
from poisons.crafting import add_noise, craft_rows, on_device, other_class, report_seen
from poisons.ensemble import Surrogate, check_checkpoints, train_ensemble
from poisons.frozen import FrozenSurrogate

VERSION = 1
SMOKE = {"steps": 2, "checkpoints": 2, "swarm.images": 8, "swarm.particles": 4,
         "swarm.iterations": 3, "penalties": "psnr+ssim", "surrogate.width": 8,
         "surrogate.epochs": 2, "surrogate.batch_size": 64, "surrogate.milestones": []}
PATHS = ("lpips_weights",)
SSIM_SIDE = 7       # pixels of its window

Cost = Callable[[np.ndarray], np.ndarray]       # of positions (particles, 3): (particles,)
Price = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]    # of clean and shifted images: (B,)


@dataclass(frozen=True)
class Swarm(Keys):
    images: Count = 1000            # of a class, its first, on which a colour is judged; release
    particles: Count = 10           # release: 10
    iterations: Count = 10          # release: 10
    # they start within +- this in each channel, [0, 1] units; release: 0.1
    start: StepSize = 0.1
    # and with a velocity within +- this; release: 0.01
    velocity: Levels = 0.01
    inertia: BelowOne = 0.5         # share of its velocity that a particle keeps; release: 0.5
    pull_own: Weight = 0.3          # to the best place that it has seen itself; release: 0.3
    pull_best: Weight = 0.3         # to the best that any has seen; release: 0.3


@dataclass(frozen=True)
class Config(Keys):
    spatial: bool = True            # each image's noise; release: yes, unless --colorshift
    colour: bool = True             # each class's colour; release: yes, unless --adv
    shift: Count = 3                # the target is so many classes further; release: 3
    # L-inf budget of the noise, [0, 1] units; the colour comes on top; release: 8/255
    epsilon: LinfRadius = 8 / 255
    step_size: StepSize = 0.5 / 255     # of the signed steps, [0, 1] units; release: 0.5/255
    steps: Count = 30               # signed, of every image; release: 30
    # equally spaced over the training, the last epoch included; release: 5
    checkpoints: Count = 5
    # what a colour pays for, beside the loss; release: psnr+ssim+lpips
    penalties: Literal["psnr+ssim+lpips", "psnr+ssim", "psnr", "none"] = "psnr+ssim+lpips"
    min_psnr: PositiveOrZero = 20.0     # dB, below which an image costs the difference; release: 20
    # below which an image costs the difference, by scikit-image's default; release: 0.8
    min_ssim: Weight = 0.8
    max_lpips: PositiveOrZero = 0.03    # above which an image costs the difference; release: 0.03
    lpips_net: Net = "alex"         # the trunk of LPIPS; release: alex; squeeze needs no download
    lpips_weights: Place | None = None  # file of the trunk's weights; null: torchvision's
    # pixels a side that images are enlarged to for the trunk; null: not, as the release
    lpips_resize: Count | None = None
    rounding: Rounding = "round"    # to whole grey levels: nearest, or down, as the release
    # what finds the colours
    swarm: Swarm = field(default_factory=Swarm)
    # what the noise and the colours are made on, trained on the clean set
    surrogate: Surrogate = field(default_factory=Surrogate)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_checkpoints(self.checkpoints, self.surrogate)
        if not (self.spatial or self.colour):
            raise ConfigError("spatial", "without the colour too, nothing is changed: set one of "
                                         "them to true")

    def check_images(self, shape: tuple[int, int]) -> None:
        """Before anything begins: whether their quality can be told."""
        if self.pays("ssim") and min(shape) < SSIM_SIDE:
            raise ConfigError("penalties", f"SSIM needs images of {SSIM_SIDE} pixels, and these "
                                           f"have {shape[0]}x{shape[1]}: write psnr")
        if self.pays("lpips"):
            check_lpips(self.lpips_net, self.lpips_weights, self.lpips_resize, shape)

    def pays(self, name: str) -> bool:
        """Whether a colour's cost has this penalty."""
        return self.colour and name in self.penalties.split("+")


def bound(config: Config) -> tuple[str, float] | None:
    """The noise's; none with the colours, which nothing but their cost limits."""
    return None if config.colour else ("linf", config.epsilon)


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus its own noise and the colour of its class. The
    colours are in colours.npy (float32 (K, 3), in [0, 1] units). With `fraction=`, that stays in
    the folder of the poison that the part is taken from."""
    config.check_images(clean.image_shape)
    if config.shift % clean.num_classes == 0:
        raise UserError(f"dune.shift: {config.shift} of {clean.num_classes} classes further is the "
                        "own one")
    targets = other_class(clean, config.shift, run)
    ensemble = train_ensemble(clean, config.checkpoints, config.surrogate, run)
    colours = find_colours(clean, targets, ensemble, config, run) if config.colour else None

    def noise(images: torch.Tensor, labels: torch.Tensor, rows: slice) -> torch.Tensor:
        delta = torch.zeros_like(images)
        if config.spatial:
            gradients = [frozen.gradient(targets[rows].to(images.device)) for frozen in ensemble]
            delta = pgd(images, delta, lambda x, step: sum(g(x, step) for g in gradients),
                        epsilon=config.epsilon, step_size=config.step_size, steps=config.steps)
        if colours is None:
            return delta
        return (images + delta).clamp_(0, 1) - images + colours[labels][:, :, None, None]

    poisoned = add_noise(clean, noise, run, rounding=config.rounding)
    report_seen(f"says the class {config.shift} further", poisoned, ensemble[-1], targets, run)
    return poisoned


# --- colours ---------------------------------------------------------------------------------


@torch.no_grad()
def find_colours(clean: ImageSet, targets: torch.Tensor, ensemble: list[FrozenSurrogate],
                 config: Config, run: Run) -> torch.Tensor:
    """The colour of each class, (K, 3) on the device; black for one without images. A swarm that
    was killed begins again, from the same draws; the classes before it are read."""
    price = make_price(clean.image_shape, config, run)
    file = files.RowFile(run.work / "colours.npy", (clean.num_classes, 3), np.float32)
    with contextlib.closing(file):
        for label, _ in run.sweep("colours", clean.num_classes, 1, file):
            rows = np.flatnonzero(clean.labels == label)[: config.swarm.images]
            best = np.zeros(3)
            if len(rows):
                with run.device.exact():
                    best = search(lambda colours, rows=rows: costs(
                        colours, clean, rows, targets, ensemble, price, run), config.swarm,
                        run.rng("dune/swarm", label))
            file.write(label, best[None].astype(np.float32))
        colours = file.read(slice(0, clean.num_classes))
    run.log_once("colour", levels=(255 * colours).tolist())
    run.say(f"colours of up to {255 * np.abs(colours).max():.0f}/255 in a channel")
    return torch.from_numpy(colours.copy()).to(run.device.torch)


def search(cost: Cost, config: Swarm, rng: np.random.Generator) -> np.ndarray:
    """Particle swarm optimisation over R, G and B: the best position that was seen, (3,)."""
    position = rng.uniform(-config.start, config.start, (config.particles, 3))
    velocity = rng.uniform(-config.velocity, config.velocity, (config.particles, 3))
    own_best, own_cost = position, np.full(config.particles, np.inf)
    for _ in range(config.iterations):
        now = cost(position)
        better = now < own_cost
        own_best, own_cost = np.where(better[:, None], position, own_best), np.fmin(now, own_cost)
        best = own_best[own_cost.argmin()]
        velocity = (config.inertia * velocity + config.pull_own * (own_best - position)
                    + config.pull_best * (best - position))
        position = position + velocity
    return best


def costs(colours: np.ndarray, clean: ImageSet, rows: np.ndarray, targets: torch.Tensor,
          ensemble: list[FrozenSurrogate], price: Price, run: Run) -> np.ndarray:
    """What each of the colours (particles, 3) costs, as a mean over these rows, (particles,)."""
    candidates = torch.from_numpy(colours.astype(np.float32)).to(run.device.torch)
    total = torch.zeros(len(candidates), dtype=torch.float64, device=candidates.device)
    size = craft_rows(clean.image_shape, run.device.kind)
    for part in np.split(rows, range(size, len(rows), size)):
        images, _ = on_device(clean, part, run)
        target = targets[part].to(images.device)
        for number, colour in enumerate(candidates):
            shifted = (images + colour[:, None, None]).clamp_(0, 1)
            losses = [F.cross_entropy(frozen(shifted), target, reduction="sum")
                      for frozen in ensemble]
            total[number] += sum(losses) / len(losses) + price(images, shifted).sum()
    return (total / len(rows)).cpu().numpy()


def make_price(shape: tuple[int, int], config: Config, run: Run) -> Price:
    """What an image pays for how far it is from the clean one."""
    lpips = build_lpips(config.lpips_net, config.lpips_weights, config.lpips_resize, shape,
                        run.device.torch) if config.pays("lpips") else None

    def price(clean: torch.Tensor, shifted: torch.Tensor) -> torch.Tensor:
        total = clean.new_zeros(len(clean))
        if config.pays("psnr"):
            total += (config.min_psnr - psnr(clean, shifted)).clamp_(min=0)
        if config.pays("ssim"):
            total += (config.min_ssim - ssim(clean, shifted)).clamp_(min=0)
        if lpips is not None:
            total += (lpips(clean, shifted) - config.max_lpips).clamp_(min=0)
        return total

    return price


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image (B,), dB; inf where equal."""
    return -10 * (a - b).square().flatten(1).mean(1).log10()


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image (B,), in [-1, 1], as scikit-image's default: windows of
    equal weights without padding, variances divided by one less than their 49 pixels, K1 0.01,
    K2 0.03, channels averaged. Source: Wang et al. 2004, whose windows are Gaussian."""
    sample = SSIM_SIDE**2 / (SSIM_SIDE**2 - 1)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, SSIM_SIDE, stride=1)

    mean_a, mean_b = blur(a), blur(b)
    variance_a = sample * (blur(a * a) - mean_a.square())
    variance_b = sample * (blur(b * b) - mean_b.square())
    covariance = sample * (blur(a * b) - mean_a * mean_b)
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                  / ((mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2)))
    return similarity.flatten(1).mean(1)
