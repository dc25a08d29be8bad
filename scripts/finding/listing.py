"""List what there is.

    python scripts/list.py                  methods with their presets, data sets, tables, figures
    python scripts/list.py attacks          one part: attacks, purifiers, learners, methods,
                                            presets, data, tables, figures
    python scripts/list.py jcdp             a method's keys, as --help prints them; also what any
                                            other name is: a YAML, a preset, a table, a data set
    python scripts/list.py t_star           what a key means, wherever it is one
    python scripts/list.py 65.6             where a number is from
    python scripts/list.py cite RECORD      a sentence that cites it, and BibTeX
    python scripts/list.py runs [FOLDER] [--clean [--yes]]
                                            the work on this disk and its size; --clean removes what
                                            nothing needs, when asked
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from core import ROOT, config, datasets, manual, variants
from core.command import Parser, command
from core.commands import COMMANDS, Command
from core.config import as_path
from core.device import DeviceSettings
from core.errors import UserError
from core.methods import fact, find_method, list_methods
from core.names import printable
from core.outlines import SIZES
from core.settings import Settings
from scripts.documents.methods import first_comment
from scripts.finding import cite, clean, numbers
from scripts.pictures.figures import PAPER, table_of
from scripts.tables import spec
from scripts.tables.table import FORMS, Table

APPLIED_BY = {"poisons": "poison", "purifiers": "purify", "learners": "evaluate"}
INDENT = 26             # columns of names
Lines = Iterator[tuple[str, str]]       # a name, and what it is


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/list.py", __doc__)
    parser.add_argument("words", nargs="*", metavar="NAME | runs [FOLDER] | cite RECORD")
    parser.add_argument("--clean", action="store_true",
                        help="of runs: remove what nothing needs, after asking")
    parser.add_argument("--yes", action="store_true", help="of --clean: do not ask")
    arguments = parser.parse_intermixed_args(argv)
    first, *rest = arguments.words or [""]
    if (arguments.clean and first != "runs") or (arguments.yes and not arguments.clean):
        parser.error("--clean goes with runs, and --yes with --clean")
    if first in ("runs", "cite") and len(rest) > 1:
        parser.error(f"{first} takes one folder")
    if first == "runs":
        clean.show(as_path(rest[0] if rest else "runs"), clean=arguments.clean, yes=arguments.yes)
    elif first == "cite" and rest:
        print(cite.text(as_path(rest[0])))
    elif first == "cite":
        parser.error("cite takes a record's folder")
    elif not first:
        print("\n\n".join(f"{name}, {where}\n" + "\n".join(in_columns(lines()))
                          for name, (where, lines) in PARTS.items()))
    else:
        print("\n\n".join(paragraph for word in arguments.words for paragraph in told(word)))


def in_columns(lines: Lines) -> Iterator[str]:
    for name, text in lines:
        yield printable(f"  {name:<{INDENT - 1}} {text}".rstrip())


# --- the parts -------------------------------------------------------------------------------


def methods_of(room: str) -> Callable[[], Lines]:
    """Every YAML of a room with its presets, and the methods that have none of their name."""

    def lines() -> Lines:
        methods = list_methods(room)
        for name in sorted({*methods, *manual.yamls(room)}):
            path = manual.CONFIGS / room / f"{name}.yaml"
            yield name, (manual.first_sentence(find_method(room, name)) if name in methods
                         else first_comment(path))
            for preset, text in presets(path):
                yield f"  {preset}", text

    return lines


def presets(path: Path) -> Lines:
    """Of a method's YAML, with what each changes; on some data sets it may change more."""
    if path.is_file():
        for name, changes in variants.split(config.read_file(path))[2].items():
            own, sets, _ = variants.split(changes)
            more = f"also changed for {', '.join(map(manual.chosen_by, sets))}" if sets else ""
            yield f"preset={name}", "; ".join(filter(None, (manual.said(own), more)))


def data_sets() -> Lines:
    """As core/datasets.py explains `data=`, with the sizes of those that are downloaded."""
    for line, text in columns_of(datasets.__doc__):
        for name in line.split(", "):
            _, train, test, classes, side = SIZES.get(name, ("", 0, 0, 0, 0))
            size = (f"{train:,} images for training, {test:,} for testing, {side}x{side}, "
                    f"{classes} classes")
            yield name, f"{size}; {text}" if train else text


def columns_of(text: str) -> Lines:
    """Names and explanations of the indented block of a docstring."""
    block = re.search(r"(?:^ {4}.*\n)+", text, re.MULTILINE)[0]
    for entry in re.split(r"\n(?= {4}\S)", block):
        name, explained = re.split(r"\s{2,}", entry.strip(), maxsplit=1)
        yield name, " ".join(explained.split())


def tables() -> Lines:
    """Every table that is no figure's, with its size and the line that makes it."""
    for name in manual.yamls("tables"):
        if name not in (*PAPER, *FORMS):
            path = manual.CONFIGS / f"tables/{name}.yaml"
            yield name, f"{first_comment(path)} {size_of(spec.read(str(path)))}: {line_of(name)}"


def size_of(found: tuple[Table, ...]) -> str:
    """'[4 rows x 6 columns, 3 seeds]', of one of its data sets."""
    rows, columns, seeds = (len(getattr(found[0], key)) for key in ("rows", "columns", "seeds"))
    of = f", on {', '.join(table.block for table in found)}" if len(found) > 1 else ""
    return f"[{rows} rows x {columns} columns, {seeds} seed{'s' * (seeds > 1)}{of}]"


