"""Purifiers one after another: each link purifies what the one before it left.

    chain:
      links:
        - {purifier: gray}                                  # configs/purifiers/gray.yaml
        - {purifier: mine/jpeg.yaml, keys: [jpeg.quality=50]}
        - {purifier: dvae, checkpoint: runs/checkpoints/NAME}

The bytes and the lineage are those of the links' own lines, typed one after another with the set of
the one before. A link's keys are what one would type behind its YAML (preset=, seed=, precision=
too); device and threads are the chain's, whose seed and precision also go to every link whose keys
say no other. Only the last set stays: the others are kept until it is whole, and what a link writes
beside its set goes with them.

Source: none; code liuzrcc/ImageShortcutSqueezing can apply BDR, grey scale and JPEG in this order
(`preset=iss`), which no table of it does.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from core import config as config_of
from core.applying import apply_part
from core.config import Place
from core.datasets import DataSettings
from core.errors import UserError
from core.imageset import ImageSet
from core.manual import yaml_of
from core.ranges import Keys, Range
from core.request import Request, parse
from core.run import Run

VERSION = 1
SMOKE: dict = {}
# Keys of purify.py that a link does not take: it reads the set of the one before.
NOT_A_LINKS = {"out", "limit", "smoke", "method", "checkpoint",
               *(field.name for field in dataclasses.fields(DataSettings))}
_inside: list[Path] = []        # the links' YAMLs that are being read, outermost first


@dataclass(frozen=True)
class Link(Keys):
    purifier: Place                     # the path of a YAML, or a name in configs/purifiers/
    keys: tuple[str, ...] = ()          # key=value, as typed behind that YAML
    checkpoint: Place | None = None     # a folder, for a purifier that is trained


@dataclass(frozen=True)
class Config(Keys):
    """Keys under `chain`."""

    # in the order in which they purify; ours
    links: Annotated[tuple[Link, ...], Range(at_least=1)] = (Link("gray"), Link("jpeg"))


class Endless(UserError):
    """A chain that contains itself."""


def parts(request: Request) -> dict[str, Request]:
    """The links' requests, by key. Raises UserError that names the link."""
    return {f"links.{number}": link_request(f"{request.method}.links.{number}", link, request,
                                            request.limit if number == 0 else None)
            for number, link in enumerate(request.config.links)}


def link_request(key: str, link: Link, request: Request, limit: int | None) -> Request:
    """A link as its own line would be parsed; the first one's has the chain's --limit."""
    path = Path(yaml_of("purifiers", link.purifier, f"{key}.purifier"))
    if path.resolve() in _inside:
        names = [one.name for one in (*_inside, path)]
        raise Endless(f"{key}: {' > '.join(names)}: a chain that contains itself has no end; name "
                      "other links")
    for word in link.keys:
        name = word.partition("=")[0]
        if not config_of.is_setting(word) or name in NOT_A_LINKS:
            raise UserError(f"{key}.keys: '{word}' is no key=value that a link takes: it reads the "
                            "set before it, and `checkpoint:` stands beside `purifier:`")
    given = {"data": request.data.data, "seed": request.settings.seed}
    if request.device.precision != "auto":
        given["precision"] = request.device.precision
    last = {"checkpoint": link.checkpoint}
    words = [str(path), *typed(given), *link.keys, *typed(last), *["--smoke"] * request.smoke,
             *([] if limit is None else ["--limit", str(limit)])]
    _inside.append(path.resolve())
    try:
        return parse(words, "", request.command.name, request.data_set)
    except Endless:
        raise
    except UserError as error:
        raise UserError(f"{key} ({link.purifier}): {error}") from None
    finally:
        _inside.pop()


def typed(keys: dict[str, object]) -> list[str]:
    """key=value, of those that have one."""
    return [f"{key}={value}" for key, value in keys.items() if value is not None]


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Apply every link to the set that the one before it left. Row i stays row i."""
    labels = np.zeros(len(poisoned), np.int64)      # where no link sees any
    made = dataclasses.replace(poisoned, labels=labels) if poisoned.labels is None else poisoned
    for key in run.parts:
        made = apply_part(key, made, run)
    last = dataclasses.replace(poisoned, images=made.images)
    last = last.map_pixels(lambda images, rows: images, run)
    return dataclasses.replace(last, meta={**last.meta, "lineage": made.meta["lineage"]})
