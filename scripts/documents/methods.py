"""Methods in words: from the docstrings of their modules and the comments of their Configs."""

import importlib
import inspect
import re
import textwrap
from pathlib import Path

from core import manual
from core.command import list_methods
from core.names import markdown_cell
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
    return "".join(f"- `{name}` {manual.first_sentence(module_of(room, name))}\n"
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
    for config, prefix in (("Config", ""), ("TrainConfig", "train")):
        if hasattr(module, config):
            keys = list(manual.keys(getattr(module, config), prefix))
            if keys:
                text += "\n| key | default | range | |\n|---|---|---|---|\n" + "".join(
                    f"| `{key.name}` | {key.default} | {key.limits} | "
                    f"{markdown_cell(key.comment)} |\n" for key in keys)
    return text


def module_of(room: str, name: str):
    return importlib.import_module(f"{room}.{name}")


def first_comment(path: Path) -> str:
    """The first line of a YAML, which says what it is; not the command line behind it."""
    return re.split(r"\s{3,}", path.read_text("utf-8").splitlines()[0].lstrip("# "))[0]


def markdown(docstring: str) -> str:
    """Paragraphs of a docstring; what is indented is a block of its own."""
    text = inspect.cleandoc(docstring)
    return re.sub(r"(?:^ {4}.*(?:\n|\Z))(?:^ {4,}.*(?:\n|\Z))*",
                  lambda block: f"```text\n{textwrap.dedent(block[0]).rstrip()}\n```\n", text,
                  flags=re.MULTILINE).rstrip()
