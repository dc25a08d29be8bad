"""Per-image colour normalisation: no image keeps the mean and spread of its own channels.

After crop and flip; test images are left as they are. Source: code wxldragon/DUNE, its adaptive
defences, by the names that it has for them:

    picn        each channel to mean 0 and deviation 1, all three together stretched to 0..255
    histeq      the histogram of each channel made flat
    lab, yuv    each channel of CIE Lab or of YUV stretched to 0..255

`lab` and `yuv` make full contrast of what little colour an image has. If it has none, its chroma
becomes 0, which is a strong colour.

Deviations: none. On 2,000 images of CIFAR-10 `histeq` gives the bytes of DUNE's loop; of the
others' values 0.2 % (`picn`), 2 % (`yuv`) and 3 % (`lab`) are apart, as they lie within rounding of
a whole level before the fraction is dropped. DUNE trains 80 epochs at a constant rate
(`protocol=configs/learners/ecl80.yaml`).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from core.imageset import ImageSet, to_floats
from core.run import Run
from core.training import Result
from learners import colours, standard

VERSION = 1
SMOKE = standard.SMOKE
FUNCTIONS = {"picn": colours.whitened, "histeq": colours.equalized,
             "lab": colours.stretched_in_lab, "yuv": colours.stretched_in_yuv}


@dataclass(frozen=True)
class Config(standard.Config):
    mode: Literal["picn", "histeq", "lab", "yuv"] = "picn"      # which of DUNE's, see above


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on normalised images and score it on the clean `test`."""

    def transform(images, labels, step):
        levels = images.permute(0, 2, 3, 1).mul(255).round_().to(torch.uint8)
        return to_floats(FUNCTIONS[config.mode](levels)), labels

    return standard.fit(train, test, config, run, transform=transform)
