"""Each rank takes steps of SimCLR, MoCo and BYOL on its share of batches; rank 0 also
takes them alone, on the whole, and prints how far apart they end. For test_pretraining.py.
"""

import json

import torch
from torch import nn

from core.contrastive import BYOL, MoCo, SimCLR
from core.distributed import World, world
from learners.batchnorm import synchronise
from models.contrastive import Projected, byol_head, encoder, head

STEPS, BATCH = 2, 8


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    network, channels = encoder("resnet18", 10, (8, 8), width=2)
    if name == "byol":
        return BYOL(Projected(network, byol_head(channels, 8, 4)), byol_head(4, 8, 4))
    projected = Projected(network, head(channels))
    if name == "simclr":
        return SimCLR(projected)
    return MoCo(projected, torch.Generator().manual_seed(1), queue=16)


def trained(method: nn.Module, shared: World) -> list[float]:
    """The losses of a few steps."""
    synchronise(method, shared)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, momentum=0.9)
    images, losses = torch.Generator().manual_seed(2), []
    for _ in range(STEPS):
        views = torch.rand(2, BATCH, 3, 8, 8, generator=images)[:, shared.part(BATCH)]
        loss = method(*views, shared)
        optimizer.zero_grad()
        loss.backward()
        losses.append(shared.average(method, loss).item())
        optimizer.step()
    return losses


if __name__ == "__main__":
    apart = {}
    for name in ("simclr", "moco", "byol"):
        method, alone = make(name), make(name)
        shared = trained(method, world())
        wanted = trained(alone, World())
        apart[name] = {"loss": max(abs(a - b) for a, b in zip(shared, wanted, strict=True))}
        for key, value in alone.state_dict().items():
            kind = "queue" if key == "queue" else "running" if "running" in key else "weights"
            distance = (method.state_dict()[key].double() - value.double()).abs().max().item()
            apart[name][kind] = max(apart[name].get(kind, 0.0), distance)
    if world().leads:
        print(json.dumps(apart))
