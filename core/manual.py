"""`COMMAND --help METHOD`: a method's keys with default, range and comment, and its variants.

The fields of its Config are the one place where all of that stands. Of a comment, what counts are
the lines right above a field at its indent, what stands behind it, and the lines that go on below,
indented further; what a class inherits without a word of its own keeps the comment of its parent.
"""

import ast
import dataclasses
import functools
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from core import ROOT, config, variants
from core.commands import COMMANDS, Command
from core.config import Place
from core.errors import UserError
from core.methods import CONTENTS, fact
from core.ranges import is_optional, item_of, not_none, show, types_of
from core.remembered import NAMED as NAMED_SETS

WIDTH, INDENT = 100, 38         # columns of a page; where the explanation of a key begins
CONFIGS = ROOT / "configs"


def yaml_of(room: str, word: str, where: str = "") -> str:
    """The path of a YAML: the word itself, or for `em60` and `em60.yaml`, which is no file here,
    the one of that name in configs/ROOM/. Raises UserError, which says `where` the word stands, for
    a name that is not there."""
    ending = "" if word.endswith((".yaml", ".yml")) else ".yaml"
    path = CONFIGS / room / f"{word}{ending}"
    if ending and ("/" in word or not path.is_file()):
        place = f"{where}: " if where else ""
        raise UserError(f"{place}there is no configs/{room}/{path.name}" + (
            f"; '{word}' is a method: write method={word}, or one of its YAMLs: {', '.join(of)}"
            if (of := yamls_of(room, word)) else config.suggest(word, yamls(room), "names there")))
    if not ending and ("/" in word or Path(word).exists() or not path.is_file()):
        return word
    here = Path("configs", room, path.name)
    return str(here if here.exists() and here.samefile(path) else path)


def yamls(room: str) -> list[str]:
    """Names of the YAMLs in configs/ROOM/."""
    return sorted(path.stem for path in (CONFIGS / room).glob("*.yaml"))


def yamls_of(room: str, method: str) -> list[str]:
    """Names of the YAMLs in configs/ROOM/ that are of a method."""
    def names(name: str) -> str:
        node = config.read_file(CONFIGS / room / f"{name}.yaml").value.get("method")
        return config.text(node) if node else ""

    return [name for name in yamls(room) if room in CONTENTS and names(name) == method]


@dataclass(frozen=True)
class Key:
    """One key as help prints it."""

    name: str           # as typed: em.epsilon
    default: str        # as typed; empty, where the key has to be given
    limits: str         # range or choices, in words
    comment: str        # what stands beside the field

    def lines(self) -> Iterator[str]:
        head = f"  {self.name}" + (f" = {self.default}" if self.default else "")
        text = " ".join(filter(None, (self.comment, self.limits and f"[{self.limits}]")))
        explained = textwrap.wrap(text, WIDTH - INDENT, break_long_words=False,
                                  break_on_hyphens=False) or [""]
        if len(head) < INDENT - 1:
            yield f"{head:<{INDENT}}{explained.pop(0)}".rstrip()
        else:
            yield from textwrap.wrap(head, WIDTH, subsequent_indent=" " * 6)
        for line in explained:
            yield " " * INDENT + line


def page(module: ModuleType, method: str, command: Command) -> str:
    """What `--help METHOD` prints: of a trained purifier, the half that the command reads."""
    room, trains = command.room, command.trains
    kind, prefix = module.Config, method
    if trains and hasattr(module, "TrainConfig"):
        kind, prefix = module.TrainConfig, f"{method}.train"
    title = f"{room}/{method}.py: {first_sentence(module)}"
    lines = [*textwrap.wrap(title, WIDTH, break_on_hyphens=False), "",
             f"keys of {command.line}, as key=value or in a YAML:"]
    found = list(keys(kind, prefix))
    lines += [line for key in found for line in key.lines()] or ["  none"]
    if any(".N." in key.name for key in found):
        lines.append("  N is an item of the list, counted from 0")
    if not trains and hasattr(module, "TrainConfig"):
        trainer = COMMANDS[fact(module, "TRAINED_BY")]
        lines.append(f"  {method}.train.*: keys of {trainer.line}")
    for path in (CONFIGS / room / f"{name}.yaml" for name in yamls_of(room, method)):
        lines += ["", *variant_lines(config.read_file(path), path, kind, prefix)]
    return "\n".join(lines)


def first_sentence(module: ModuleType) -> str:
    paragraph = " ".join((module.__doc__ or "").strip().partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph, maxsplit=1)[0]


# --- keys ------------------------------------------------------------------------------------


