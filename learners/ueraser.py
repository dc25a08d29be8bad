"""UEraser: the loss of the hardest of K augmented copies of each image. The "adversarial
augmentation" (AA) of LE's tables.

After crop and flip an image is copied K times; each copy gets plasma brightness, plasma contrast
and shuffled channels, each with a probability, and one of TrivialAugment's operations. The loss is
the mean over images of the largest of its K cross-entropies, and the gradient goes through that
copy alone. `lite` is K = 1; `standard` K = 5 in the first epochs, then 1; `max` K = 5 throughout.
Source: Qin et al. 2023 (arXiv 2303.15127); code lafeat/ueraser and lafeat/apbench, whose
operations are kornia's (`learners/plasma.py`, `learners/trivial.py`).

Copies are K separate draws and K passes through the network, as in APBench and UEraser's LSP
script; its package draws once for the batch K times over, which gives all copies the same
TrivialAugment operation. Of batch normalisation: each pass has its own statistics and moves the
running ones, K times a step; and since a copy's other images are in its statistics, the gradient
reaches those copies of them that were not the hardest too. `form: cheap` finds the hardest copies
without gradients (which moves the running statistics as well) and passes them once more, together:
the statistics, and so the loss, are then other ones, for K + 3 passes in the place of 3 K.
Training accuracy is of the hardest copies; APBench prints that of the last.

Deviations: images are shuffled in every epoch (APBench and the LSP script never do). UEraser's JPEG
goes through the encoder in one picture a batch, as in its code, on the host.
"""

import io
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from core.batches import steps_an_epoch
from core.device import to_device
from core.errors import UserError
from core.imageset import ImageSet
from core.loop import note_beyond
from core.ranges import Count, CountOrZero, Range, Weight
from core.run import Run
from core.training import Result
from learners import standard
from learners.plasma import brighten, vary_contrast
from learners.trivial import trivial_augment

VERSION = 1
SMOKE = {**standard.SMOKE, "copies": 2, "copies_epochs": 1, "jpeg": "after"}
ROUGHEST = 0.7                  # every release's upper end of a fractal's roughness
JPEG_QUALITIES = (10, 100)      # from, and below: of `jpeg_quality: null` (code, randrange)
Roughness = Annotated[float, Range(at_least=0, at_most=ROUGHEST)]


