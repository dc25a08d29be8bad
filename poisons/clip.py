"""CLIP's visual tower, a surrogate of UC's release, from a file: it is never downloaded."""

import math
import re
from pathlib import Path

import torch

from core.errors import UserError
from core.pretrained import by_name, check_tensors
from models.clip import ClipResNet

TOWER = "visual."               # of CLIP's two, its images'


def load_tower(path: Path) -> ClipResNet:
    """The visual tower of one of CLIP's ResNets, in eval mode and float32, from a file of its
    tensors by name (open_clip's `.safetensors`, or a state dict). Raises UserError for others."""
    found = {name.removeprefix(TOWER): tensor.float() if tensor.is_floating_point() else tensor
             for name, tensor in by_name(path).items() if name.startswith(TOWER)}
    sizes = [found.get(name, torch.empty(0)).shape for name in (
        "conv3.weight", "attnpool.positional_embedding", "attnpool.c_proj.weight")]
    if [len(shape) for shape in sizes] != [4, 2, 2] or sizes[0][0] % 2 or not all(
            shape[0] > 1 for shape in sizes):
        raise UserError(f"{path} holds no visual tower of a ResNet of CLIP's: no "
                        f"{TOWER}conv3.weight or {TOWER}attnpool of its kind")
    depths = [sum(re.fullmatch(rf"layer{group}\.\d+\.conv1\.weight", name) is not None
                  for name in found) for group in (1, 2, 3, 4)]
    with torch.device("meta"):          # as large as a file says, until it holds all of that
        tower = ClipResNet(tuple(depths), sizes[0][0], math.isqrt(sizes[1][0] - 1), sizes[2][0])
    check_tensors(found, tower.state_dict(), path, "a ResNet of CLIP's with its widths")
    tower.load_state_dict(found, assign=True)
    return tower.eval()
