"""What the optimised attacks take gradients of: a frozen surrogate whose batch norms are folded
into its convolutions.

The folding is of inference engines, exact up to rounding.
"""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from core.device import Device
from core.pgd import Gradient, gradient_of

WHOLE = 64              # a batch of a multiple of this is no remainder


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
