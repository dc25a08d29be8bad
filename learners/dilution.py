"""Dilution: a few clean labelled images are trained on beside the set.

Standard training otherwise: an epoch is a pass over both. How many is `clean_split`'s matter.
Source: BridgePure (arXiv 2412.21061), table 6: 500 or 4,000 clean images more.

Deviations: BridgePure adds images that are not among the first 40,000, which it poisons; presets
`n500` and `n4000` add the last ones of the data set. A set whose clean images stand in the place of
poisoned ones, as with `poison_rate` of ISS's code, is made by `python -m poisons ... fraction=`.
"""

from dataclasses import dataclass

from core.imageset import ImageSet, joined
from core.run import Run
from core.training import Result
from learners import standard

VERSION = 1
SMOKE = standard.SMOKE
NEEDS_CLEAN = True


@dataclass(frozen=True)
class Config(standard.Config):
    """The keys of standard training; `clean` and `clean_split` say which images are added."""


def fit(train: ImageSet, test: ImageSet, config: Config, run: Run) -> Result:
    """Train a fresh classifier on `train` and `run.clean` together and score it on the clean
    `test`."""
    return standard.fit(joined(train, run.clean), test, config, run)
