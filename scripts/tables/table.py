"""What a table is: rows and columns of steps; and which form and part of it is wanted."""

import argparse
import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from core import config
from core.errors import UserError

# A table's smaller forms: configs/tables/NAME.yaml, and the table's own section of that name
FORMS = {"quick": "the same grid on digits, in minutes",
         "small": "the same grid on 10,000 images and narrow networks, in hours on a CPU"}


@dataclass(frozen=True)
class Step:
    """One command of a row or column, before seed and set are known."""

    command: str
    yamls: tuple[str, ...]
    settings: dict[str, str]        # key -> value as it would be typed
    origin: str

    @property
    def method(self) -> str:
        """What its YAMLs name, unless the step does; '' where neither does."""
        if "method" in self.settings:
            return self.settings["method"]
        node = config.read(self.yamls).value.get("method")
        return config.text(node) if node else ""

    def fill(self, variables: dict[str, str]) -> "Step":
        """With {name}s replaced. Raises UserError for an unknown one."""
        return dataclasses.replace(self, settings={
            key: fill(value, variables, f"{self.origin}: {key}")
            for key, value in self.settings.items()})


def fill(text: str, variables: dict[str, str], where: str) -> str:
    for name in re.findall(r"\{(\w+)\}", text):
        if name not in variables:
            raise UserError(f"{where}: there is no {{{name}}} here; known: "
                            + ", ".join(f"{{{known}}}" for known in variables))
    return re.sub(r"\{(\w+)\}", lambda match: variables[match[1]], text)


@dataclass(frozen=True)
class Line:
    """A row or a column: its name, its steps, and what its published numbers are filed under."""

    name: str
    steps: tuple[Step, ...]         # that make and purify its set
    learner: Step | None            # its last step, if that is `evaluate`
    variables: dict[str, str]       # of `over`
    words: dict[str, str]           # of `let`
    reported: tuple[str, ...]       # the first is its own
    only: tuple[str, ...]           # columns of a row, or rows of a column; empty: all

    @property
    def family(self) -> str:
        """The name without what `over` adds to it."""
        return self.name.removesuffix("".join(f" {k}={v}" for k, v in self.variables.items()))


@dataclass(frozen=True)
class Derived:
    """A column that is the best of others, chosen by test accuracy: an oracle."""

    name: str
    max_of: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table as read from its YAML, on one of its data sets."""

    path: str
    title: str
    block: str                      # which data set, where the YAML names several
    dataset: str                    # of the published numbers
    source: str                     # whose numbers are `reported`, where it has one: LE, LE T3
    seeds: tuple[int, ...]
    settings: dict[str, str]
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    derived: tuple[Derived, ...]
    evaluate: Step
    size: str = ""                  # a key of FORMS
    typed: tuple[str, ...] = ()     # key=value of its methods (scripts/tables/keys.py)


@dataclass(frozen=True)
class Choice:
    """Which form and which part of a table is wanted: what a command line says of it."""

    size: str = ""                  # a key of FORMS; "": as the YAML has it
    rows: tuple[str, ...] = ()      # names, of a line or of all of an `over`; none: all
    columns: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """`--quick`, `--small`, `--rows`, `--columns` and `--seeds`."""
        sizes = parser.add_mutually_exclusive_group()
        for name, text in FORMS.items():
            sizes.add_argument(f"--{name}", dest="size", action="store_const", const=name,
                               default="", help=text)
        parser.add_argument("--rows", metavar="A,B", help="these rows only")
        parser.add_argument("--columns", metavar="A,B", help="these columns only")
        parser.add_argument("--seeds", metavar="0,1", help="these seeds")

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Choice":
        """What was typed. Raises UserError for a list of none, and for seeds that are no whole
        numbers."""
        lists = {}
        for key in ("rows", "columns", "seeds"):
            text = getattr(arguments, key)
            names = [name.strip() for name in (text or "").split(",") if name.strip()]
            if text is not None and not names:
                raise UserError(f"--{key} '{text}': it names none; leave it out for all")
            lists[key] = tuple(names)       # a part of several names may be there as often
        rows, columns, seeds = lists.values()
        if not all(seed.isdecimal() for seed in seeds):
            raise UserError(f"--seeds {arguments.seeds}: expected whole numbers, as in 0,1,2")
        return cls(arguments.size, rows, columns, tuple(dict.fromkeys(map(int, seeds))))

    @classmethod
    def split(cls, words: Iterable[str]) -> tuple["Choice", tuple[str, ...]]:
        """(the choice, the key=value) of words such as `--small seed=1`. Raises UserError for what
        is none of both."""
        parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
        cls.add_to(parser)
        try:
            arguments, settings = parser.parse_known_args(words)
        except argparse.ArgumentError as error:
            raise UserError(str(error)) from None
        return cls.of(arguments), tuple(settings)

    @property
    def words(self) -> list[str]:
        """As it would be typed."""
        parts = {"rows": self.rows, "columns": self.columns, "seeds": self.seeds}
        return [*[f"--{self.size}"] * bool(self.size),
                *(f"--{key}={','.join(map(str, part))}" for key, part in parts.items() if part)]

    def of_table(self, table: Table, written: Mapping[str, str]) -> Table:
        """The part of a table. Raises UserError for a name that it does not have, which says where
        the names are `written`, if they were not typed."""
        rows, columns = (self.lines(key, getattr(table, key),
                                    written.get(key, f"--{key}: {table.path}"))
                         for key in ("rows", "columns"))
        names = {line.name for line in columns}
        derived = tuple(line for line in table.derived if names.issuperset(line.max_of))
        return dataclasses.replace(table, rows=rows, columns=columns, derived=derived,
                                   seeds=self.seeds or table.seeds, size=self.size)

    def lines(self, key: str, lines: tuple[Line, ...], where: str) -> tuple[Line, ...]:
        known = {name for line in lines for name in (line.name, line.family)}
        wanted = rejoined(getattr(self, key), known)
        for name in wanted:
            if not any(named(line, (name,)) for line in lines):
                raise UserError(f"{where} has no '{name}'"
                                + config.suggest(name, [line.name for line in lines]))
        return tuple(line for line in lines if named(line, wanted))


WHOLE = Choice()


def rejoined(parts: tuple[str, ...], known: set[str]) -> tuple[str, ...]:
    """What was split at its commas as names again, of which some ('blur, sigma 1') have a comma
    too; the longest known name wins."""
    spaced = {re.sub(r"\s*,\s*", ", ", name): name for name in known}
    for end in range(len(parts), 1, -1):
        if (name := ", ".join(parts[:end])) in spaced:
            return spaced[name], *rejoined(parts[end:], known)
    return (parts[0], *rejoined(parts[1:], known)) if parts else ()


def named(line: Line, only: tuple[str, ...]) -> bool:
    """Whether `only`, which may name a line or all lines of one `over`, lets a line in."""
    return not only or line.name in only or line.family in only