def keys(kind: type, prefix: str = "", example: Any = None) -> Iterator[Key]:
    """Keys of a Config and of the sections inside it. `example`: one whose values are defaults."""
    for field in dataclasses.fields(kind):
        hint, name = types_of(kind)[field.name], f"{prefix}.{field.name}".lstrip(".")
        default = default_of(field) if example is None else getattr(example, field.name)
        if dataclasses.is_dataclass(default):
            yield from keys(type(default), name, default)
            continue
        yield Key(name, "" if default is dataclasses.MISSING else typed(default), limits(hint),
                  comments(kind).get(field.name, ""))
        item = item_of(hint)
        if dataclasses.is_dataclass(item):
            yield from keys(item, f"{name}.N")
        if is_optional(hint) and dataclasses.is_dataclass(not_none(hint)):
            yield from keys(not_none(hint), name)


def default_of(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def typed(value: Any) -> str:
    """A value as it would be typed after `key=`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return show(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(typed, value))}]"
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {typed(item)}" for key, item in value.items()) + "}"
    return str(value) or "''"


def limits(hint: Any) -> str:
    """The range or the choices of a type, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_optional(hint):
        inner = not_none(hint)
        words = "a section" if dataclasses.is_dataclass(inner) else limits(inner) or "a text"
        return f"{words}, or null"
    if origin is Annotated:
        kind, limit = arguments
        if typing.get_origin(kind) is tuple:
            return f"{limits(kind)}, {limit} of them"
        return ("whole, " if kind is int else "") + str(limit)
    if origin is tuple:
        each = "" if dataclasses.is_dataclass(arguments[0]) else limits(arguments[0])
        return f"a list, each {each}" if each else "a list"
    if origin is Literal:
        return ", ".join(arguments)
    return {bool: "true, false", float: "any number", Place: "a path"}.get(hint, "")


@functools.cache
def comments(kind: type) -> dict[str, str]:
    """What is said beside each field of a dataclass, where it was last defined."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if dataclasses.is_dataclass(parent):
            found |= {name: text for name, text in own_comments(parent).items() if text}
    return found


def own_comments(kind: type) -> dict[str, str]:
    """What is said beside each field that a dataclass itself defines; empty, if nothing is."""
    source = textwrap.dedent(inspect.getsource(kind))
    said = {token.start[0]: token for token in
            tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT}
    alone = {row: token.start[1] for row, token in said.items() if token.line.lstrip()[0] == "#"}
    found = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        first, last = node.lineno, node.end_lineno
        rows = [row for row in range(first, last + 1) if row in said]
        while alone.get(first - 1) == node.col_offset:
            first -= 1
            rows.insert(0, first)
        while alone.get(last + 1, 0) > node.col_offset:
            last += 1
            rows.append(last)
        found[node.target.id] = " ".join(said[row].string.lstrip("# ") for row in rows)
    return found


# --- variants --------------------------------------------------------------------------------


def variant_lines(tree: config.Node, path: Path, kind: type, prefix: str) -> Iterator[str]:
    """What a YAML says of data sets and presets."""
    values, sets, presets = variants.split(tree)
    section = values
    for name in prefix.split("."):
        section = section.value.get(name, config.Node({}, str(path)))
    if prefix.count(".") == 0 and "train" in section.value:
        section = config.Node({key: node for key, node in section.value.items() if key != "train"},
                              section.origin)
    changed = [f"{prefix}.{field.name}={typed(value)}" for field in dataclasses.fields(kind)
               for value in [getattr(config.build(kind, section, prefix), field.name)]
               if value != default_of(field)]
    yield from spread(str(path.relative_to(CONFIGS.parent)),
                      " ".join([*changed, *beside(values)]) or "the defaults")
    own = values.value.get("data")
    if own is not None and sets and own.value not in sets:
        yield from spread(f"  data={own.value}", "the file's values")
    for name, changes in sets.items():
        yield from spread(f"  {chosen_by(name)}", said(changes) or "the file's values")
    for name, changes in presets.items():
        own, its_sets, _ = variants.split(changes)
        yield from spread(f"  preset={name}", said(own) or "the file's values")
        for data_set, more in its_sets.items():
            yield from spread(f"    {chosen_by(data_set)}", said(more))


def beside(values: config.Node) -> list[str]:
    """What a YAML says beside its method's section and the data set that it is meant for."""
    return [f"{key}={config.text(node)}" for key, node in values.value.items()
            if key not in ("method", "data", "preset") and not isinstance(node.value, dict)]


def chosen_by(section: str) -> str:
    """What picks a section of `for:`: a data set by its name, or like=."""
    return f"{'data' if section in NAMED_SETS else 'like'}={section}"


def said(changes: config.Node) -> str:
    """A section of a YAML as it would be typed."""
    return " ".join(leaves(changes, "")) if isinstance(changes.value, dict) else ""


def leaves(node: config.Node, name: str) -> Iterator[str]:
    if isinstance(node.value, dict):
        for key, item in node.value.items():
            yield from leaves(item, f"{name}.{key}".lstrip("."))
    else:
        yield f"{name}={config.text(node)}"


def spread(head: str, text: str) -> Iterator[str]:
    """A head and a text in the columns of the keys."""
    yield from (line[2:] for line in Key(head, "", "", text).lines())
