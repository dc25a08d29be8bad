"""The engine of the optimised attacks: signed gradient steps on the perturbation, over a frozen
surrogate whose batch norms are folded into its convolutions.

Source: Madry et al. 2018 for the step; the folding is of inference engines, exact up to
rounding.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from core.device import Device

WHOLE = 64              # a batch of a multiple of this is no remainder

# (images (B, 3, H, W) in [0, 1], step) -> gradient with respect to the images, same shape
Gradient = Callable[[torch.Tensor, int], torch.Tensor]
Loss = Callable[[torch.Tensor, int], torch.Tensor]      # the same to a number
Norm = Literal["linf", "l2"]
Clip = Literal["all", "moved", "none"]


def pgd(
    images: torch.Tensor,
    delta: torch.Tensor,
    gradient: Gradient,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    ascend: bool = False,
    norm: Norm = "linf",
    clip: Clip = "all",
) -> torch.Tensor:
    """`steps` signed steps from `delta`, which stays within +-epsilon: (B, 3, H, W) like `images`.
    With norm l2, steps along the gradient of length `step_size`, in the ball of that radius.

    Descends on the gradient's loss by default. The gradient is taken at images + delta clipped to
    [0, 1], and a step starts there, so delta leaves [0, 1] by at most one step (EM's release).
    With `clip` "moved" the start itself is not clipped (TAP's release); with "none" nothing is.
    """
    signed_size = step_size if ascend else -step_size
    for step in range(steps):
        inside = images + delta
        if clip == "all" or (clip == "moved" and step > 0):
            inside.clamp_(0, 1)
        found = gradient(inside, step)
        direction = found.sign_() if norm == "linf" else found.div_(lengths(found))
        stepped = inside.add(direction, alpha=signed_size).sub_(images)
        if norm == "linf":
            delta = stepped.clamp_(-epsilon, epsilon)
        else:
            delta = stepped.mul_((epsilon / lengths(stepped)).clamp_(max=1))
    return delta


def lengths(vectors: torch.Tensor) -> torch.Tensor:
    """L2 norm of each image, never 0: (B, 1, 1, 1)."""
    return vectors.flatten(1).norm(dim=1).clamp_(min=1e-12)[:, None, None, None]


def gradient_of(loss: Loss) -> Gradient:
    """The gradient of a loss that is summed over images: what an image gets does not depend on its
    batch."""

    def gradient(images: torch.Tensor, step: int) -> torch.Tensor:
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            value = loss(images, step)
        return torch.autograd.grad(value, images)[0]

    return gradient


class FrozenSurrogate(nn.Module):
    """An eval-mode copy of a classifier, for gradients with respect to the images alone.

    Each batch norm that follows a convolution is folded into it (exact up to rounding) and no
    weight asks for a gradient: less than half the work of a plain backward. `update` takes over
    the weights of the classifier, trained on since, in place: a compiled step stays valid.
    """

    def __init__(self, model: nn.Module, device: Device) -> None:
        super().__init__()
        self.folded = copy.deepcopy(model).requires_grad_(False).eval()
        self.convolutions = []
        for parent, convolution, norm in conv_norm_pairs(self.folded):
            conv = getattr(parent, convolution)
            conv.bias = nn.Parameter(conv.weight.new_empty(conv.out_channels), requires_grad=False)
            setattr(parent, norm, nn.Identity())
            self.convolutions.append(conv)
        device.place(self)
        self.update(model)
        self.device = device
        self.plain = {"logits": self.folded, "features": getattr(self.folded, "features", None)}
        self.compiled = {what: part and device.maybe_compile(part)
                         for what, part in self.plain.items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights and running statistics that `model` has now."""
        now = model.state_dict()
        for name, own in self.folded.state_dict().items():
            if name in now:
                own.copy_(now[name])
        pairs = conv_norm_pairs(model)
        for own, (parent, convolution, norm) in zip(self.convolutions, pairs, strict=True):
            conv, bn = getattr(parent, convolution), getattr(parent, norm)
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
            own.weight.copy_(weight)
            own.bias.copy_(bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of images (B, 3, H, W) in [0, 1], in their precision."""
        return self._seen("logits", images)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the linear head sees (B, C), likewise."""
        return self._seen("features", images)

    def _seen(self, what: str, images: torch.Tensor) -> torch.Tensor:
        """Compiled for whole batches with gradients; the odd last batch and scoring are not worth
        a graph of their own."""
        whole = torch.is_grad_enabled() and len(images) % WHOLE == 0
        with self.device.crafting():
            return (self.compiled if whole else self.plain)[what](images).to(images)

    def gradient(self, labels: torch.Tensor) -> Gradient:
        """Of the cross-entropy to `labels`."""
        return gradient_of(lambda images, _: F.cross_entropy(self(images), labels,
                                                             reduction="sum"))


def conv_norm_pairs(model: nn.Module) -> list[tuple[nn.Module, str, str]]:
    """(parent, name of a convolution, name of the batch norm defined right after it)."""
    return [
        (parent, first, second)
        for parent in model.modules()
        for (first, conv), (second, norm) in itertools.pairwise(parent.named_children())
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        and conv.out_channels == norm.num_features
    ]
