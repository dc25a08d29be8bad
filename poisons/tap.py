"""TAP: targeted adversarial poisoning.

Adversarial examples of a fully trained surrogate as training data: every image is moved towards
the next class, under its own label, through random shifts and flips. Source: Fowl et al., NeurIPS
2021; code lhfowl/adversarial_poisons.

Deviations: noise is kept in [0, 1] units, which is the same; a restart is judged by the loss of its
noise as it ends, one step after the release does; CIFAR-10's mean and std but on CIFAR-100
(`surrogate.mean`, `surrogate.std`); the surrogate's last incomplete batch is dropped
(`surrogate.drop_last`); on a GPU it learns in bf16. REM's paper compares with a TAP of its own,
250 steps of 0.064/255 from a uniform start through crops, which is not here.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from core.files import RowFile
from core.imageset import ImageSet, Rounding
from core.pgd import gradient_of, pgd
from core.ranges import Count, CountOrZero, Keys, LinfRadius, Positive, PositiveOrZero, StepSize
from core.run import Run
from core.streams import BLOCK, by_block
from core.training import RateSchedule
from poisons.crafting import add_noise, report_seen, targets_of
from poisons.frozen import FrozenSurrogate
from poisons.surrogates import Training, train_surrogate
from poisons.transforms import shift_and_flip

VERSION = 2     # 1: the start clipped to [0, 1] too
SMOKE = {"steps": 3, "restarts": 2, "surrogate.width": 8, "surrogate.epochs": 1,
         "surrogate.batch_size": 64}
CIFAR_MEAN, CIFAR_STD = (0.49147, 0.48226, 0.44677), (0.24703, 0.24349, 0.26159)    # code


@dataclass(frozen=True)
class Surrogate(Training):
    epochs: Count = 40              # passes over the clean set; release: 40
    nesterov: bool = True           # momentum in Nesterov's form; release: yes
    # of the learning rate; release: a tenth at each milestone
    schedule: RateSchedule = "multistep"
    milestones: tuple[Count, ...] = (14, 24, 35)    # in epochs; release: 14, 24 and 35
    # largest L2 norm of the gradient; null: no clipping, as the release
    clip_norm: Positive | None = None
    # none: it is trained with the attack's own shifts, as the release
    crop_padding: CountOrZero = 0
    flip: bool = False              # no: it is trained with the attack's own flips, as the release
    # of R, G, B, taken off inside the model; release: CIFAR-10's
    mean: tuple[float, ...] | None = CIFAR_MEAN
    # of R, G, B, divided by inside the model; release: CIFAR-10's
    std: tuple[Positive, ...] | None = CIFAR_STD


@dataclass(frozen=True)
class Config(Keys):
    epsilon: LinfRadius = 8 / 255   # L-inf budget, [0, 1] units; paper: 8/255
    step_size: StepSize = 0.4 / 255     # of the signed steps, [0, 1] units; release: 0.05 epsilon
    steps: Count = 250              # signed, of every image; release: 250
    # the one with the lowest loss over the set is kept; release: 8, ImageNet 1
    restarts: Count = 8
    # towards the next class, as the paper; false: away from the own, as APBench
    targeted: bool = True
    # pixels at most, in either direction, drawn anew; release: 4, at 224x224 28
    shift: PositiveOrZero = 4.0
    flip: bool = True               # mirror half of the draws; release: yes
    rounding: Rounding = "round"    # to whole grey levels: nearest, as the release, or down
    # what the noise is made on, trained on the clean set
    surrogate: Surrogate = field(default_factory=Surrogate)


def bound(config: Config) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus the noise of the best restart."""
    targets = targets_of(clean, run, targeted=config.targeted)
    transform = ShiftAndFlip(config, run)

    def transformed(images: torch.Tensor, labels: torch.Tensor, step: int
                    ) -> tuple[torch.Tensor, torch.Tensor]:
        return transform(images, *transform.draw("train", step, images)), labels

    frozen = FrozenSurrogate(
        train_surrogate(clean, config.surrogate, run, transform=transformed), run.device)
    losses = []
    for restart in range(config.restarts):
        losses.append(craft(clean, targets, frozen, transform, restart, config, run))
        run.say(f"restart {restart + 1} of {config.restarts}: loss {losses[-1]:.4f}")
    best = int(np.argmin(losses))
    run.log_once("restarts", losses=losses, best=best)
    crafted = np.load(run.work / "state" / f"restart{best}.npy", mmap_mode="r")
    poisoned = clean.map_pixels(
        lambda _, rows: torch.from_numpy(np.array(crafted[rows])), run)
    report_seen("says the next class" if config.targeted else "is right", poisoned, frozen,
                targets, run)
    return poisoned


