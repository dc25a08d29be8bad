"""A table as text: Markdown, CSV and LaTeX; and Markdown read back."""

import csv
import io
import re

from core.names import printable
from scripts.tables.wording import ACCURACY


def markdown(head: tuple[str, ...], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(map(markdown_cell, row)) + " |\n" for row in rows)


def markdown_cell(text: object) -> str:
    """A cell of a Markdown table."""
    return printable(text).replace("|", r"\|")


def read_markdown(text: str) -> list[list[tuple[int, list[str]]]]:
    """The tables of a Markdown text: (number of the line, its cells), of the head and of each row.
    """
    tables, inside = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("|"):
            if not inside:
                tables.append([])
            cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
            tables[-1].append((number, [cell.strip().replace(r"\|", "|") for cell in cells]))
        inside = line.startswith("|")
    return [[table[0], *table[2:]] for table in tables]         # between them stands |---|


def as_csv(head: tuple[str, ...], lines: list[list[str]]) -> str:
    """An accuracy stands in three columns there."""
    if ACCURACY in head:
        at = head.index(ACCURACY)
        head = (*head[:at], ACCURACY, "sd", "runs", *head[at + 1 :])
        lines = [[*line[:at], *apart(line[at]), *line[at + 1 :]] for line in lines]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [map(printable, row) for row in (head, *lines)])
    return text.getvalue()


def apart(spread: str) -> tuple[str, str, str]:
    """Mean, standard deviation and how many, of `wording.spread`."""
    if found := re.fullmatch(r"(\S+) ± (\S+) \((\d+)\)", spread):
        return found.groups()
    return ("", "", "0") if spread == "-" else (spread, "", "1")


LATEX = str.maketrans({
    "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$", "†": r"$\dagger$",
    "‡": r"$\ddagger$", ">": "$>$", "$": r"\$", "{": r"\{", "}": r"\}", "<": "$<$",
    "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"})


def latex_text(text: object) -> str:
    """Text as LaTeX prints it."""
    return printable(text).translate(LATEX)


def latex(head: tuple[str, ...], lines: list[list[str]]) -> str:
    """A booktabs tabular."""
    def row(cells) -> str:
        return " & ".join(map(latex_text, cells)) + r" \\" + "\n"

    return ("\\begin{tabular}{" + "l" * len(head) + "}\n\\toprule\n" + row(head) + "\\midrule\n"
            + "".join(map(row, lines)) + "\\bottomrule\n\\end{tabular}\n")


WRITERS = {"markdown": markdown, "csv": as_csv, "latex": latex}
