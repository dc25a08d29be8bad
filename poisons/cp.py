"""CP: contrastive poisoning, class-wise (CP-C) and sample-wise (CP-S).

Noise with which the loss of SimCLR, MoCo or BYOL is small without anything learned of the images,
so that a linear classifier on such an encoder fails. Sample-wise noise starts from a class-wise
poison. The noise of a class needs labels; the learner that it is made against does not see them.
Source: He, Zha and Katabi, ICLR 2023; code kaiwenzha/contrastive-poisoning.

Deviations: batch norm's statistics are of the whole batch (the release's of each GPU's share, 128
of 512 images: `norm_images`); rounding down meets whole levels of noise as whole ones; at 96 pixels
and above the encoder has the ImageNet stem; on a GPU the surrogate learns in bf16, the release's in
float32. The noise of every row is in memory, in float32: 614 MB for CIFAR-10, and 0.6 MB an image
at 224x224.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from core import files
from core.artefact import read_array, read_meta
from core.config import Place
from core.errors import ConfigError, UserError
from core.imageset import ImageSet
from core.run import Run
from poisons.contrast import OR_OF_CLASSES, Shared, bound, craft, refuse_idle, uniform
from poisons.noise import Noise, publish, require_rows, within

__all__ = ["Config", "bound", "poison"]

VERSION = 1
SMOKE = {"width": 8, "batch_size": 64, "epochs": 2, "train_steps": 2, "noise_batches": 2}
PATHS = ("start",)


@dataclass(frozen=True)
class Config(Shared):
    # one noise a class (CP-C) or one an image (CP-S)
    kind: Literal["classwise", "samplewise"] = "classwise"
    # of sample-wise noise: the folder of a class-wise poison, whose noise each row starts from, as
    # in the release; null: uniform noise, which the release calls weaker
    start: Place | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_idle(self)
        if self.start is not None and self.kind == "classwise":
            raise ConfigError("start", "class-wise noise starts from uniform noise; leave it out")


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus the noise of its class, which is in noise.npy
    (float32 (K, 3, H, W), [0, 1] units) too, or plus its own. With `fraction=`, noise.npy stays in
    the folder of the poison that the part is taken from."""
    by_class = config.kind == "classwise"
    noise = Noise(first_noise(clean, config, run).to(run.device.torch))
    craft(clean, noise, config, run, by_class=by_class)
    if by_class and run.world.leads:
        files.write_array(run.work / "noise.npy", noise.delta.cpu().numpy())
    return publish(clean, noise, config.rounding, run, by_class=by_class)


def first_noise(clean: ImageSet, config: Config, run: Run) -> torch.Tensor:
    """Of each class, or of each row."""
    if config.kind == "classwise":
        drawn = torch.rand(clean.num_classes, 3, *clean.image_shape,
                           generator=run.stream("cp/start"))
        return within(config.epsilon, drawn)
    if config.start is None:
        return uniform(clean, config, run)
    require_rows(clean, run, OR_OF_CLASSES)
    of_class = torch.from_numpy(class_noise(Path(config.start), clean))
    return of_class.clamp_(-config.epsilon, config.epsilon)[clean.labels_at()]


def class_noise(path: Path, clean: ImageSet) -> np.ndarray:
    """The noise of each class that a class-wise poison of such images holds. Raises UserError if
    it is none."""
    meta = read_meta(path, "imageset")
    if "noise.npy" not in meta["digests"]:
        raise UserError(f"{path} holds no noise of classes; make it with method=cp and "
                        "cp.kind=classwise, and without fraction=")
    found, needed = read_array(path / "noise.npy", meta), (clean.num_classes, 3, *clean.image_shape)
    if found.shape != needed:
        raise UserError(f"{path / 'noise.npy'} is {found.shape}, but the clean images need "
                        f"{needed}")
    return found.copy()