def craft(clean: ImageSet, targets: torch.Tensor, frozen: FrozenSurrogate,
          transform: "ShiftAndFlip", restart: int, config: Config, run: Run) -> float:
    """One restart, as state/restart<n>.npy; returns its mean loss over the set."""
    sign = 1 if config.targeted else -1
    file = RowFile(run.work / "state" / f"loss{restart}.npy", (len(clean),), np.float32)

    def noise(images: torch.Tensor, _: torch.Tensor, rows: slice) -> torch.Tensor:
        labels = targets[rows].to(images.device)
        shifts, mirrored = transform.draw_rows(f"{restart}", config.steps + 1, rows)

        def losses(images: torch.Tensor, step: int) -> torch.Tensor:
            seen = frozen(transform(images, shifts[step], mirrored[step]))
            return sign * F.cross_entropy(seen, labels, reduction="none")

        start = by_block(rows, lambda block: torch.randn(
            BLOCK, *images.shape[1:], generator=run.stream(f"tap/start{restart}", block)))
        delta = start.to(images).mul_(config.epsilon).clamp_(-config.epsilon, config.epsilon)
        delta = pgd(images, delta, gradient_of(lambda x, step: losses(x, step).sum()),
                    epsilon=config.epsilon, step_size=config.step_size, steps=config.steps,
                    clip="moved")           # the first gradient is at the start as it was drawn
        with torch.no_grad():
            final = losses((images + delta).clamp_(0, 1), config.steps)
        file.write(rows.start, final.float().cpu().numpy())
        return delta

    add_noise(clean, noise, run, rounding=config.rounding, file=f"state/restart{restart}.npy",
              beside=(file,))
    mean = float(file.read(slice(0, len(clean))).astype(np.float64).mean())
    file.close()
    return mean


class ShiftAndFlip:
    """TAP's differentiable augmentation: a bilinear shift and a flip, one draw an image."""

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        mean = config.surrogate.mean or (0.0, 0.0, 0.0)     # outside is 0 after normalisation
        self.fill = torch.tensor(mean, device=run.device.torch).view(3, 1, 1)

    def draw(self, name: str, step: int, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For a shuffled minibatch."""
        drawn = torch.rand(len(images), 3, generator=self.run.stream(f"tap/{name}", step))
        return self._scaled(drawn)

    def draw_rows(self, name: str, steps: int, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """For rows of the set, by block, and every step: (steps, n, 2) and (steps, n)."""
        return self._scaled(torch.stack([by_block(rows, lambda block, step=step: torch.rand(
            BLOCK, 3, generator=self.run.stream(f"tap/shift{name}/{step}", block)))
            for step in range(steps)]))

    def _scaled(self, drawn: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shifts = (2 * drawn[..., :2] - 1) * self.config.shift
        mirrored = (drawn[..., 2] < 0.5) & self.config.flip
        return shifts.to(self.fill.device), mirrored.to(self.fill.device)

    def __call__(self, images: torch.Tensor, shifts: torch.Tensor, mirrored: torch.Tensor
                 ) -> torch.Tensor:
        return shift_and_flip(images, shifts, mirrored, self.fill)
