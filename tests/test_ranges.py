"""Ranges stand on the fields: a value just inside is taken, one just outside refused with its
place, for every key of every method and command."""

import dataclasses
import importlib
import math
import typing
from dataclasses import dataclass
from typing import Annotated

import pytest

from core import config, ranges
from core.datasets import DataSettings
from core.device import DeviceSettings
from core.errors import ConfigError, UserError
from core.methods import list_methods
from core.ranges import Count, CountOrZero, Keys, LinfRadius, Positive, Range, StepSize
from core.settings import Settings

ROOMS = ("poisons", "purifiers", "learners")
MODULES = {f"{room}.{name}": importlib.import_module(f"{room}.{name}")
           for room in ROOMS for name in list_methods(room)}
NEEDED = {"method": "em", "kld_target": 1.0, "output": "both"}      # keys without a default


def all_keys(kind: type) -> set[type]:
    """A Config and those inside it."""
    inside = {part for hint in ranges.types_of(kind).values() for part in parts(hint)
              if dataclasses.is_dataclass(part)}
    return {kind}.union(*map(all_keys, inside))


def parts(hint):
    yield hint
    for argument in typing.get_args(hint):
        if not isinstance(argument, Range | str):
            yield from parts(argument)


def limits(hint, listed=False):
    """(range, type, whether of a list's items) of each range in a type."""
    if typing.get_origin(hint) is Annotated:
        kind, *found = typing.get_args(hint)
        if typing.get_origin(kind) is not tuple:
            yield from ((mark, kind, listed) for mark in found)
        yield from limits(kind, listed)
    else:
        for argument in typing.get_args(hint):
            if not isinstance(argument, str):
                yield from limits(argument, listed or typing.get_origin(hint) is tuple)


CONFIGS = {Settings, DataSettings, DeviceSettings}.union(*(
    all_keys(half) for module in MODULES.values() for half in
    (module.Config, getattr(module, "TrainConfig", module.Config))))
LIMITED = [(kind, name, limit, number, listed)
           for kind in sorted(CONFIGS, key=lambda kind: (kind.__module__, kind.__qualname__))
           for name, hint in ranges.types_of(kind).items()
           for limit, number, listed in limits(hint)]


def edges(limit: Range, number: type) -> tuple[list, list]:
    """Values just inside a range, and just outside."""
    def after(value, way):
        return value + way if number is int else math.nextafter(value, way * math.inf)

    inside, outside = [], []
    for bound, way in ((limit.at_least, -1), (limit.at_most, 1)):
        if bound is not None:
            inside.append(number(bound))
            outside.append(after(number(bound), way))
    for bound, way in ((limit.above, 1), (limit.below, -1)):
        if bound is not None:
            inside.append(after(number(bound), way))
            outside.append(number(bound))
    if limit.in_steps_of:
        inside.append(limit.at_least + limit.in_steps_of)
        outside.append(limit.at_least + 1)
    return inside, outside


def test_every_config_refuses_by_its_fields_and_they_have_ranges():
    assert [kind for kind in CONFIGS if not issubclass(kind, Keys)] == []
    numbers = {(kind, name) for kind in CONFIGS for name, hint in ranges.types_of(kind).items()
               if {int, float} & set(parts(hint))}
    without = numbers - {(kind, name) for kind, name, *_ in LIMITED}
    assert {name for _, name in without} == {"mean"}        # any finite number


def refusal(kind: type, values: dict) -> str:
    """Why a Config cannot be made; keys that relate to each other may be the reason."""
    try:
        kind(**values)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "name", "limit", "number", "listed"), LIMITED, ids=lambda part: (
    f"{part.__module__}.{part.__qualname__}" if isinstance(part, type) else str(part)))
