"""Methods are the modules of a room that have a VERSION: poisons/lsp.py is the attack `lsp`.

What commands need to know of a method, beside Config, its functions and SMOKE, it says in
upper-case constants; FACTS are those that it may leave out. A Config, or a section of it, may have
`check_images(shape)`, which raises UserError for images of a (height, width) that it cannot take:
asked before anything begins, and by --dry-run. A trained purifier may also have
`check(config, checkpoint, shape)`, which raises UserError for what it cannot apply, and
`any_size(config)`: whether its checkpoint may be of images of another size. One that is made of
others has `parts(request)`, their requests by the dotted key that names each.
"""

import importlib
import importlib.util
import pkgutil
from types import ModuleType
from typing import Any

from core import ROOT, config
from core.errors import UserError

FACTS = {
    "PATHS": (),            # keys of Config that name artefacts or files: they count by content
    "NEEDS_LABELS": False,  # a purifier whose definition needs the labels; others do not see them
    "NEEDS_CLEAN": False,   # a learner of clean labelled images, beside the set: run.clean
    "SEES_SET": False,      # a purifier that fits something to the set while it purifies it
    "TRAINED_BY": None,     # the command that trains it (core.commands), with its TrainConfig
    "CHECKPOINT": None,     # another method, whose checkpoints it applies
    "SHARED": False,        # a learner that several processes (torchrun) can train together
    "LABEL": (),            # a learner's keys of Config that stand beside every number of it
    "EVAL": "",             # of a learner: what results/reported.csv calls its way of measuring
}

# What every method of a room has beside its VERSION
CONTENTS = {"poisons": ("Config", "SMOKE", "poison", "bound"),
            "purifiers": ("Config", "SMOKE", "purify"), "learners": ("Config", "SMOKE", "fit")}


def fact(module: ModuleType, name: str) -> Any:
    """One of FACTS, as the module says it or by default."""
    return getattr(module, name, FACTS[name])


def takes_any_size(module: ModuleType, config: Any) -> bool:
    """Whether a purifier applies a checkpoint of images of another size."""
    return hasattr(module, "any_size") and module.any_size(config)


def trained_as(module: ModuleType) -> str | None:
    """The method whose checkpoint a purifier applies: its own, or its CHECKPOINT; None if it is
    not trained."""
    own = module.__name__.rpartition(".")[2] if fact(module, "TRAINED_BY") else None
    return fact(module, "CHECKPOINT") or own


def is_method(room: str, name: str) -> bool:
    """Whether a room has this method. No other module of it is imported."""
    return name.isidentifier() and importlib.util.find_spec(f"{room}.{name}") is not None \
        and hasattr(importlib.import_module(f"{room}.{name}"), "VERSION")


def list_methods(room: str) -> list[str]:
    """All methods of a room. It imports every module there: for help, errors and tests. One that
    does not import is listed too: who names it sees why."""
    def listed(name: str) -> bool:
        try:
            return is_method(room, name)
        except Exception:
            return True

    names = [found.name for found in pkgutil.iter_modules([str(ROOT / room)])]
    return sorted(name for name in names if name != "__main__" and listed(name))


def find_method(room: str, name: str, origin: str = "") -> ModuleType:
    """The module of a method. Raises UserError that names the nearest if there is none."""
    if not is_method(room, name):
        place = f"{origin}: " if origin else ""
        if name.isidentifier() and importlib.util.find_spec(f"{room}.{name}") is not None:
            raise UserError(f"{place}method: {room}/{name}.py has no VERSION, and is no method "
                            "without one")
        raise UserError(f"{place}method: there is no {room}/{name}.py"
                        + config.suggest(name, list_methods(room), "methods"))
    module = importlib.import_module(f"{room}.{name}")
    for needed in CONTENTS.get(room, ()):
        if not hasattr(module, needed):
            raise UserError(f"{room}/{name}.py has no {needed}; docs/extending.md shows what a "
                            "method has")
    return module


def returned(made: Any, kind: type, module: ModuleType) -> Any:
    """What a method's function returned. Raises UserError if that is no `kind`."""
    if not isinstance(made, kind):
        raise UserError(f"{module.__name__.replace('.', '/')}.py returned "
                        f"{type(made).__name__}, not the {kind.__name__} that a method of "
                        f"{module.__name__.partition('.')[0]}/ makes")
    return made
