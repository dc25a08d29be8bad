"""YAML to frozen dataclasses, strictly.

Scalars are read by the type of the field that they fill, not by YAML's guesses: `1e-3` and
`8/255` are numbers, `off` is False for a switch and a word for a name, `010` is ten. Unknown and
repeated keys are errors that name the nearest known one; every error names file, line and key.
Several files merge left to right (lists replace, sections merge), `base: other.yaml` inside a
file goes under it, and `key=value` arguments go on top; where the field is a text, what stands
behind `=` is taken as it was typed. Files are bounded, for they may be somebody else's.
"""

import copy
import dataclasses
import difflib
import functools
import itertools
import json
import math
import os
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from core import reading
from core.errors import ConfigError, UserError
from core.ranges import is_optional, item_of, not_none, types_of

Place = typing.NewType("Place", str)    # a text that is a path, perhaps behind `folder:`
MOST_TEXT = 1 << 19     # bytes of a YAML file: some seconds
MOST_DIGITS = 100       # of a number
FLOAT32 = 3.4e38        # its largest, in which networks and optimisers compute
MOST_DEPTH, MOST_NODES = 40, 100_000    # levels, and values with aliases unfolded
TYPED = "command line"          # the origin of key=value
TRUE, FALSE, NONE = {"true", "yes", "on"}, {"false", "no", "off"}, {"null", "none", "~", ""}


@dataclasses.dataclass
class Node:
    """A piece of YAML with its place: `value` is a text, a dict or a list of nodes. Of key=value,
    `typed` is what stood behind the `=`, and `problem` why that is no YAML."""

    value: "str | dict[str, Node] | list[Node]"
    origin: str
    quoted: bool = False
    typed: str | None = None
    problem: str = ""


class Loader(yaml.SafeLoader):
    """Refuses what nests so deep that Python could not follow."""

    depth = 0

    def compose_node(self, parent, index):
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"more than {MOST_DEPTH} levels inside each other",
                self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


# --- reading and merging ---------------------------------------------------------------------


def read(files: Iterable[str | Path], overrides: Iterable[str] = ()) -> Node:
    """Merge YAML files left to right, then `key=value` overrides (dotted keys, YAML values)."""
    tree = Node({}, TYPED)
    for file in files:
        tree = merge(tree, read_file(as_path(file)))
    for override in overrides:
        apply(tree, override)
    return tree


def read_file(path: Path, parents: tuple[Path, ...] = ()) -> Node:
    """Read one YAML file; its `base:` (a file beside it, perhaps of another method that has the
    same keys) is read first and merged under it."""
    if path.resolve() in parents:
        raise UserError(f"{path}: base: the file includes itself")
    tree = parse(reading.text(path, MOST_TEXT), str(path))
    if not isinstance(tree.value, dict):
        raise UserError(f"{path}: expected `key: value` lines")
    base = tree.value.pop("base", None)
    if base is not None:
        under = read_file(path.parent / build(Place, base, "base"), (*parents, path.resolve()))
        tree = merge(renamed(under, tree.value.get("method")), tree)
    return tree


def renamed(tree: Node, method: Node | None) -> Node:
    """A base as a file with another `method:` takes it: what the base has for its own method, also
    in `for:` and `presets:`, is then that method's."""
    own = tree.value.get("method")
    if not (own and method and isinstance(own.value, str) and isinstance(method.value, str)):
        return tree

    def rename(node: Node) -> Node:
        if not isinstance(node.value, dict):
            return node
        found = {method.value if key == own.value else key: item
                 for key, item in node.value.items()}
        for key in ("for", "presets"):
            if key in found and isinstance(found[key].value, dict):
                sections = {name: rename(item) for name, item in found[key].value.items()}
                found[key] = Node(sections, found[key].origin)
        return Node(found, node.origin)

    return rename(tree)


def parse(text: str, name: str) -> Node:
    """YAML text to nodes, the caller's to change. `name` goes into every origin."""
    return copy.deepcopy(parse_once(text, name))