def test_each_range_refuses_just_outside_and_takes_just_inside(kind, name, limit, number, listed):
    needed = {key: NEEDED[key] for key in NEEDED if key in ranges.types_of(kind) and key != name
              and kind.__dataclass_fields__[key].default is dataclasses.MISSING}
    inside, outside = edges(limit, number)
    made = (lambda value: (value,)) if listed else (lambda value: value)
    for value in inside:
        assert f"it must be {limit}" not in refusal(kind, {**needed, name: made(value)})
    for value in outside:
        with pytest.raises(ConfigError) as caught:
            kind(**needed, **{name: made(value)})
        key = f"{name}.0" if listed else name
        assert caught.value.key == key
        lines = [*(f"{key}: {text}" for key, text in needed.items()),
                 f"{name}:", f"  - {value!r}" if listed else f"  {value!r}"]
        with pytest.raises(UserError) as caught:
            config.build(kind, config.parse("\n".join(lines), "a.yaml"), "m")
        assert str(caught.value).startswith(f"a.yaml:{len(lines)}: m.{key}: ")


# --- the parts -------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "inside", "outside", "words"), [
    (Range(above=0), [1e-9, 5], [0, -1, math.nan, math.inf], "above 0"),
    (Range(at_least=1), [1, 2], [0.999, -math.inf], "at least 1"),
    (Range(below=1), [0.999], [1, 2], "below 1"),
    (Range(at_most=100), [100], [100.5], "at most 100"),
    (Range(at_least=32, in_steps_of=32), [32, 96], [0, 31, 48], "at least 32 in steps of 32"),
    (Range(above=0, at_most=1), [1], [0, 2], "above 0 and at most 1"),
])
def test_a_range_takes_what_is_inside_and_says_itself(limit, inside, outside, words):
    for value in inside:
        limit.check("key", value)
    for value in outside:
        with pytest.raises(ConfigError, match=f"out of range: it must be {words}$") as caught:
            limit.check("key", value)
        assert caught.value.key == "key"


def test_whole_numbers_are_shown_in_full_and_grey_levels_as_such():
    with pytest.raises(ConfigError, match=r"^4294967297 .* below 4294967296$"):
        Range(below=2**32).check("seed", 2**32 + 1)
    with pytest.raises(ConfigError, match=r"^0.5 .* above 1$"):
        Range(above=1).check("x", 0.5)
    assert [ranges.show(value) for value in (8 / 255, 0.8 / 255, 1.6 / 255, 0.002, 1.0, 0.9)] == \
        ["8/255", "0.8/255", "1.6/255", "0.002", "1", "0.9"]


def test_a_budget_in_grey_levels_is_caught():
    ranges.check(StepSize, 1.0, "step_size")
    with pytest.raises(ConfigError, match=r"8 is above 1, .* write 8/255"):
        ranges.check(StepSize, 8, "step_size")
    with pytest.raises(ConfigError, match="above 0 and"):
        ranges.check(StepSize, 0, "step_size")
    with pytest.raises(ConfigError, match=r"0\.4/255 is no more than half a grey level"):
        ranges.check(LinfRadius, 0.4 / 255, "epsilon")


@dataclass(frozen=True)
class Part(Keys):
    size: Count = 1


@dataclass(frozen=True)
class Whole(Keys):
    clip: Positive | None = None
    epochs: tuple[CountOrZero, ...] = (3,)
    parts: Annotated[tuple[Part, ...], Range(at_least=1)] = (Part(),)
    part: Part = Part()
    weights: tuple[Positive, ...] | None = None


@pytest.mark.parametrize(("text", "said"), [
    ("clip: 0", "a.yaml:1: clip: 0 is out of range: it must be above 0"),
    ("epochs:\n- 0\n- -1", "a.yaml:3: epochs.1: -1 is out of range: it must be at least 0"),
    ("parts: []", "a.yaml:1: parts: a list of 0 is out of range: its length must be at least 1"),
    ("parts:\n- size: 2\n- {size: 0}", "a.yaml:3: parts.1.size: 0 is out of range"),
    ("clip: 1\npart:\n  size: 0", "a.yaml:3: part.size: 0 is out of range"),
    ("weights:\n  - 1\n  - 0", "a.yaml:3: weights.1: 0 is out of range"),
])
def test_optional_values_items_and_sections_are_checked_where_they_are_written(text, said):
    with pytest.raises(UserError) as caught:
        config.build(Whole, config.parse(text, "a.yaml"), "")
    assert str(caught.value).startswith(said)


def test_null_stays_null():
    built = config.build(Whole, config.parse("clip: null\nweights: null", "a.yaml"), "")
    assert built == Whole()
    assert config.plain(built)["clip"] is None
