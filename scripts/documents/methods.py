"""Methods in words: what their modules, Configs and YAMLs say of them (`core.manual`)."""

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from core import config, manual, variants
from core.methods import find_method, list_methods
from scripts.tables import formats
from scripts.tables.wording import NAMES

ROOMS = {"poisons": "Attacks", "purifiers": "Purifiers", "learners": "Learners"}
HEAD = """# Every method

Written by `python scripts/documents.py` from the modules and their YAMLs; do not edit it here.
`python -m poisons --help em` and the like print the same of one method.

A key stands in a YAML under its method's name, and on the command line as it stands here. Budgets
are in [0, 1] units, so 8/255 is eight grey levels. "Released code" and "the release" are the
authors' own. In `dvae.train.stages.N.output` and the like N is an item of the list, counted from 0:
`dvae.train.stages.0.kld_target=2` is of the first stage. The papers are in
[references.bib](references.bib).
"""


def lines(room: str) -> str:
    """A line for each method of a room, or for each protocol."""
    if room == "protocols":
        return "".join(f"- `{path.stem}` {first_comment(path)}\n"
                       for path in sorted(Path("configs/learners").glob("*.yaml")))
    return "".join(f"- `{name}` {manual.first_sentence(find_method(room, name))}\n"
                   for name in list_methods(room))


def names(kind: str) -> str:
    """The learners' YAMLs in one line: `protocols` of standard training, or `countermeasures`."""
    found = {path.stem: config.read([path]).value["method"].value == "standard"
             for path in sorted(Path("configs/learners").glob("*.yaml"))}
    return ", ".join(f"`{name}`" for name, plain in found.items()
                     if plain == (kind == "protocols")) + "\n"


def page() -> str:
    """docs/methods.md."""
    text = HEAD
    for room, title in ROOMS.items():
        text += f"\n## {title}\n"
        for name in list_methods(room):
            text += f"\n### {NAMES.get(name, name)}: `{name}`\n\n{described(room, name)}"
    return text + f"\n## Protocols\n\nEach is a YAML of a learner.\n\n{lines('protocols')}"


def described(room: str, name: str) -> str:
    """A method's docstring, where it stands, its keys and its variants."""
    module = find_method(room, name)
    yaml = Path(f"configs/{room}/{name}.yaml")
    places = [str(path) for path in (Path(room, f"{name}.py"), yaml) if path.is_file()]
    text = f"{markdown(module.__doc__)}\n\nIn " + " and ".join(
        f"[{place}](../{place})" for place in places) + ".\n"
    found = [key for kind, prefix in (("Config", name), ("TrainConfig", f"{name}.train"))
             if hasattr(module, kind) for key in manual.keys(getattr(module, kind), prefix)]
    text += table(("key", "default", "range", ""),
                  [(f"`{key.name}`", key.default, key.limits, key.comment)
                   for key in found])
    return text + table(("variant", "what it changes"),
                        [(f"`{word}`", f"`{said}`") for word, said in variant_lines(yaml)])


def variant_lines(yaml: Path) -> Iterator[tuple[str, str]]:
    """What a method's YAML sets beside its keys, and changes on other data sets and in presets."""
    if not yaml.is_file():
        return
    values, sets, presets = variants.split(config.read_file(yaml))
    if said := manual.beside(values):
        yield str(yaml), " ".join(said)
    for name, changes in sets.items():
        if said := manual.said(changes):
            yield manual.chosen_by(name), said
    for name, changes in presets.items():
        own, its_sets, _ = variants.split(changes)
        if said := manual.said(own):
            yield f"preset={name}", said
        for data_set, more in its_sets.items():
            yield f"preset={name} {manual.chosen_by(data_set)}", manual.said(more)


def first_comment(path: Path) -> str:
    """The first line of a YAML, which says what it is; not the command line behind it."""
    return re.split(r"\s{3,}", path.read_text("utf-8").splitlines()[0].lstrip("# "))[0]


def markdown(docstring: str) -> str:
    """Paragraphs of a docstring; what is indented is a block of its own."""
    return re.sub(r"(?:^ {4}.*(?:\n|\Z))+",
                  lambda block: f"```text\n{textwrap.dedent(block[0]).rstrip()}\n```\n",
                  inspect.cleandoc(docstring), flags=re.MULTILINE).rstrip()


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown behind a blank line; nothing without rows."""
    if not rows:
        return ""
    return "\n" + formats.markdown(head, rows)
