"""Signed gradient steps on a perturbation, within a budget: projected gradient descent.

Source: Madry et al. 2018. Which network the gradient is of is the caller's: a frozen surrogate's
for a poison, for adversarial training the classifier's own.
"""

from collections.abc import Callable
from typing import Literal

import torch

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
    """The gradient of a loss. Of one that is summed over images, what an image gets does not depend
    on its batch; CP's, MI-UE's and TUE's compare the images of a batch, and their sign counts."""

    def gradient(images: torch.Tensor, step: int) -> torch.Tensor:
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            value = loss(images, step)
        return torch.autograd.grad(value, images)[0]

    return gradient
