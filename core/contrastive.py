"""SimCLR, MoCo v2 and BYOL as losses of two views of a batch; learners and poisons minimise them.

    method = MoCo(network, generator)
    loss = method(first, second)            # a plain mean; callers scale it (LOSS_SCALE)

Source: He, Zha and Katabi, ICLR 2023 (CP), code kaiwenzha/contrastive-poisoning, losses.py,
cl_algs.py and model.py; of the losses, Chen et al. 2020 (SimCLR), He et al. 2020 and Chen et al.
2020 (MoCo v2), Grill et al. 2020 (BYOL).

Deviations: BYOL's two moves of a step, one in each of CP's half-passes, are made before both of
them. MoCo's keys are not shuffled: with batch statistics of the whole batch, which CP's victims
have, that changes nothing (with those of shares, poisons/contrast.py, an image's query and key are
in the same share; TUE's release shuffles them). Losses are computed in float32, whatever the
network's precision (on a GPU their products in TF32, but for `precision: fp32`).
"""

import contextlib
import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from core.distributed import World
from core.errors import ConfigError

# CP's constants, of poisons and of learners alike.
RATES = {"simclr": 0.5, "moco": 0.3, "byol": 1.0}       # of SGD, for batches of 512
TEMPERATURES = {"simclr": 0.5, "moco": 0.2}
MOMENTA = {"moco": 0.99, "byol": 0.999}                 # of the target networks
MOVES = 2               # of BYOL's target in a step, one in each of CP's half-passes
QUEUE = 4096            # MoCo's keys
# What CP's reference multiplies each loss by: its losses hold T / 0.07, and the gradient of
# SimCLR's is divided by its 4 processes, since each goes back through its own share alone.
LOSS_SCALE = {"simclr": TEMPERATURES["simclr"] / 0.07 / 4, "moco": TEMPERATURES["moco"] / 0.07,
              "byol": 1.0}
LAST_RATE = 1e-3        # share of the rate that the cosine ends with
ALONE = World()


# --- the losses ------------------------------------------------------------------------------


