"""Write what README and docs take from code and results.

    python scripts/documents.py

In README.md and docs/results.md, what stands between two such lines is written anew:

    <!-- accuracies: results/cifar10-5000/table.md results/cifar10-attacks/table.md -->
    <!-- end -->

`accuracies` is poisons x defences of tables that scripts/table.py printed, `records` a line for
each record of a folder, `table` the first table of a file as it stands, `methods` a line for each
method of a room, `names` the learners' YAMLs in one line. docs/methods.md is written whole.
tests/test_documents.py fails where a page is not what this gives.
"""

import re
from collections import Counter
from pathlib import Path

from core import files, records
from core.command import Parser, command
from core.errors import UserError
from core.imageset import title
from scripts.documents import methods
from scripts.tables import wording
from scripts.tables.formats import markdown, read_markdown
from scripts.tables.wording import name_of

PAGES = ("README.md", "docs/results.md")
FILLED = re.compile(r"(<!-- (\w+): (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NONE_YET = "-"          # of scripts/table.py: a cell without a record


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/documents.py", __doc__)
    parser.parse_args(argv)
    for page, text in pages().items():
        if not Path(page).is_file() or Path(page).read_text("utf-8") != text:
            files.write_bytes(Path(page), text.encode())
            print(page)


def pages() -> dict[str, str]:
    """Every page that this writes, as it ought to be."""
    return {page: filled(page) for page in PAGES} | {"docs/methods.md": methods.page()}


def filled(page: str) -> str:
    """A page with everything between its marks written anew."""
    writers = {"accuracies": accuracies, "records": recorded, "table": first_table,
               "methods": methods.lines, "names": methods.names}

    def write(mark: re.Match) -> str:
        begin, word, sources, middle, end = mark.groups()
        if word not in writers or "<!--" in middle:
            raise UserError(f"{page}: '{begin.strip()}' needs one of {', '.join(writers)}, and an "
                            "'<!-- end -->' of its own")
        return begin + writers[word](*sources.split()) + end

    return FILLED.sub(write, Path(page).read_text("utf-8"))


def first_table(path: str) -> str:
    """The first table of a file."""
    found = re.search(r"(?:^\|.*\n)+", Path(path).read_text("utf-8"), re.MULTILINE)
    return found[0] if found else ""


def cells(path: str) -> dict[tuple[str, str], str]:
    """(poison, defence) -> accuracy of a table that scripts/table.py printed as markdown."""
    tables = read_markdown(Path(path).read_text("utf-8"))
    (_, head), *lines = tables[0] if tables else [(1, [])]
    if head[:3] != ["poison", "defence", wording.ACCURACY]:
        raise UserError(f"{path}: no table of scripts/table.py (poison, defence, accuracy) in it")
    return {(line[0], line[1]): line[2] for _, line in lines}


def accuracies(*paths: str) -> str:
    """Poisons x defences of several such tables: what has a number. Columns stand as in the row
    that has most of them."""
    known = {key: accuracy for path in paths for key, accuracy in cells(path).items()
             if accuracy != NONE_YET}
    rows = Counter(row for row, _ in known)
    fullest_first = sorted(known, key=lambda key: -rows[key[0]])
    columns = list(dict.fromkeys(column for _, column in fullest_first))
    return markdown(("trained on", *map(name_of, columns)),
                    [[name_of(row), *(known.get((row, column), "") for column in columns)]
                     for row in rows])


def recorded(folder: str) -> str:
    """A line for each record of a folder: what it was trained on, and its accuracy."""
    found = [records.load(path) for path in records.folders(folder)]
    steps = [[title(step) for step in record["train"]["lineage"]] for record in found]
    lines = [[", then ".join(map(name_of, made)) or "clean",
              wording.spread([100 * record["accuracy_last"]])]
             for made, record in sorted(zip(steps, found, strict=True), key=lambda it: it[0])]
    return markdown(("trained on", "clean test accuracy (%)"), lines)
