"""Random views of a batch: what SimCLR, MoCo and BYOL compare, and what networks at 224 train on.

Each image has parameters of its own, drawn by `draw` on the host; `apply` computes all images at
once, on any device, without a loop over images or a shape that depends on a draw, and gradients
pass through to the images. The order is that of the field: crop and flip, colour jitter, grey,
blur, solarize; then, where asked for, a hole and noise. Defaults: Contrastive Poisoning's protocol
(He, Zha and Katabi, ICLR 2023; code kaiwenzha/contrastive-poisoning).

Images are float (B, 3, H, W) in [0, 1]. The operations are torchvision's on tensors: grey levels
stay fractions between them, where Pillow rounds after each. A crop is two matrix products, exact
and antialiased as `F.interpolate(mode="bilinear", antialias=True)`; on a GPU they are as exact as
the run's precision (TF32: up to about 0.2 grey levels). The four operations of colour jitter come
in one order for the batch, drawn with it, as in the fork of kornia that CP uses; torchvision draws
the order for each image. Noise of one seed differs between kinds of device.
"""

import functools
import math
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch

from core.boxes import inside
from core.device import to_device
from core.errors import ConfigError
from core.ranges import (
    CountOrZero,
    Keys,
    Levels,
    Positive,
    PositiveOrZero,
    Range,
    Share,
    Weight,
)

TRIES = 10                              # of RandomResizedCrop, for a box that fits (torchvision)
GREY = (0.2989, 0.587, 0.114)           # of R, G, B in a grey level (torchvision, on tensors)
SOLARIZED = 0.5                         # from here on; Pillow: from level 128 on
PLAIN = 0.01                            # a sigma whose Gaussian is 1 at its middle, else 0
TINY = 1e-12                            # in the place of a spread of 0: nothing is divided by 0
CACHED = 64 * 3 * 32**2                 # values at once on a CPU: what its cache holds; speed alone
COLUMNS = 2 * TRIES + 2 + 12            # uniform numbers an image; a key adds none: see `draw`

# So many times as large before a crop. Of more than four little is left in a crop; 256 is meant in
# pixels.
Enlargement = Annotated[float, Range(at_least=1, at_most=4)]


