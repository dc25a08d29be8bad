"""The range of a Config's key, written once, as the type of its field.

    @dataclass(frozen=True)
    class Config(Keys):
        epsilon: LinfRadius = 8 / 255
        bits: Annotated[int, Range(at_least=1, at_most=8)] = 2
        clip_norm: Positive | None = None               # null stays null
        milestones: tuple[Count, ...] = ()              # of each item
        stages: Annotated[tuple[Stage, ...], Range(at_least=1)] = (Stage(),)    # of their number

`Keys` refuses a Config with a value outside, wherever it is made; `core/config.py` adds the file
and line of the value, and `core/manual.py` prints the range. What relates several keys is said in
`__post_init__`, after `super().__post_init__()`.
"""

import functools
import math
import types
import typing
from dataclasses import dataclass, fields
from typing import Annotated, Any, Union

from core.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Limits of a number, or of the length of a list. NaN and infinity are outside of every one."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    in_steps_of: int | None = None      # from `at_least` on

    def __contains__(self, value: float) -> bool:
        return (math.isfinite(value)
                and (self.above is None or value > self.above)
                and (self.at_least is None or value >= self.at_least)
                and (self.below is None or value < self.below)
                and (self.at_most is None or value <= self.at_most)
                and (self.in_steps_of is None or not (value - self.at_least) % self.in_steps_of))

    def __str__(self) -> str:
        words = {"above": self.above, "at least": self.at_least, "below": self.below,
                 "at most": self.at_most}
        said = " and ".join(f"{word} {show(limit)}" for word, limit in words.items()
                            if limit is not None)
        return said + (f" in steps of {self.in_steps_of}" if self.in_steps_of else "")

    def check(self, key: str, value: Any) -> None:
        """Raise ConfigError if `value` lies outside; the message says the range."""
        if isinstance(value, tuple):
            if len(value) not in self:
                raise ConfigError(key, f"a list of {len(value)} is out of range: its length must "
                                       f"be {self}")
        elif value not in self:
            raise ConfigError(key, f"{show(value)} is out of range: it must be {self}")


class BudgetRange(Range):
    """Of a budget in [0, 1] units: catches grey levels such as `8`, and what rounding removes."""

    def check(self, key: str, value: float) -> None:
        if value > 1:
            raise ConfigError(key, f"{value:g} is above 1, but budgets are in [0, 1] units: "
                                   f"write {value:g}/255")
        if self.above is not None and 0 < value <= self.above:
            raise ConfigError(key, f"{255 * value:.3g}/255 is no more than half a grey level and "
                                   "is lost in rounding")
        super().check(key, value)


MOST_WHOLE = 2**63 - 1              # of int64, which every whole number becomes
Count = Annotated[int, Range(at_least=1)]
CountOrZero = Annotated[int, Range(at_least=0)]
BatchSize = Annotated[int, Range(at_least=2)]           # batch norm needs two
Positive = Annotated[float, Range(above=0)]
PositiveOrZero = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(above=0, at_most=1)]
Weight = Annotated[float, Range(at_least=0, at_most=1)]
BelowOne = Annotated[float, Range(at_least=0, below=1)]
StepSize = Annotated[float, BudgetRange(above=0, at_most=1)]            # in [0, 1] units
Levels = Annotated[float, BudgetRange(at_least=0, at_most=1)]           # in [0, 1] units, or none
LinfRadius = Annotated[float, BudgetRange(above=0.5 / 255, at_most=1)]  # stored in grey levels


class Keys:
    """What every Config derives from: one with a value outside of its range cannot be made."""

    def __post_init__(self) -> None:
        kinds = types_of(type(self))
        for field in fields(self):
            check(kinds[field.name], getattr(self, field.name), field.name)


@functools.cache
def types_of(config: type) -> dict[str, Any]:
    """Type of each field of a dataclass, with its ranges."""
    return typing.get_type_hints(config, include_extras=True)


def check(kind: Any, value: Any, key: str) -> None:
    """Raise ConfigError if `value`, or an item of it, is out of a range in the type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        for mark in arguments[1:]:
            mark.check(key, value)
        check(arguments[0], value, key)
    elif is_optional(kind) and value is not None:
        check(not_none(kind), value, key)
    elif kind is int and abs(value) > MOST_WHOLE:
        raise ConfigError(key, f"{value} is larger than any whole number that counts here")
    elif origin is tuple:
        for number, item in enumerate(value):
            check(arguments[0], item, f"{key}.{number}")


def is_optional(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def item_of(hint: Any) -> Any:
    """X of `tuple[X, ...]`, also with a range; else None."""
    if typing.get_origin(hint) is Annotated:
        return item_of(typing.get_args(hint)[0])
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None


def not_none(kind: Any) -> Any:
    """X of `X | None`."""
    return next(part for part in typing.get_args(kind) if part is not types.NoneType)


def show(number: float) -> str:
    """A number for people: integers in full, `0.5/255` where it is one of grey levels."""
    if isinstance(number, int):
        return str(number)
    levels = f"{255 * number:.4g}"
    exact = 1e-4 < number < 1 and math.isclose(float(levels) / 255, number, rel_tol=1e-12)
    return f"{levels}/255" if exact and len(f"{number:g}") > len(levels) + 2 else f"{number:g}"
