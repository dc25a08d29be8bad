"""The one look of every figure. matplotlib is imported when the first is drawn."""

import io
import os
from pathlib import Path

from core import files
from core.names import printable

INK, MUTED, GOOD, BAD, PLAIN = "#222222", "#777777", "#2a7f62", "#b3403a", "#5b7ea4"
SERIES = (PLAIN, "#b07a2e", GOOD, "#7d5a94", BAD)


def pyplot():
    # A notebook's commands inherit its backend, which this Python may lack: the import would fail.
    os.environ["MPLBACKEND"] = "agg"
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plain_label(text: str) -> str:
    """Text from outside: a `$` in it begins no formula."""
    return printable(text).replace("$", r"\$")


def axis_style(axis) -> None:
    """Two quiet spines, small muted numbers."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#cccccc")
    axis.tick_params(which="both", length=2, color="#cccccc", labelsize=8, labelcolor=MUTED)
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set(fontsize=9, color=INK)


def end_labels(axis, x: float, labels: list[tuple[float, str, str]], size: float = 9) -> None:
    """Write (y, text, colour) right of the points (x, y), kept from covering each other.

    Call it when the axis has its limits.
    """
    low, high = axis.get_ylim()
    gap = (high - low) * size * 1.25 / (axis.get_position().height
                                        * axis.figure.get_size_inches()[1] * 72)
    place = None
    for y, text, colour in sorted(labels):
        place = y if place is None else max(y, place + gap)
        axis.annotate(text, (x, place), xytext=(6, 0), textcoords="offset points", fontsize=size,
                      color=colour, va="center", annotation_clip=False)


def picture_path(out: str | Path) -> Path:
    """Where a picture goes. Raises UserError, before there is work to lose, for what else is there
    (`files.replaceable`)."""
    return files.replaceable(Path(out), b"\x89PNG")


def save(figure, path: Path) -> None:
    """Write it whole or not at all, at 150 dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white")
    files.mkdir(path.parent)
    files.write_bytes(path, buffer.getvalue())
