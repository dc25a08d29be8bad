"""Methods in words: from the docstrings of their modules and the comments of their Configs."""

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.command import list_methods
from scripts.documents.names import NAMES

ROOMS = {"poisons": "Attacks", "purifiers": "Purifiers", "learners": "Learners"}
HEAD = """# Every method

Written by `python scripts/documents.py` from the modules; do not edit it here. A key stands in a
YAML under its method's name, and on the command line behind it: `em.epsilon=4/255`. Budgets are in
[0, 1] units, so 8/255 is eight grey levels. "Released code" and "the release" are the authors' own.
The papers are in [references.bib](references.bib).
"""


def lines(room: str) -> str:
    """A line for each method of a room, or for each protocol."""
    if room == "protocols":
        return "".join(f"- `{path.stem}` {first_comment(path)}\n"
                       for path in sorted(Path("configs/learners").glob("*.yaml")))
    return "".join(f"- `{name}` {first_sentence(module_of(room, name).__doc__)}\n"
                   for name in list_methods(room))


def page() -> str:
    """docs/methods.md."""
    text = HEAD
    for room, title in ROOMS.items():
        text += f"\n## {title}\n"
        for name in list_methods(room):
            text += f"\n### {NAMES.get(name, name)}: `{name}`\n\n{described(room, name)}"
        if room == "learners":
            text += f"\n### Protocols\n\nEach is a YAML of a learner.\n\n{lines('protocols')}"
    return text


def described(room: str, name: str) -> str:
    """A method's docstring, where it stands, and its keys."""
    module = module_of(room, name)
    places = [f"[{room}/{name}.py](../{room}/{name}.py)"]
    yaml = Path(f"configs/{room}/{name}.yaml")
    if yaml.is_file():
        places.append(f"[{yaml}](../{yaml})")
    text = f"{markdown(module.__doc__)}\n\n{', '.join(places)}\n"
    for config, prefix in (("Config", ""), ("TrainConfig", "train.")):
        if hasattr(module, config):
            keys = list(keys_of(getattr(module, config), prefix))
            if keys:
                text += "\n| key | default | |\n|---|---|---|\n" + "".join(
                    f"| `{key}` | {default} | {comment} |\n" for key, default, comment in keys)
    return text


def module_of(room: str, name: str):
    return importlib.import_module(f"{room}.{name}")


def first_comment(path: Path) -> str:
    """The first line of a YAML, which says what it is; not the command line behind it."""
    return re.split(r"\s{3,}", path.read_text("utf-8").splitlines()[0].lstrip("# "))[0]


def first_sentence(docstring: str) -> str:
    """The docstring's first sentence."""
    return re.split(r"(?<=\.)\s", docstring.strip(), maxsplit=1)[0].replace("\n", " ")


def markdown(docstring: str) -> str:
    """Paragraphs of a docstring; what is indented is a block of its own."""
    text = inspect.cleandoc(docstring)
    return re.sub(r"(?:^ {4}.*(?:\n|\Z))(?:^ {4,}.*(?:\n|\Z))*",
                  lambda block: f"```text\n{textwrap.dedent(block[0]).rstrip()}\n```\n", text,
                  flags=re.MULTILINE).rstrip()


# --- keys ------------------------------------------------------------------------------------


def keys_of(config: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(dotted key, default as a YAML writes it, comment) of a Config, sections spread out."""
    written: dict[str, tuple[str | None, str]] = {}
    for parent in reversed(config.__mro__):
        if dataclasses.is_dataclass(parent):
            written |= fields_of(parent)
    for field in dataclasses.fields(config):
        default, comment = written[field.name]
        if field.default_factory is not dataclasses.MISSING:
            yield from keys_of(field.default_factory, f"{prefix}{field.name}.")
        else:
            shown = "" if field.default is dataclasses.MISSING else default or show(field.default)
            yield f"{prefix}{field.name}", shown, comment.replace("|", r"\|")


def fields_of(config: type) -> dict[str, tuple[str | None, str]]:
    """Of the fields that one class writes: the default's text, where that says more than its value,
    and the comment above, beside and below it."""
    source = textwrap.dedent(inspect.getsource(config))
    rows = source.splitlines()
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            comments = above(rows, node.lineno - 1, node.col_offset)
            comments += [comment for row in rows[node.lineno - 1:node.end_lineno]
                         if (comment := behind(row))]
            comments += below(rows, node.end_lineno, node.col_offset)
            found[node.target.id] = formula(node.value), " ".join(comments)
    return found


def formula(value: ast.expr | None) -> str | None:
    """The text of a default that is a sum: `8/255`."""
    if not isinstance(value, ast.BinOp):
        return None
    return ast.unparse(value).replace(" / ", "/")


def behind(row: str) -> str:
    return row.partition("  # ")[2].strip()


def above(rows: list[str], at: int, indent: int) -> list[str]:
    found = []
    while at and rows[at - 1].startswith(" " * indent + "#"):
        at -= 1
        found.insert(0, rows[at].strip("# "))
    return found


def below(rows: list[str], at: int, indent: int) -> list[str]:
    found = []
    while at < len(rows) and rows[at].startswith(" " * (indent + 1)) \
            and rows[at].lstrip().startswith("#"):
        found.append(rows[at].strip("# "))
        at += 1
    return found


def show(value: Any) -> str:
    """A value as a YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(show, value))}]"
    return str(value)