@functools.lru_cache(maxsize=256)           # a table's plan reads its YAMLs for every cell
def parse_once(text: str, name: str) -> Node:
    """The same, not to be changed."""
    try:
        root = yaml.compose(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = line_of(name, mark) if mark else name
        reason = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{place}: not valid YAML: {reason}") from None
    try:
        return Node({}, name) if root is None else convert(root, name, itertools.count(1))
    except RecursionError:
        raise UserError(f"{name}: an alias (*name) contains itself") from None


def line_of(name: str, mark: yaml.Mark) -> str:
    """'file.yaml:3'; of a command line there is but one."""
    return name if name == TYPED else f"{name}:{mark.line + 1}"


def convert(node: yaml.Node, name: str, number: Iterator[int]) -> Node:
    """Nodes of ours. `number` counts them: aliases, which share a node, may unfold to too many."""
    origin = line_of(name, node.start_mark)
    if next(number) > MOST_NODES:
        raise UserError(f"{origin}: more than {MOST_NODES:,} values, with aliases (*name) unfolded")
    if isinstance(node, yaml.ScalarNode):
        return Node(node.value, origin, quoted=node.style in ("'", '"'))
    if isinstance(node, yaml.SequenceNode):
        return Node([convert(item, name, number) for item in node.value], origin)
    section: dict[str, Node] = {}
    for key_node, value_node in node.value:
        place = line_of(name, key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{place}: a key is one word, not a section or list")
        key = key_node.value
        if key in section:
            raise UserError(f"{place}: repeated key '{key}'; keep one of them")
        section[key] = convert(value_node, name, number)
    return Node(section, origin)


def merge(under: Node, over: Node) -> Node:
    """Sections merge key by key; anything else is replaced by `over`."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(under.value)
    for key, node in over.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, over.origin)


def is_setting(word: str) -> bool:
    """Whether a word of a command line is key=value, and not a file whose path has a `=`."""
    return re.match(r"[A-Za-z_][\w.]*=", word) is not None


def read_typed(text: str) -> Node:
    """What stands behind `=`: YAML for numbers, switches, lists and sections, itself for texts."""
    try:
        node = parse(text, TYPED) if text.strip() else Node("", TYPED)
    except UserError as error:
        return Node(text, TYPED, typed=text, problem=str(error))
    return dataclasses.replace(node, typed=text)


def apply(tree: Node, override: str) -> None:
    """Put `a.b=value` into the tree; a number in the path picks an item of a list."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise UserError(f"'{override}' is neither a YAML file nor key=value")
    value = read_typed(text)
    node, keys = tree, path.split(".")
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node.value, list):
            if not re.fullmatch("[0-9]{1,6}", key) or int(key) >= len(node.value):
                raise UserError(f"command line: {path}: '{key}' is not one of the "
                                f"{len(node.value)} items of {'.'.join(keys[:depth])}, which "
                                "count from 0")
            if last:
                node.value[int(key)] = value
            else:
                node = node.value[int(key)]
            continue
        if not isinstance(node.value, dict):
            raise UserError(f"command line: {path}: {'.'.join(keys[:depth])} is a single value")
        if last:
            node.value[key] = value
        else:
            node = node.value.setdefault(key, Node({}, TYPED))


# --- paths -----------------------------------------------------------------------------------


def expand(text: str) -> str:
    """`~` and `~name` at the start as home folders, also behind `folder:`: after `=` no shell has
    done it."""
    before = "folder:" if text.startswith("folder:") else ""
    return before + os.path.expanduser(text.removeprefix(before))


def is_path(text: str) -> bool:
    """Whether the system could have a file of that name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def as_path(text: str | Path) -> Path:
    """A path that somebody typed: argparse's type for one."""
    return Path(expand(str(text)))


# --- typed values ----------------------------------------------------------------------------


def build(kind: Any, node: Node, key: str) -> Any:
    """Turn a node into a value of type `kind`: a dataclass, bool, int, float, str, Literal,
    `X | None`, or `tuple[X, ...]`. `key` is the dotted name for messages."""
    if typing.get_origin(kind) is Annotated:        # with a range, which the Config itself checks
        kind = typing.get_args(kind)[0]
    if kind is Place:
        path = expand(build(str, node, key))
        if not is_path(path):
            raise UserError(f"{node.origin}: {key}: {path!r} has a character that no path has")
        return path
    if kind is str and node.typed is not None:
        return node.typed
    if node.problem and not is_optional(kind):
        raise UserError(node.problem)
    if dataclasses.is_dataclass(kind):
        return build_dataclass(kind, node, key)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_optional(kind):
        word = node.value if node.typed is None else node.typed.strip()
        if isinstance(word, str) and not node.quoted and word.lower() in NONE:
            return None
        return build(not_none(kind), node, key)
    if origin is tuple:
        if not isinstance(node.value, list):
            raise UserError(f"{node.origin}: {key}: expected a list, as in [1, 2]")
        return tuple(build(arguments[0], item, f"{key}.{i}") for i, item in enumerate(node.value))
    if not isinstance(node.value, str):
        raise UserError(f"{node.origin}: {key}: expected a single value, not a section or list")
    if origin is Literal:
        return read_choice(arguments, node, key)
    return read_scalar(kind, node, key)


def read_choice(choices: tuple[str, ...], node: Node, key: str) -> str:
    word = node.value.strip()
    switch = "true" if word.lower() in TRUE else "false" if word.lower() in FALSE else None
    if word in choices:
        return word
    if switch in choices:       # `off` where `false` is a choice
        return switch
    raise UserError(f"{node.origin}: {key}: '{word}' is not one of {', '.join(choices)}"
                    + suggest(word, choices, None))


def read_scalar(kind: type, node: Node, key: str) -> Any:
    text = node.value.strip()
    if kind is str:
        return node.value if node.quoted else text
    if kind is bool:
        if text.lower() in TRUE | FALSE:
            return text.lower() in TRUE
        raise UserError(f"{node.origin}: {key}: '{text}' is not true or false")
    number = read_number(text)
    if number is None:
        raise UserError(f"{node.origin}: {key}: '{text}' is not a number")
    if kind is float and abs(number) > FLOAT32:
        raise UserError(f"{node.origin}: {key}: {text} is larger than any number that counts here")
    if kind is float:
        return float(number)        # 5 and 5.0 must have one fingerprint
    if number != int(number):
        raise UserError(f"{node.origin}: {key}: {text} is not a whole number")
    return int(number)


def read_number(text: str) -> float | int | None:
    """`3`, `-1.5`, `1e-3`, `8/255`: what a person would read as a number; else None."""
    plain = r"[+-]?(?:\d+(?:_\d+)*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
    match = re.fullmatch(rf"({plain})(?:\s*/\s*({plain}))?", text)
    if not match or len(text) > MOST_DIGITS:
        return None
    top, bottom = float(match[1]), float(match[2] or 1)
    if not bottom or not math.isfinite(top / bottom):
        return None
    return int(match[1]) if re.fullmatch(r"[+-]?\d+", text) else top / bottom


def build_dataclass(kind: type, node: Node, prefix: str) -> Any:
    if not isinstance(node.value, dict):
        raise UserError(f"{node.origin}: {prefix or 'the file'}: expected a section of `key: value`"
                        f" with {', '.join(field.name for field in dataclasses.fields(kind))}")
    kinds = types_of(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    dotted = f"{prefix}." if prefix else ""
    values = {}
    for key, child in node.value.items():
        if key not in known:
            items = [f"{name}.0.{field.name}" for name in known
                     for field in fields_of_items(kinds[name])]
            raise UserError(f"{child.origin}: unknown key '{dotted}{key}'"
                            + suggest(key, [dotted + name for name in (*known, *items)]))
        values[key] = build(kinds[key], child, dotted + key)
    for field in dataclasses.fields(kind):
        if field.name not in values and field.default is dataclasses.MISSING \
                and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{node.origin}: missing key '{dotted}{field.name}'")
    try:
        return kind(**values)
    except ConfigError as error:
        raise UserError(f"{origin_of(node, error.key)}: {dotted}{error.key}: {error}") from None


def origin_of(node: Node, key: str) -> str:
    """The place of a dotted key below a node, or of the last part of it that is written there."""
    for part in key.split("."):
        inside = node.value
        if isinstance(inside, list):
            inside = {str(number): item for number, item in enumerate(inside)}
        if isinstance(inside, str) or part not in inside:
            break
        node = inside[part]
    return node.origin


def fields_of_items(hint: Any) -> tuple[dataclasses.Field, ...]:
    """Of `tuple[X, ...]` those of the dataclass X; of anything else none."""
    item = item_of(hint)
    return dataclasses.fields(item) if dataclasses.is_dataclass(item) else ()


def suggest(word: str, known: Sequence[str], what: str | None = "known keys") -> str:
    """'; did you mean ...?' for the known name that the word, or for a dotted one its last part, is
    nearest to; else the list of them all, unless `what` is None. The first of equally near names
    wins."""
    names = {**{name.rpartition(".")[2]: name for name in reversed(known)},
             **{name: name for name in known}}
    near = difflib.get_close_matches(word.lower(), list(names), n=1, cutoff=0.65)
    if near:
        return f"; did you mean '{names[near[0]]}'?"
    return f"; {what}: {', '.join(known)}" if known and what is not None else ""


# --- as it would be typed --------------------------------------------------------------------


def text(node: Node) -> str:
    """A node as it would be typed after `key=`: what `apply` reads back to the same."""
    if isinstance(node.value, dict):
        return "{" + ", ".join(f"{key}: {text_inside(item)}"
                               for key, item in node.value.items()) + "}"
    if isinstance(node.value, list):
        return "[" + ", ".join(map(text_inside, node.value)) + "]"
    return node.value


def text_inside(node: Node) -> str:
    """A node as it would be typed in a list or section: there, a text that YAML would read
    otherwise is quoted."""
    if not isinstance(node.value, str):
        return text(node)
    if not node.quoted:
        try:
            again = parse(f"[{node.value}]", TYPED).value
        except UserError:
            again = []
        if [item.value for item in again] == [node.value]:
            return node.value
    return json.dumps(node.value)


# --- writing ---------------------------------------------------------------------------------


def added(default: Any) -> Any:
    """The default of a Config's key that came after records were made with the method.

    At its default it enters no fingerprint, so that they still count as done. The default must be
    what the method did before the key was there.
    """
    return dataclasses.field(default=default, metadata={"added": True})


def plain(value: Any, *, identity: bool = False) -> Any:
    """A config as dicts, lists and scalars, for YAML and JSON. With `identity` without the keys
    that were `added` and are at their default: what fingerprints and lineages hold."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name), identity=identity)
                for f in dataclasses.fields(value)
                if not (identity and f.metadata.get("added")
                        and getattr(value, f.name) == f.default)}
    if isinstance(value, (list, tuple)):
        return [plain(item, identity=identity) for item in value]
    if isinstance(value, dict):
        return {key: plain(item, identity=identity) for key, item in value.items()}
    return value


def sections(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A config and every one inside it, also in lists, each with the dotted name that it stands
    under."""
    inside: Iterable[tuple[Any, Any]] = ()
    if dataclasses.is_dataclass(value):
        yield name, value
        inside = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif isinstance(value, (list, tuple)):
        inside = enumerate(value)
    for key, item in inside:
        yield from sections(item, f"{name}.{key}")


def dump(value: Any) -> str:
    """Resolved YAML that `read` takes back to the same config."""
    return yaml.safe_dump(plain(value), sort_keys=False, default_flow_style=None, width=96)


def rebuild(kind: type, value: dict, where: str) -> Any:
    """A dataclass back from its `plain` form; `where` names the file in errors."""
    return build(kind, parse(dump(value), where), "")
