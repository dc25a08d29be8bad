"""BDR, bit-depth reduction: keep the top bits of every value.

Source: ISS (Liu et al., ICML 2023) and its code: v & 0xC0 for two bits, levels 0, 64, 128, 192
(defence notes, section 4).
"""

from dataclasses import dataclass

from core.config import in_range
from core.imageset import ImageSet
from core.run import Run

VERSION = 1
SMOKE: dict = {}


@dataclass(frozen=True)
class Config:
    bits: int = 2           # APBench and D-VAE use 2; an option in ISS

    def __post_init__(self) -> None:
        in_range("bits", self.bits, at_least=1, at_most=8)


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Clear the low 8 - bits bits. Deterministic, label-free."""
    mask = 0xFF & ~(0xFF >> config.bits)
    return poisoned.map_pixels(lambda images, rows: images.bitwise_and(mask), run)
