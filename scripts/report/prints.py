"""What was printed and drawn: tables as Markdown has them, pictures with their captions."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core import reading
from core.artefact import is_partial
from core.errors import UserError
from core.methods import list_methods
from scripts.tables.formats import read_markdown
from scripts.tables.wording import NAMES, name_of

ORACLE = "best of several"      # the defence of a derived column, for the filter


@dataclass(frozen=True)
class About:
    """What an index says of a printed table."""

    title: str
    data: str = ""
    line: str = ""
    minutes: int = 0        # that the line takes at least, on two CPU cores; 0: not known


@dataclass(frozen=True)
class Printed:
    """A table as Markdown has it, without records."""

    title: str
    path: Path
    head: list[str]
    lines: list[list[str]]
    data: str = ""
    line: str = ""
    minutes: int = 0
    notes: tuple[str, ...] = ()     # what stands around it


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str
    attacks: tuple[str, ...]        # those that it is of, as far as its caption says
    defences: tuple[str, ...]
    line: str = ""                  # as in the README: `code` among words
    numbers: Path | None = None     # of a chart, or an attack's


def documents(root: Path) -> list[Path]:
    """Markdown files that may hold tables of their own: no README, no numbers of a picture."""
    return [path for path in sorted(root.rglob("*.md"))
            if path.name != "README.md" and not path.with_suffix(".png").exists()]


def printed_in(path: Path, about: About, shown: str | None) -> Iterator[Printed]:
    """The tables of a file, whose first one may be `shown` from its records already, under that
    title."""
    tables, notes = blocks(reading.text(path))
    for number, (head, *lines) in enumerate(tables):
        if shown is None:
            yield Printed(about.title, path, head, lines, about.data, about.line, about.minutes,
                          () if number else notes)
        elif number:
            yield Printed(f"{shown}: {', '.join(head[2:])}", path, head, lines)


def blocks(text: str) -> tuple[list[list[list[str]]], tuple[str, ...]]:
    """The tables of a Markdown text (the head, then rows), and its other paragraphs but for
    headings."""
    tables = [[cells for _, cells in table] for table in read_markdown(text)]
    others = (" ".join(paragraph.splitlines()) for paragraph in re.split(r"\n\s*\n", text.strip())
              if not paragraph.startswith(("|", "#")))
    return tables, tuple(filter(None, others))


def found_by(head: list[str], line: list[str]) -> tuple[str, str]:
    """Attack and defence of a printed row, for the filter: its first words, without values."""
    attack, defence = [*line, ""][:2]
    if head[0] == "trained on":
        attack, _, defence = line[0].partition(", ")
    elif head[0] != "poison":
        return "", ""
    attack = NAMES.get(attack.split(" ")[0], attack.split(" ")[0])
    first = re.split(r",| \S*=", defence)[0].strip()
    return attack, ORACLE if first == "iss_best" else name_of(first) if first else "none"


# --- pictures --------------------------------------------------------------------------------


def pictures(root: Path) -> list[Path]:
    """PNGs that lie in no artefact's folder."""
    return [path for path in sorted(root.rglob("*.png"))
            if not (path.parent / "meta.json").exists()
            and not is_partial(path)]


def picture(path: Path) -> Picture:
    caption, line = captions(path.parent).get(path.name, (name_of(path.stem), ""))
    numbers = numbers_of(path)
    numbers = numbers if numbers and words(numbers) else None
    attacks, defences = (mentioned(caption, room) for room in ("poisons", "purifiers"))
    return Picture(path, caption, attacks, defences, line, numbers)


def numbers_of(path: Path) -> Path | None:
    """The file beside a picture that holds its numbers."""
    return next((path.with_suffix(kind) for kind in (".md", ".txt")
                 if path.with_suffix(kind).exists()), None)


def words(path: Path) -> str:
    """Of a file beside pictures; '' where there is none, or no text, which `unreadable` names."""
    try:
        return reading.text(path) if path.exists() else ""
    except UserError:
        return ""


def unreadable(root: Path) -> Iterator[str]:
    """Why files beside pictures are left out."""
    for path in sorted({*root.rglob("README.md"), *map(numbers_of, pictures(root))} - {None}):
        try:
            reading.text(path)
        except UserError as error:
            yield str(error)


def mentioned(caption: str, room: str) -> tuple[str, ...]:
    """The methods of a room whose names stand in a caption."""
    return tuple(name for name in names_of(room)
                 if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", caption))


@functools.cache
def names_of(room: str) -> tuple[str, ...]:
    return tuple(NAMES.get(method, method) for method in list_methods(room))


def captions(folder: Path) -> dict[str, tuple[str, str]]:
    """Picture -> (what it is, line), of the README.md of a folder."""
    tables, _ = blocks(words(folder / "README.md"))
    return {line[0].strip("`"): (line[1], line[2]) for head, *lines in tables
            for line in lines if head[:3] == ["picture", "what it is", "line"] and len(line) == 3}


def heading(folder: Path) -> str:
    """The first heading of a folder's README.md, or its name."""
    for line in words(folder / "README.md").splitlines():
        if line.startswith("# "):
            return line.removeprefix("# ").strip()
    return folder.resolve().name
