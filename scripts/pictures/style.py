"""The one look of every picture: width, colours, markers, names and text from outside, and how it
is saved. matplotlib is imported when the first is drawn."""

import functools
import io
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path

from core import files
from core.names import printable
from scripts.tables import wording

os.environ.pop("MPLBACKEND", None)      # a notebook's, which this Python may lack

WIDTH = 6.6             # inches, which a README shows 800 pixels wide: 9 points are 15 of them
DOTS = 200              # an inch
TEXT, HEAD = 9, 10      # points

INK, MUTED = "#222222", "#6b6b6b"
# Okabe and Ito (2008): told apart by colour-blind people; in grey the markers tell them apart.
BLUE, RED, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
PLAIN, BAD, GOOD = BLUE, RED, GREEN
SERIES = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"))
LOOKS = {"clean": (MUTED, "x"), "none": (BAD, "s"), "vae": (GOOD, "^"), "dvae": (GOOD, "^"),
         "jpeg": (ORANGE, "D"), "ae": (PURPLE, "v"), "ueraser_max": (PURPLE, "v")}


def name_of(label: str) -> str:
    """How a row or column is written in pictures."""
    return "not purified" if label == "none" else wording.name_of(label)


def looks_of(families: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each column, or of `clean`: its own if it has one that is free, else the
    next in a colour that no other has, as long as there are such."""
    looks: dict[str, tuple[str, str]] = {}
    markers = dict.fromkeys(marker for _, marker in SERIES)
    for family in sorted(dict.fromkeys(families), key=lambda family: family not in LOOKS):
        own = [LOOKS[family]] if family in LOOKS else []
        colours = {colour for colour, _ in looks.values()}
        others = [(colour, marker) for marker in markers for colour, _ in SERIES]
        free = [look for look in (*own, *SERIES) if look[0] not in colours] \
            or [look for look in others if look not in looks.values()] or list(SERIES)
        looks[family] = free[0]
    return looks


@functools.cache
def glyphs() -> frozenset[int]:
    """Characters that the font has."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def plain_label(text: str, width: int | None = None, most_lines: int = 3) -> str:
    """Text from outside: a `$` in it begins no formula, and what the font lacks comes as its
    escape. Broken into lines of `width` characters, of which the first `most_lines` are shown."""
    shown = "".join(character if ord(character) in glyphs()
                    else character.encode("unicode_escape").decode()
                    for character in printable(text))
    if width is not None:
        lines = textwrap.wrap(shown, width, max_lines=most_lines, placeholder="…",
                              break_on_hyphens=False)
        shown = "\n".join(lines)
    return shown.replace("$", r"\$")


def sheet(height: float, width: float = WIDTH):
    """An empty figure of these inches; what stands on it keeps clear of each other."""
    from matplotlib.figure import Figure  # no pyplot: no backend, and nothing to close

    return Figure(figsize=(width, height), layout="constrained")


def head(figure, text: str) -> None:
    """The title of a whole figure, from its left edge, in lines that fit."""
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, 92)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=HEAD, color=INK)


def title(axis, text: str) -> None:
    axis.set_title(text, fontsize=TEXT, color=INK, loc="left")


def legend(figure, *axes, columns: int = 3) -> None:
    """One for the whole figure, beneath it: every label of these axes once."""
    entries = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower left", ncols=columns,
                  fontsize=TEXT, frameon=False, labelcolor=INK)


def axis_style(axis) -> None:
    """Two quiet spines, muted numbers."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#bbbbbb")
    axis.tick_params(which="both", length=2, color="#bbbbbb", labelsize=TEXT, labelcolor=MUTED)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(fontsize=TEXT, color=INK)


def accuracy_axis(axis) -> None:
    """The whole range, so that no difference looks larger than it is."""
    axis.set_ylim(0, 104)
    axis.set_yticks([0, 25, 50, 75, 100])
    axis.set_ylabel("clean test accuracy (%)")


def label_points(axis, points: list[tuple[float, float, str]], lines: list[float]) -> None:
    """Write text beside each (x, y, text) where it covers no point, no other text and no
    horizontal line; what finds no place is left out. Call it when all else is drawn."""
    figure = axis.figure
    figure.draw_without_rendering()
    left, bottom, right, top = axis.bbox.extents
    taken = [(x - 4, y - 4, x + 4, y + 4)
             for x, y in axis.transData.transform([point[:2] for point in points])]
    taken += [(left, y - 2, right, y + 2)
              for _, y in axis.transData.transform([(0, line) for line in lines])]
    for x, y, text in points:
        for dx, dy in ((0, 5), (0, -5), (5, 0), (-5, 0), (4, 4), (-4, 4), (4, -4), (-4, -4)):
            note = axis.annotate(
                text, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=TEXT,
                color=INK, ha=("right", "center", "left")[(dx > 0) - (dx < 0) + 1],
                va=("top", "center", "bottom")[(dy > 0) - (dy < 0) + 1])
            x0, y0, x1, y1 = note.get_window_extent().extents
            if left <= x0 and bottom <= y0 and x1 <= right and y1 <= top and not any(
                    x0 < right_ and left_ < x1 and y0 < top_ and bottom_ < y1
                    for left_, bottom_, right_, top_ in taken):
                taken.append((x0, y0, x1, y1))
                break
            note.remove()


def picture_path(out: str | Path) -> Path:
    """Where a picture goes. Raises UserError, before there is work to lose, for what else is there
    (`files.replaceable`)."""
    return files.replaceable(Path(out), b"\x89PNG")


def save(figure, path: Path) -> None:
    """Write it whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS, bbox_inches="tight", pad_inches=0.08,
                   facecolor="white")
    files.mkdir(path.parent)
    files.write_bytes(path, buffer.getvalue())