@dataclass(frozen=True)
class Views(Keys):
    """How a view is drawn. Defaults: CP's."""

    # pixels a side of a view, two or more; null: as the images are
    size: Annotated[int, Range(at_least=2)] | None = None
    # least and largest share of the area in a random resized crop; null: no such crop; CP: 0.2, 1
    scale: tuple[Share, ...] | None = (0.2, 1.0)
    ratio: tuple[Positive, ...] = (3 / 4, 4 / 3)    # least and largest width / height of that crop
    # null, or how many times the view's size images are resized to before a plain random crop, in
    # the place of `scale`, which is null then; UC: 256/224
    resize: Enlargement | None = None
    flip: Weight = 0.5                  # probability of mirroring
    jitter: Weight = 0.8                # probability of the four that follow
    # brightness is multiplied by 1 - this to 1 + this
    brightness: PositiveOrZero = 0.4
    contrast: PositiveOrZero = 0.4      # the same, for the distance from the mean grey level
    saturation: PositiveOrZero = 0.4    # the same, for the distance from the pixel's grey level
    hue: Annotated[float, Range(at_least=0, at_most=0.5)] = 0.1     # turned by at most this, turns
    grey: Weight = 0.2                  # probability of taking colour away
    blur: Weight = 0.0                  # probability of a Gaussian blur; CP: none
    # its least and largest width in pixels; MoCo v2, SimCLR
    blur_sigma: tuple[Positive, ...] = (0.1, 2.0)
    # pixels a side of the blur; null: a tenth of the view's side (3 at 32, 23 at 224), at least 3;
    # SimCLR
    blur_kernel: Annotated[int, Range(at_least=3, in_steps_of=2)] | None = None
    solarize: Weight = 0.0              # probability of inverting what is bright; CP: none
    cutout: CountOrZero = 0             # pixels a side of a black square; its centre is any pixel
    noise: Levels = 0.0                 # the most that is added to a value or taken off; uniform

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("scale", "ratio", "blur_sigma"):
            pair = getattr(self, key)
            if pair is None:
                continue
            if len(pair) != 2:
                raise ConfigError(key, "takes two numbers, the least and the largest")
            if pair[0] > pair[1]:
                raise ConfigError(key, f"the least comes first: write [{pair[1]:g}, {pair[0]:g}]")
        if self.resize is not None and self.scale is not None:
            raise ConfigError("resize", "goes with scale: null, as it takes the place of that crop")

    def shape_of(self, images: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the views of such images."""
        return (self.size, self.size) if self.size else images

    def check_images(self, shape: tuple[int, int]) -> None:
        """Raise ConfigError unless images of this (height, width) give such views."""
        height, width = self.shape_of(shape)
        side, at = min(height, width), f"views of {height}x{width}"
        if side < 2:
            raise ConfigError("size", f"images of {height}x{width} give no views, which have two "
                                      "pixels a side or more")
        if self.blur and self.blur_kernel and self.blur_kernel // 2 >= side:
            raise ConfigError("blur_kernel", f"{self.blur_kernel} is too large to be mirrored at "
                                             f"the border of {at}; at most {2 * side - 1}")
        if self.cutout > side:
            raise ConfigError("cutout", f"a square of {self.cutout} is larger than {at}; at most "
                                        f"{side}")


class Drawn(NamedTuple):
    """What was drawn for a batch; None where an operation is not asked for. Tensors are on the
    device of the images, with a row an image."""

    size: tuple[int, int]                       # height and width of the views
    boxes: torch.Tensor | None = None           # (B, 4: top, left, height, width), may be fractions
    beyond: bool = False                        # resizing sees what lies around the box, too
    mirrored: torch.Tensor | None = None        # bool (B,)
    factors: torch.Tensor | None = None         # (B, 4), in the order of JITTER; 1, 1, 1, 0: as is
    order: tuple[int, ...] = ()                 # in which JITTER's operations come
    grey: torch.Tensor | None = None            # bool (B,)
    sigma: torch.Tensor | None = None           # (B,) of the blur in pixels; 0: none
    kernel: int = 3                             # its pixels a side
    solarized: torch.Tensor | None = None       # bool (B,)
    corners: torch.Tensor | None = None         # (B, 2: top, left) of the hole
    hole: int = 0                               # its pixels a side
    noise: torch.Tensor | None = None           # (B, 3, height, width), added

    def part(self, rows: slice | torch.Tensor) -> "Drawn":
        """What was drawn for these images of the batch."""
        return Drawn(*(value[rows] if isinstance(value, torch.Tensor) else value
                       for value in self))


# --- drawing ---------------------------------------------------------------------------------


def draw(views: Views, count: int, shape: tuple[int, int], generator: torch.Generator,
         device: torch.device | str = "cpu") -> Drawn:
    """The parameters of views of `count` images of height and width `shape`, from a generator of
    the CPU, so that they are the same for every device. What one operation draws does not depend on
    which others are asked for. Images of this shape give such views
    (`Views.check_images`)."""
    device = torch.device(device)
    uniform = torch.rand(count, COLUMNS, generator=generator)
    order = torch.randperm(len(JITTER), generator=generator).tolist()
    noise_seed = int(torch.randint(2**62, (), generator=generator))
    size = views.shape_of(shape)
    (mirrored, jittered, *factors, grey, blurred, sigma, solarized, down, right
     ) = uniform[:, 2 * TRIES + 2 :].unbind(1)

    drawn: dict = {}
    if views.resize is not None:
        drawn |= {"boxes": resized_boxes(uniform[:, 2 * TRIES : 2 * TRIES + 2], shape, size,
                                         views.resize), "beyond": True}
    elif views.scale is not None:
        drawn["boxes"] = random_boxes(uniform[:, : 2 * TRIES + 2], *shape, views.scale, views.ratio)
    elif size != shape:
        drawn["boxes"] = torch.tensor([[0.0, 0.0, *shape]]).expand(count, 4)
    if views.flip:
        drawn["mirrored"] = mirrored < views.flip
    strengths = (views.brightness, views.contrast, views.saturation, views.hue)
    if views.jitter and any(strengths):
        drawn["factors"] = jitter_factors(torch.stack(factors, 1), strengths,
                                          jittered < views.jitter)
        drawn["order"] = tuple(which for which in order if strengths[which])
    if views.grey:
        drawn["grey"] = grey < views.grey
    if views.blur:
        low, high = views.blur_sigma
        drawn["sigma"] = torch.where(blurred < views.blur, low + (high - low) * sigma, 0)
        drawn["kernel"] = views.blur_kernel or max(3, 2 * (min(size) // 20) + 1)
    if views.solarize:
        drawn["solarized"] = solarized < views.solarize
    if views.cutout:
        centres = torch.stack([down * size[0], right * size[1]], 1).floor_()
        drawn |= {"corners": centres - views.cutout // 2, "hole": views.cutout}
    if views.noise:
        own = torch.Generator(device).manual_seed(noise_seed)
        drawn["noise"] = torch.empty(count, 3, *size, device=device).uniform_(
            -views.noise, views.noise, generator=own)
    return Drawn(size, **{key: to_device(value, device) if isinstance(value, torch.Tensor)
                          else value for key, value in drawn.items()})


def random_boxes(drawn: torch.Tensor, height: int, width: int,
                 scale: tuple[float, ...] = (0.08, 1.0), ratio: tuple[float, ...] = (3 / 4, 4 / 3)
                 ) -> torch.Tensor:
    """RandomResizedCrop's boxes (B, 4: top, left, height, width) by `drawn` (B, 2 * TRIES + 2) in
    [0, 1): the first try that fits; if none does, the middle, cut to the range of `ratio`. Defaults
    and rule: torchvision's."""
    areas, ratios = drawn[:, :TRIES], drawn[:, TRIES : 2 * TRIES]
    areas = height * width * (scale[0] + (scale[1] - scale[0]) * areas)
    low, high = map(math.log, ratio)
    ratios = torch.exp((2 * ratios - 1) * ((high - low) / 2) + (high + low) / 2)
    sides = torch.stack([(areas / ratios).sqrt(), (areas * ratios).sqrt()], 2).round_()
    fits = ((sides <= sides.new_tensor([height, width])) & (sides >= 1)).all(2)
    some = fits.any(1, keepdim=True)
    first = sides[torch.arange(len(drawn), device=drawn.device), fits.byte().argmax(1)]
    middle = sides.new_tensor([min(height, round(width / ratio[0])),
                               min(width, round(height * ratio[1]))])
    size = torch.where(some, first, middle)
    free = drawn.new_tensor([height, width]) - size
    corner = torch.where(some, (drawn[:, 2 * TRIES :] * (free + 1)).floor_(), free // 2)
    return torch.cat([corner, size], 1)


def resized_boxes(drawn: torch.Tensor, shape: tuple[int, int], size: tuple[int, int],
                  resize: float) -> torch.Tensor:
    """Resize to `resize` sizes of the view, its shorter sides, and RandomCrop(size) by `drawn`
    (B, 2) in [0, 1): the boxes (B, 4), in pixels of the image before it is resized."""
    shorter = round(resize * min(size))
    resized = [int(shorter * side / min(shape)) for side in shape]
    free = drawn.new_tensor([whole - side for whole, side in zip(resized, size, strict=True)])
    unit = drawn.new_tensor([side / whole for side, whole in zip(shape, resized, strict=True)])
    return torch.cat([(drawn * (free + 1)).floor_() * unit,
                      (drawn.new_tensor(size) * unit).expand(len(drawn), 2)], 1)


def jitter_factors(drawn: torch.Tensor, strengths: tuple[float, ...], jittered: torch.Tensor
                   ) -> torch.Tensor:
    """(B, 4) by `drawn` (B, 4) in [0, 1); what leaves an image as it is where not `jittered`."""
    *mixes, hue = strengths
    low = drawn.new_tensor([*(max(0, 1 - mix) for mix in mixes), -hue])
    high = drawn.new_tensor([*(1 + mix for mix in mixes), hue])
    return torch.where(jittered[:, None], low + (high - low) * drawn,
                       drawn.new_tensor([1.0, 1.0, 1.0, 0.0]))


# --- applying --------------------------------------------------------------------------------


def apply(images: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """The views (B, 3, *drawn.size) of images (B, 3, H, W), channels-last. Differentiable in the
    images; in their precision, also where autocast is on."""
    count = len(images)
    if images.device.type == "cpu":
        count = max(1, CACHED // max(images[0].numel(), 3 * math.prod(drawn.size)))
    parts = [slice(start, start + count) for start in range(0, len(images), count)]
    if len(parts) == 1:
        return viewed(images, drawn)
    return torch.cat([viewed(images[rows], drawn.part(rows)) for rows in parts])


def fresh(images: torch.Tensor, views: Views, generator: torch.Generator) -> torch.Tensor:
    """A view of each of these images, by draws of its own."""
    return apply(images, draw(views, len(images), tuple(images.shape[2:]), generator,
                              images.device))


def viewed(images: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """`apply` to all images at once."""
    with torch.autocast(images.device.type, enabled=False):
        if drawn.boxes is not None:
            images = resized_crop(images, drawn.boxes, drawn.size, drawn.mirrored, drawn.beyond)
        else:
            images = images.clone(memory_format=torch.contiguous_format)  # overwritten below
            if drawn.mirrored is not None:
                images = torch.where(each(drawn.mirrored), images.flip(3), images)
        for which in drawn.order:
            images = JITTER[which](images, drawn.factors[:, which].to(images.dtype))
        if drawn.grey is not None:
            images = saturation(images, 1 - drawn.grey.to(images.dtype))
        if drawn.sigma is not None:
            images = blur(images, drawn.sigma, drawn.kernel)
        if drawn.solarized is not None:
            images = torch.where(each(drawn.solarized) & (images >= SOLARIZED), 1 - images, images)
        if drawn.corners is not None:
            sides = torch.full_like(drawn.corners, drawn.hole)
            images = torch.where(inside(drawn.corners, sides, drawn.size), 0, images)
        if drawn.noise is not None:
            images = (images + drawn.noise).clamp(0, 1)
        return images.contiguous(memory_format=torch.channels_last)


def each(values: torch.Tensor) -> torch.Tensor:
    """One number an image, (B,), to be computed with images."""
    return values[:, None, None, None]


def resized_crop(images: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int],
                 mirrored: torch.Tensor | None = None, beyond: bool = False) -> torch.Tensor:
    """Each image's own box (B, 4: top, left, height, width) resized to `size`, then mirrored where
    `mirrored`: two matrix products. With `beyond`, as a cut from the whole image resized."""
    boxes = boxes.to(images.dtype)
    rows = resize_matrix(boxes[:, 0], boxes[:, 2], images.shape[2], size[0], beyond)
    columns = resize_matrix(boxes[:, 1], boxes[:, 3], images.shape[3], size[1], beyond, mirrored)
    return multiplied(images, rows, columns)


def multiplied(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """rows (B, h, H) x images x columns (B, w, W) transposed: (B, 3, h, w), contiguous."""
    count, _, height, width = images.shape
    lines = rows @ images.permute(0, 2, 3, 1).reshape(count, height, width * 3)
    lines = lines.view(count, -1, width, 3).permute(0, 3, 1, 2).reshape(count, -1, width)
    return (lines @ columns.mT).view(count, 3, rows.shape[1], columns.shape[1])


def resize_matrix(start: torch.Tensor, length: torch.Tensor, source: int, target: int,
                  beyond: bool = False, reverse: torch.Tensor | None = None) -> torch.Tensor:
    """(B, target, source): the share of each of `source` pixels in each of `target`, when the span
    from `start` (B,) of `length` (B,) is resized; bilinear, antialiased where it shrinks. Rows sum
    to 1, and come in reverse order where `reverse` (B,). Outside of the span a pixel has a share
    `beyond` alone."""
    start, scale = start[:, None, None], (length / target)[:, None, None]
    pixels = torch.arange(source, device=start.device, dtype=start.dtype)
    targets = torch.arange(target, device=start.device, dtype=start.dtype)[:, None]
    if reverse is not None:
        targets = torch.where(reverse[:, None, None], target - 1 - targets, targets)
    away = ((targets + 0.5) * scale + (start - 0.5) - pixels).abs_()
    shares = away.div_(-scale.clamp(min=1)).add_(1).clamp_(min=0)
    if not beyond:
        end = start + length[:, None, None]
        shares *= ((pixels >= start) & (pixels < end)).to(shares.dtype)
    return shares.div_(shares.sum(2, keepdim=True))


def grey_levels(images: torch.Tensor) -> torch.Tensor:
    """Grey levels (B, 1, H, W)."""
    red, green, blue = images.split(1, 1)
    return (GREY[0] * red).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Away from black (factor (B,) above 1) or towards it. Overwrites the images, as do contrast
    and saturation: memory that a CPU touches first takes it longer than the arithmetic."""
    return images.mul_(each(factor)).clamp_(0, 1)


def contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Away from the image's mean grey level or towards it."""
    return mixed(grey_levels(images).mean((1, 2, 3), keepdim=True), images, factor)


def saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Away from each pixel's grey level or towards it."""
    return mixed(grey_levels(images), images, factor)


def mixed(start: torch.Tensor, images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """start + factor (B,) * (images - start), clipped; the images themselves where factor is 1."""
    factor = each(factor)
    return images.mul_(factor).add_((1 - factor) * start).clamp_(0, 1)


def turn_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Hue turned by `turns` (B,), in HSV; grey pixels stay. The gradient is finite everywhere; of
    the difference of green and blue, it is 0 where they are equal.

    HSV's formulas without a choice between channels, which is slow on a CPU: with M and m the
    largest and smallest channel, hue in sixths of a turn is 1 + (G + B - R - m) / (M - m), with the
    sign of G - B; and back, a channel is M - (M - m) clip(2 - t, 0, 1), where t is how far its own
    opposite (3, 5, 1) is from being opposite, ||hue - n| - 3| of a hue in [0, 6)."""
    red, green, blue = images.unbind(1)
    top = torch.maximum(torch.maximum(red, green), blue)
    bottom = torch.minimum(torch.minimum(red, green), blue)
    spread = top - bottom
    hue = (green + blue - red - bottom).div_(spread.clamp(min=TINY)).add_(1)
    hue = torch.copysign(hue, green - blue) + 6 * turns[:, None, None]
    hue = hue.sub((hue / 6).floor_(), alpha=6)
    start = top.sub(spread, alpha=2)
    return torch.stack([torch.addcmul(start, spread, (hue - offset).abs_().sub_(3).abs_().clamp_(
        1, 2)) for offset in (0, 2, 4)], 1)


JITTER = (brightness, contrast, saturation, turn_hue)       # in torchvision's order


def blur(images: torch.Tensor, sigma: torch.Tensor, kernel: int) -> torch.Tensor:
    """Each image through a Gaussian of its own `sigma` (B,), cut to `kernel` pixels a side, with
    mirrored borders; one of sigma 0 stays. Two matrix products."""
    height, width = images.shape[2:]
    sigma = sigma.to(images.dtype)
    rows = blur_matrix(sigma, kernel, height)
    return multiplied(images, rows, rows if width == height else blur_matrix(sigma, kernel, width))


def blur_matrix(sigma: torch.Tensor, kernel: int, side: int) -> torch.Tensor:
    """(B, side, side): the share of each pixel (column) in each blurred one (row)."""
    away = torch.arange(kernel // 2 + 1, device=sigma.device, dtype=sigma.dtype)
    weights = torch.exp(-away.square() / (2 * sigma.clamp(min=PLAIN).square()[:, None]))
    weights = weights / (2 * weights.sum(1, keepdim=True) - 1)      # the middle counts once
    reach = reached(kernel // 2, side, sigma.device).to(sigma.dtype)
    return (weights @ reach).view(-1, side, side)


@functools.lru_cache(maxsize=8)
def reached(half: int, side: int, device: torch.device) -> torch.Tensor:
    """(half + 1, side * side): how often each pixel (column of the matrix) lies so many pixels away
    from each (row), itself or one of its mirror images beyond the border, which is not repeated."""
    pixel = torch.arange(side, device=device)
    last = side - 1
    seen = [(pixel, pixel >= 0), (-pixel, pixel > 0), (2 * last - pixel, pixel < last)]
    away = torch.arange(half + 1, device=device)[:, None, None]
    return sum((((at - pixel[:, None]).abs() == away) & there).float() for at, there in seen
               ).flatten(1)