def nt_xent(*views: torch.Tensor, temperature: float, world: World = ALONE) -> torch.Tensor:
    """SimCLR's loss of unit vectors (N, D) of two views or more, row i of each of the same image:
    the mean over all views, and over the other views of the same image, of -log of the softmax
    over all views but itself. Of several processes, each gives an equal share of the rows, and all
    get the whole batch's loss."""
    with in_float32(views[0]):
        z = torch.cat([from_all(view.float(), world) for view in views])
        image = torch.arange(len(z), device=z.device) % (len(z) // len(views))
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        log_p = (z @ z.T / temperature).masked_fill(itself, -math.inf).log_softmax(1)
        positive = (image[:, None] == image) & ~itself
        return -log_p.masked_fill(~positive, 0).sum() / positive.sum()


def moco_loss(queries: torch.Tensor, keys: torch.Tensor, queue: torch.Tensor, temperature: float
              ) -> torch.Tensor:
    """Cross-entropy of each query (N, D) for its own key (N, D) against the queue's (K, D); all are
    unit vectors."""
    with in_float32(queries):
        queries, keys = queries.float(), keys.float()
        own = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([own, queries @ queue.T], dim=1) / temperature
        return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def byol_loss(p1: torch.Tensor, z2: torch.Tensor, p2: torch.Tensor, z1: torch.Tensor,
              dual: bool = False) -> torch.Tensor:
    """-(cos(p1, z2) + cos(p2, z1)) / 2 in [-1, 1], of predictions p and the target network's
    projections z (N, D), to which gradient flows with `dual` alone. The original's is
    4 + 4 times this."""
    with in_float32(p1):
        z1, z2 = (z.float() if dual else z.float().detach() for z in (z1, z2))
        cosines = (F.cosine_similarity(p.float(), z, dim=1) for p, z in ((p1, z2), (p2, z1)))
        return -sum(cosine.mean() for cosine in cosines) / 2


def in_float32(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Inside, no autocast."""
    return torch.autocast(tensor.device.type, enabled=False)


# --- the methods -----------------------------------------------------------------------------


class SimCLR(nn.Module):
    """`network`: images (B, 3, H, W) -> unit vectors (B, D)."""

    def __init__(self, network: nn.Module, *,
                 temperature: float = TEMPERATURES["simclr"]) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def trained(self) -> list[nn.Module]:
        """The parts that gradient descent trains."""
        return [self.network]

    def forward(self, first: torch.Tensor, second: torch.Tensor, world: World = ALONE, *,
                move: bool = True, dual: bool = False) -> torch.Tensor:
        """The loss of two views of a batch, in one pass of the network. `move` and `dual` are the
        other methods'."""
        return nt_xent(*self.network(torch.cat([first, second])).chunk(2),
                       temperature=self.temperature, world=world)


class MoCo(nn.Module):
    """The same network, queries of which meet keys of a target network that follows it."""

    def __init__(self, network: nn.Module, generator: torch.Generator, *, channels: int = 128,
                 queue: int = QUEUE, temperature: float = TEMPERATURES["moco"],
                 momentum: float = MOMENTA["moco"]) -> None:
        super().__init__()
        self.network, self.temperature, self.momentum = network, temperature, momentum
        self.target = copy.deepcopy(network).requires_grad_(False)
        keys = torch.randn(queue, channels, generator=generator)
        self.register_buffer("queue", F.normalize(keys, dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def trained(self) -> list[nn.Module]:
        return [self.network]

    def forward(self, first: torch.Tensor, second: torch.Tensor, world: World = ALONE, *,
                move: bool = True, dual: bool = False) -> torch.Tensor:
        """The loss of queries of `first` and keys of `second`. The queue is read before these keys
        go into it. `move`: the target and the queue go on; `dual`: gradient reaches `second`."""
        if move:
            update_target(self.target, self.network, self.momentum)
        queries = self.network(first)
        with torch.set_grad_enabled(dual and torch.is_grad_enabled()):
            keys = self.target(second)
        loss = moco_loss(queries, keys, self.queue.clone(), self.temperature)
        if move:
            self.enqueue(world.gather(keys.detach().float()))
        return loss

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor) -> None:
        """Put keys (B, D) in the place of the oldest; B must divide the queue (`check_queue`)."""
        if len(self.queue) % len(keys):
            raise ValueError(f"{len(keys)} keys do not divide a queue of {len(self.queue)}")
        places = self.pointer + torch.arange(len(keys), device=keys.device)
        self.queue.index_copy_(0, places, keys)
        self.pointer.copy_((self.pointer + len(keys)) % len(self.queue))


class BYOL(nn.Module):
    """`network`: images -> projections (B, D); `predictor`: (B, D) -> (B, D). The target network
    follows `network`, `moves` times a step."""

    def __init__(self, network: nn.Module, predictor: nn.Module, *,
                 momentum: float = MOMENTA["byol"], moves: int = MOVES) -> None:
        super().__init__()
        self.network, self.predictor = network, predictor
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.momentum = momentum ** moves

    def trained(self) -> list[nn.Module]:
        return [self.network, self.predictor]

    def forward(self, first: torch.Tensor, second: torch.Tensor, world: World = ALONE, *,
                move: bool = True, dual: bool = False) -> torch.Tensor:
        """The loss of two views of a batch, each in a pass of its own. `move`: the target goes on;
        `dual`: gradient reaches the views through it too, which CP describes and its release
        cuts off."""
        if move:
            update_target(self.target, self.network, self.momentum)
        p1, p2 = (self.predictor(self.network(view)) for view in (first, second))
        with torch.set_grad_enabled(dual and torch.is_grad_enabled()):
            z1, z2 = (self.target(view) for view in (first, second))
        return byol_loss(p1, z2, p2, z1, dual)


@torch.no_grad()
def update_target(target: nn.Module, network: nn.Module, momentum: float) -> None:
    """target = momentum * target + (1 - momentum) * network, of parameters alone: running
    statistics come from the target's own passes."""
    torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), 1 - momentum)


# --- beside them -----------------------------------------------------------------------------


def check_queue(queue: int, batch_size: int) -> None:
    """Raise ConfigError unless whole batches fill the queue."""
    if queue % batch_size:
        raise ConfigError("queue", f"a queue of {queue} keys is not filled by whole batches of "
                                   f"{batch_size}: write a multiple of batch_size")


def cosine_rate(rate: float, epoch: int, epochs: int) -> float:
    """CP's learning rate of an epoch, the first being 1, down to a thousandth in the last."""
    last = LAST_RATE * rate
    return last + (rate - last) * (1 + math.cos(math.pi * epoch / epochs)) / 2


class _Gathered(torch.autograd.Function):
    """Forward as World.gather. Backward keeps this process's share, times the number of processes:
    all compute the same loss, and World.average then gives the gradient of the whole batch."""

    @staticmethod
    def forward(context, part: torch.Tensor, world: World) -> torch.Tensor:
        context.world = world
        return world.gather(part)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        world = context.world
        return gradient[world.part(len(gradient))] * world.size, None


def from_all(part: torch.Tensor, world: World) -> torch.Tensor:
    """Every process's equal share of a batch, in order, with gradient to the own one."""
    return part if world.size == 1 else _Gathered.apply(part, world)
