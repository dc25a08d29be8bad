"""Gaussian diffusion as pure functions: the schedule, one reverse step, and its guidance.

Steps are 0-based: x_t = sqrt(abar[t]) x_0 + sqrt(1 - abar[t]) eps, with abar[t] the product of
1 - beta up to and including t, in [-1, 1] units. Coefficients are float64, tensors float32.
Source: Ho et al. 2020; sub-sampled steps as Nichol and Dhariwal 2021;
guidance as code jiangw-0/LE_JCDP.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]      # (x_t, t) -> eps
Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]     # of (B, 3, H, W) twice: (B,)
Variance = Literal["large", "small"]


class Schedule:
    """The linear schedule: `betas`, `abar`, `posterior_variance`, each float64 (steps,)."""

    def __init__(self, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        self.betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        self.abar = (1 - self.betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.abar[:-1]])
        self.posterior_variance = self.betas * (1 - before) / (1 - self.abar)

    def __len__(self) -> int:
        return len(self.betas)

    def noised(self, x0: torch.Tensor, t: int, noise: torch.Tensor) -> torch.Tensor:
        """x_t."""
        abar = self.abar[t].item()
        return math.sqrt(abar) * x0 + math.sqrt(1 - abar) * noise

    def jump(self, t: int, to: int, variance: Variance = "large") -> "Jump":
        """The reverse step from t to an earlier step, -1 for the clean image."""
        abar, earlier = self.abar[t].item(), self.abar[to].item() if to >= 0 else 1.0
        beta = 1 - abar / earlier
        large, small = beta, beta * (1 - earlier) / (1 - abar)
        if t == 0:                          # only guidance meets it: nothing is drawn at the end
            large = self.posterior_variance[1].item()
        return Jump(
            t=t, to=to, ratio=math.sqrt((1 - abar) / abar), scale=math.sqrt(1 / abar),
            on_x0=math.sqrt(earlier) * beta / (1 - abar),
            on_x=math.sqrt(abar / earlier) * (1 - earlier) / (1 - abar),
            variance=large if variance == "large" else small,
            keep=math.sqrt(earlier), noise=math.sqrt(1 - earlier))


@dataclass(frozen=True)
class Jump:
    """Coefficients of one reverse step t -> to."""

    t: int
    to: int
    ratio: float        # r_t = sqrt((1 - abar) / abar)
    scale: float        # 1 / sqrt(abar)
    on_x0: float        # posterior mean = on_x0 * x_0 + on_x * x_t
    on_x: float
    variance: float     # of what is drawn at `to`; the Sigma that scales guidance
    keep: float         # sqrt(abar), sqrt(1 - abar) at `to`: DDIM's step
    noise: float

    @property
    def last(self) -> bool:
        return self.to < 0


def times(t_star: int, evaluations: int) -> list[int]:
    """`evaluations` steps evenly from t_star - 1 down: all of them, or for (20, 5) 19 15 11 7 3."""
    return [t_star - 1 - i * t_star // evaluations for i in range(evaluations)]


def jumps(schedule: Schedule, visited: list[int], variance: Variance = "large") -> list[Jump]:
    """The reverse steps through `visited`, the last one to the clean image."""
    return [schedule.jump(t, to, variance)
            for t, to in zip(visited, [*visited[1:], -1], strict=True)]


def predict_x0(x: torch.Tensor, eps: torch.Tensor, jump: Jump, clamp: bool = True) -> torch.Tensor:
    """The clean image that the predicted noise implies."""
    x0 = jump.scale * x - jump.ratio * eps
    return x0.clamp_(-1, 1) if clamp else x0


def ancestral(x: torch.Tensor, x0: torch.Tensor, jump: Jump, shift: torch.Tensor | None,
              noise: torch.Tensor | None) -> torch.Tensor:
    """Draw from N(mu + shift, Sigma), mu the posterior mean; without `noise` its mean."""
    mean = jump.on_x0 * x0 + jump.on_x * x
    if shift is not None:
        mean = mean + shift
    return mean if noise is None else mean + math.sqrt(jump.variance) * noise


def ddim(x: torch.Tensor, x0: torch.Tensor, jump: Jump, shift: torch.Tensor | None) -> torch.Tensor:
    """The deterministic step (eta 0). It keeps about the root of what an ancestral one keeps of a
    perturbation: for comparison."""
    eps = (x * jump.scale - x0) / jump.ratio
    moved = jump.keep * x0 + jump.noise * eps
    return moved if shift is None else moved + shift


def euler_maruyama(x: torch.Tensor, network: Network, t_star: int,
                   draw: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """AVATAR's released sampler: the reverse variance-preserving SDE of the schedule above in
    t_star steps of 1e-3, the last one down to 1e-5; x_0 is never clamped and the last step adds
    noise too. Source: code hmdolatabadi/AVATAR, runners/diffpure_sde.py."""
    for i in range(t_star):
        t = (t_star - i) * 1e-3
        dt = t - max(t - 1e-3, 1e-5)
        beta, spread = 0.1 + 19.9 * t, math.sqrt(1 - math.exp(-9.95 * t * t - 0.1 * t))
        eps = network(x, x.new_full((1,), 999 * t))
        x = x + dt * beta * (x / 2 - eps / spread) + math.sqrt(beta * dt) * draw(i)
    return x


# --- guidance (JCDP, equations 14-20) --------------------------------------------------------

# s_t = SCALE * r_t weighs both distances: G * 3 * 255 / (2 * 8) with G = 70,000 (code: LE_JCDP)
SCALE = 70_000 * 3 * 255 / 16


def pull(jump: Jump, strength: float) -> float:
    """Sigma s_t times the strength: what a step multiplies a distance's gradient by."""
    return strength * jump.variance * SCALE * jump.ratio


def kappa(jump: Jump, strength: float, elements: int) -> float:
    """How far one step pulls x towards its target by squared error: shift = -kappa (x - y), the
    gradient of -s_t MSE over an image's `elements` numbers, times Sigma."""
    return pull(jump, strength) * 2 / elements


def mse_shift(x: torch.Tensor, target: torch.Tensor, jump: Jump, strength: float) -> torch.Tensor:
    """-Sigma s_t grad MSE(x, target) of each image, in closed form."""
    return -kappa(jump, strength, x[0].numel()) * (x - target)


def distance_shift(x: torch.Tensor, target: torch.Tensor, jump: Jump, strength: float,
                   distance: Distance) -> torch.Tensor:
    """-Sigma s_t grad D(x, target) of each image, D differentiable."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        gradient = torch.autograd.grad(distance(x, target).sum(), x)[0]
    return -pull(jump, strength) * gradient
