"""Text from outside, such as the name of a set or of a class: what of it is shown, and what of it
may be part of a path."""

from pathlib import PurePath

from core.errors import UserError

LONGEST_TEXT = 4000     # characters in a message
LONGEST_PART = 200      # bytes of a file's name: 255 are taken, and a hash and `.partial` follow
HALVES = ("train", "training", "val", "valid", "validation", "test")


def printable(text: object) -> str:
    """On one line that moves no cursor: line ends, ESC, what turns the direction of writing and
    what is no character come as their escapes."""
    shown = str(text)
    if len(shown) > LONGEST_TEXT:
        shown = shown[:LONGEST_TEXT] + "..."
    return "".join(character if character.isprintable()
                   else character.encode("unicode_escape").decode() for character in shown)


def component(text: str) -> str:
    """One name below a folder, never a path: separators and what is not printable become `_`, and
    so do dots in front."""
    safe = "".join(character if character.isprintable() and character not in "/\\" else "_"
                   for character in text)
    dots = len(safe) - len(safe.lstrip("."))
    safe = "_" * dots + safe[dots:]
    return safe.encode()[:LONGEST_PART].decode(errors="ignore") or "_"


def name_at(path: str | PurePath) -> str:
    """What lies at a path is called as its last part; of `flowers/train`, as every set has one,
    'flowers-train'."""
    path = PurePath(path)
    if path.name.lower() in HALVES and path.parent.name:
        return f"{path.parent.name}-{path.name}"
    return path.name


def chosen_name(typed: str | None, source: str) -> str:
    """What a set is called: as typed after --name, or as what it is from. Raises UserError for a
    typed one that names no folder."""
    if typed and typed != component(typed):
        raise UserError(f"--name: '{typed}' cannot name a folder; write '{component(typed)}'")
    return typed or component(source)
