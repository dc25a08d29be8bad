"""BDR, bit-depth reduction: keep the top bits of every value.

Source: ISS (Liu et al., ICML 2023) and its code: v & 0xC0 for two bits, levels 0, 64, 128, 192.

    iss         the low bits cleared, on the stored image
    dvae        int(4x) / 4 of x in [0, 1] for two bits, as D-VAE's code: white stays white (63
                levels above ISS's), and 192 is 191

Deviations of `dvae`: the values are stored, so 63.75, 127.5 and 191.25 are the levels 64, 128 and
191; and they are what is augmented, where D-VAE cuts the augmented image.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from core.config import added
from core.imageset import ImageSet
from core.ranges import Keys, Range
from core.run import Run

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config(Keys):
    # kept of each value's 8; APBench and D-VAE use 2, in ISS it is an option
    bits: Annotated[int, Range(at_least=1, at_most=8)] = 2
    # iss clears the low bits; dvae keeps white white, as D-VAE's code
    form: Literal["iss", "dvae"] = added("iss")


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Keep 2^bits levels (dvae: and white). Deterministic, label-free."""
    levels = torch.arange(256)
    if config.form == "iss":
        kept = levels & ~(0xFF >> config.bits)
    else:
        steps = 2**config.bits
        kept = (levels * steps // 255 * 255 / steps).round()
    kept = kept.to(torch.uint8)
    return poisoned.map_pixels(lambda images, rows: kept[images.long()], run)