def line_of(table: str) -> str:
    own = ROOT / f"scripts/{table}.sh"
    return f"bash scripts/{own.name}" if own.is_file() else f"bash scripts/table.sh {table}"


def figures() -> Lines:
    """The papers' figures, as the tables behind them explain them."""
    for name in PAPER:
        table = manual.CONFIGS / f"tables/{table_of(name)}.yaml"
        yield name, f"{first_comment(table)} python scripts/figures.py {name}"


PARTS = {
    "attacks": ("python -m poisons NAME data=...", methods_of("poisons")),
    "purifiers": ("python purify.py NAME data=...", methods_of("purifiers")),
    "learners": ("python evaluate.py NAME data=...", methods_of("learners")),
    "data": ("data=NAME", data_sets),
    "tables": ("with --quick for minutes, --small for hours", tables),
    "figures": ("with --quick for minutes, --small for hours", figures),
}


GROUPS = {"methods": ("attacks", "purifiers", "learners"), "poisons": ("attacks",),
          **{name: (name,) for name in PARTS}}


def all_presets() -> Iterator[tuple[str, str, str, str]]:
    """Room, YAML, preset and what it changes."""
    for room in APPLIED_BY:
        for yaml in manual.yamls(room):
            for preset, text in presets(manual.CONFIGS / room / f"{yaml}.yaml"):
                yield room, yaml, preset, text


# --- one name --------------------------------------------------------------------------------


def told(word: str) -> list[str]:
    """Paragraphs on everything that a word names. Raises UserError if that is nothing."""
    found = ["\n".join(in_columns(PARTS[part][1]())) for part in GROUPS.get(word, ())]
    if word == "presets":
        found.append("\n".join(in_columns(
            (f"{yaml} {preset}", text) for _, yaml, preset, text in all_presets())))
    found += ["\n".join(line for key, line in keys() if word in (key, key.rpartition(".")[2]))]
    found += ["\n".join(named(word))]
    if number := re.fullmatch(r"(\d+\.\d+)%?", word):
        found += ["\n".join(numbers.places(number[1])) or f"{word} is in no record, table or page "
                  "here, and not among the published numbers of results/reported.csv"]
    for room, name in APPLIED_BY.items():
        found += pages(room, word, COMMANDS[name])
    if word in (*manual.yamls("tables"), *PAPER) and word not in FORMS:
        found.append(table_page(word))
    if not any(found):
        known = sorted({*GROUPS, *names(), *(key for key, _ in keys())})
        raise UserError(f"there is nothing of the name '{word}' (python scripts/list.py lists "
                        f"everything){config.suggest(word, known, None)}")
    return list(filter(None, found))


def pages(room: str, word: str, applied_by: Command) -> Iterator[str]:
    """Of a method all that --help prints of it, of another YAML what it sets."""
    path = manual.CONFIGS / room / f"{word}.yaml"
    if word in list_methods(room):
        module = find_method(room, word)
        yield manual.page(module, word, applied_by)
        if hasattr(module, "TrainConfig"):
            yield manual.page(module, word, COMMANDS[fact(module, "TRAINED_BY")])
    elif path.is_file():
        tree = config.read_file(path)
        method = config.text(tree.value["method"])
        lines = manual.variant_lines(tree, path, find_method(room, method).Config, method)
        yield "\n".join([first_comment(path), *lines,
                         f"its keys: python scripts/list.py {method}"])


def table_page(word: str) -> str:
    """A table's rows, columns and seeds, and the line that makes it or its figure."""
    path = manual.CONFIGS / f"tables/{table_of(word)}.yaml"
    found = spec.read(str(path))
    families = {key: list(dict.fromkeys(line.family for line in getattr(found[0], key)))
                for key in ("rows", "columns")}
    line = (f"python scripts/figures.py {word} [--quick | --small]" if word in PAPER
            else f"{line_of(word)} [--quick | --small] [--dry-run]")
    return "\n".join([f"{first_comment(path)} {size_of(found)}",
                      *(f"  {key}: {', '.join(lines)}" for key, lines in families.items()),
                      f"  {line}"])


def named(word: str) -> Iterator[str]:
    """A data set, a size of tables, and every preset of that name."""
    for name, text in data_sets():
        if word == name:
            yield f"data={word}: {text}"
    if word in FORMS:
        yield f"a table's --{word}: {first_comment(manual.CONFIGS / f'tables/{word}.yaml')}"
    for room, yaml, preset, text in all_presets():
        if preset in (word, f"preset={word}"):
            yield f"{COMMANDS[APPLIED_BY[room]].line} {yaml} {preset}: {text}"


def names() -> Iterator[str]:
    """Every name but those of keys."""
    for _, lines in PARTS.values():
        for name, _ in lines():
            yield name.strip().removeprefix("preset=")


def keys() -> Lines:
    """Every key of every command, and a line on it: its default, what it is, its range."""
    kinds = [(kind, "") for kind in (Settings, datasets.DataSettings, DeviceSettings)]
    for room in APPLIED_BY:
        for name in list_methods(room):
            module = find_method(room, name)
            kinds += [(getattr(module, half), prefix) for half, prefix in
                      (("Config", name), ("TrainConfig", f"{name}.train")) if hasattr(module, half)]
    for kind, prefix in kinds:
        for key in manual.keys(kind, prefix):
            yield key.name, " ".join(" ".join(key.lines()).split())