@dataclass(frozen=True)
class Config(standard.Config):
    copies: Count = 5               # K: augmented copies of an image; every release: 5
    # epochs with K copies, then one; null: all. LSP script, APBench and D-VAE 50, readme 60
    copies_epochs: CountOrZero | None = 50
    form: Literal["full", "cheap"] = "full"     # all copies with gradients, or the hardest alone
    brightness: Weight = 0.5        # its probability per image; ueraser.py: 0.5
    contrast: Weight = 0.5          # its probability per image; ueraser.py: 0.5
    channel_shuffle: Weight = 0.5   # its probability per image; ueraser.py: 0.5
    # least roughness of brightness' fractal (the largest is 0.7); ueraser.py: 0.3
    brightness_roughness: Roughness = 0.3
    # the same of contrast's; ueraser.py: 0.3
    contrast_roughness: Roughness = 0.3
    intensity: Weight = 0.5         # least of the brightness (the largest is 1); ueraser.py: 0.5
    # none; before the other operations (APBench) or after them (UEraserJPEG in ueraser.py)
    jpeg: Literal["none", "before", "after"] = "none"
    # of JPEG, UEraserJPEG: 10; null: drawn for each batch from 10 to 99 (APBench)
    jpeg_quality: Annotated[int, Range(at_least=1, at_most=100)] | None = 10

    def check_images(self, shape: tuple[int, int]) -> None:
        super().check_images(shape)
        if min(shape) < 3:              # of TrivialAugment's sharpness
            raise UserError(f"images of {shape[0]}x{shape[1]} pixels are smaller than the kernel "
                            "of 3")


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on the hardest copies of `train`; score it on the clean `test`."""
    steps = steps_an_epoch(len(train), config.batch_size, config.drop_last)
    if config.copies > 1 and config.copies_epochs is not None and config.steps is None:
        note_beyond(run, config.epochs, copies_epochs=config.copies_epochs)

    def loss(model, images, labels, step):
        many = config.copies_epochs is None or step // steps < config.copies_epochs
        copies = [augmented(images, config, run, step * config.copies + copy)
                  for copy in range(config.copies if many else 1)]
        return hardest(model, copies, labels, config.form)

    return standard.fit(train, test, config, run, loss=loss)


def hardest(model: nn.Module, copies: list[torch.Tensor], labels: torch.Tensor, form: str
            ) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean over images of the largest cross-entropy among copies, and the logits of the copies
    that have it."""
    rows = torch.arange(len(labels), device=labels.device)

    def passed(copies: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (K, B, classes) and losses (K, B)."""
        logits = torch.stack([model(copy) for copy in copies])
        return logits, torch.stack([F.cross_entropy(one, labels, reduction="none")
                                    for one in logits])

    if form == "cheap" and len(copies) > 1:
        with torch.no_grad():
            chosen = passed(copies)[1].argmax(0)
        copies = [torch.stack(copies)[chosen, rows].to(memory_format=torch.channels_last)]
    logits, losses = passed(copies)
    largest, chosen = losses.max(0)
    return largest.mean(), logits[chosen, rows]


def augmented(images: torch.Tensor, config: Config, run: Run, number: int) -> torch.Tensor:
    """One draw, the `number`th of the training: a copy of images float (B, 3, H, W) in [0, 1]."""
    draw = run.rng("ueraser", number)
    noise = run.stream("ueraser/plasma", number, images.device)
    count, images = len(images), images.clone()

    def drawn(probability: float) -> torch.Tensor:
        """Numbers of the images that an operation takes."""
        return to_device(np.flatnonzero(draw.random(count) < probability), images.device)

    def uniform(rows: torch.Tensor, low: float, high: float) -> torch.Tensor:
        """One number each."""
        return to_device(draw.uniform(low, high, len(rows)).astype(np.float32), images.device)

    quality = config.jpeg_quality
    if config.jpeg != "none" and quality is None:
        quality = int(draw.integers(*JPEG_QUALITIES))
    if config.jpeg == "before":
        images = recoded(images, quality)
    if len(rows := drawn(config.brightness)):
        images[rows] = brighten(images[rows], uniform(rows, config.brightness_roughness, ROUGHEST),
                                uniform(rows, config.intensity, 1), noise)
    if len(rows := drawn(config.contrast)):
        images[rows] = vary_contrast(
            images[rows], uniform(rows, config.contrast_roughness, ROUGHEST), noise)
    if len(rows := drawn(config.channel_shuffle)):
        order = to_device(draw.random((len(rows), 3)).argsort(1), images.device)
        images[rows] = images[rows[:, None], order]
    images = trivial_augment(images, draw)
    if config.jpeg == "after":
        images = recoded(images, quality)
    return images.to(memory_format=torch.channels_last)


def recoded(images: torch.Tensor, quality: int) -> torch.Tensor:
    """A batch through Pillow's JPEG as one picture of square form. Half a grey level darker, as in
    the release, which rounds before the encoder and takes 0.5 off after it."""
    from PIL import Image

    count, _, height, width = images.shape
    side = math.ceil(math.sqrt(count))
    tiles = torch.zeros(side * side, height, width, 3, dtype=torch.uint8)
    tiles[:count] = (255 * images + 0.5).clamp_(0, 255).byte().permute(0, 2, 3, 1).cpu()
    tiles = tiles.view(side, side, height, width, 3).transpose(1, 2)
    buffer = io.BytesIO()
    Image.fromarray(tiles.reshape(side * height, side * width, 3).numpy()).save(
        buffer, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(buffer))).to(images.device).float()
    tiles = decoded.view(side, height, side, width, 3).transpose(1, 2).flatten(0, 1)[:count]
    return ((tiles - 0.5) / 255).clamp_(0, 1).permute(0, 3, 1, 2)
