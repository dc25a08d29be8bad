"""The page: chapters of tables and pictures, a card for each record, a filter."""

import os
from pathlib import Path
from string import Template

from core import reading
from scripts.report.card import card, points, sourced
from scripts.report.curves import axes, curve
from scripts.report.elements import Markup, image, join, lines, link, tag, text
from scripts.report.gather import Folder, Results, Row, Table
from scripts.report.prints import Picture, Printed, blocks, found_by
from scripts.tables import wording
from scripts.tables.wording import name_of

HERE = Path(__file__).parent
START = "<!DOCTYPE html>\n<html"         # of every page of ours
SOURCES = Path("docs/reported.md")       # of published numbers
DATA_SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn": "SVHN", "pets": "Pets",
             "imagenet100": "ImageNet, first 100 classes"}
HEAD = ("poison", "defence", "accuracy (%)", "published", "gap", "also published",
        "the defence saw", "training")


class Page:
    """What is written while the page is put together: where it lies, and ids that are taken."""

    def __init__(self, results: Results, out: Path, embed: bool):
        self.results, self.out, self.embed = results, out, embed
        self.filters: dict[str, set[str]] = {"attack": set(), "defence": set(), "data": set()}
        self.first_row: dict[Path, str] = {}        # of each record
        self.cell_of: dict[Path, Row] = {}
        self.contents: list[Markup] = []
        self.rows = 0

    def id_of(self, row: Row) -> str:
        """A new id for a row, where the cards of its records lead back to."""
        self.rows += 1
        for place in row.entry.places:
            self.first_row.setdefault(place, f"n{self.rows}")
            if not row.entry.chosen:
                self.cell_of.setdefault(place, row)
        return f"n{self.rows}"

    def path_to(self, path: Path) -> str:
        """As seen from the page."""
        return Path(os.path.relpath(path, self.out)).as_posix()

    def found_by(self, attack: str, defence: str, data: str) -> dict[str, str]:
        """Attributes by which the filter finds an element."""
        words = {"attack": attack, "defence": defence, "data": DATA_SETS.get(data, data)}
        found = {key: word for key, word in words.items() if word}
        for key, word in found.items():
            self.filters[key].add(word)
        return {f"data_{key}": word for key, word in found.items()}


def page(results: Results, roots: list[Path], out: Path, *, embed: bool = False) -> str:
    """The whole page, as it is to lie in the folder `out`."""
    made = Page(results, out, embed)
    chapters = join(chapter(folder, made) for folder in results.folders)
    cards = join(card(kept, card_of(place, made), made.first_row.get(place, ""),
                      published(made.cell_of.get(place)), made.path_to)
                 for place, kept in results.kept.items())
    parts = {
        "style": (HERE / "page.css").read_text("utf-8"),
        "script": (HERE / "page.js").read_text("utf-8"),
        "summary": summary(results, roots), "published": published_number(made),
        "contents": tag("ul", *made.contents),
        "filters": filters(made), "chapters": chapters, "axes": axes(), "cards": cards,
        "left_out": left_out(results)}
    return Template((HERE / "page.html").read_text("utf-8")).substitute(parts)


def published(row: Row | None) -> list[dict]:
    """The numbers beside a row, that beside it first."""
    entry = row and row.entry
    return [*filter(None, [entry.reported]), *entry.also] if entry else []


def published_number(made: Page) -> Markup:
    """These words, which lead to what the sources are where that page is at hand."""
    said = text("published number")
    return link(made.path_to(SOURCES), said) if SOURCES.exists() else said


def summary(results: Results, roots: list[Path]) -> Markup:
    tables = [table for folder in results.folders for table in folder.tables]
    numbers = sum(len(table.rows) for table in tables)
    printed = sum(len(folder.printed) for folder in results.folders)
    shown = sum(len(folder.pictures) for folder in results.folders)
    return text(f"{count(numbers, 'number')} from {count(len(results.kept), 'record')}, "
                f"{count(printed, 'printed table')} and {count(shown, 'picture')} below "
                f"{', '.join(map(str, roots))}.")


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def filters(made: Page) -> Markup:
    """A choice each of attack, defence and data set; shown where the script runs."""
    labels = {"attack": "attack", "defence": "defence", "data": "data set"}
    return join(tag("label", f"{labels[key]} ", tag(
        "select", tag("option", "all", value=""),
        *(tag("option", word, value=word) for word in sorted(words, key=str.lower)),
        data_key=key)) for key, words in made.filters.items())


def left_out(results: Results) -> Markup:
    if not results.left_out:
        return Markup()
    return tag("section", tag("h2", "Left out"), tag("ul", *(
        tag("li", why) for why in results.left_out)))


# --- chapters --------------------------------------------------------------------------------


def chapter(folder: Folder, made: Page) -> Markup:
    """A folder's tables, then its pictures."""
    place = f"c{len(made.contents)}"
    made.contents.append(tag("li", link(f"#{place}", folder.title)))
    parts = [*(table_of(table, made) for table in folder.tables),
             *(printed(table, made) for table in folder.printed)]
    if folder.pictures:
        parts.append(tag("div", *(figure(one, made) for one in folder.pictures),
                         class_="pictures"))
    return tag("section", tag("h2", folder.title), *parts, id=place)


def table_of(table: Table, made: Page) -> Markup:
    """Cells with a record, a line each."""
    body = [cells_of(row, made) for row in table.rows]
    used = [head for head in HEAD if any(cells[head] for cells in body)]
    lines = []
    for row, cells in zip(table.rows, body, strict=True):
        lines.append(tag("tr", *(tag("td", cells[head], class_=word_of(head)) for head in used),
                         id=made.id_of(row), **made.found_by(row.attack, row.defence, table.data)))
    heads = (tag("th", head, class_=word_of(head)) for head in used)
    return tag("div", tag("h3", table.title), tag("p", about(table, made), class_="about"),
               line_shown(table.line), tag("table", tag("thead", tag("tr", *heads)),
                                           tag("tbody", *lines), class_="numbers"),
               class_="block")


def word_of(head: str) -> str:
    """The class of a column: its first word."""
    return head.split(" ")[0]


def about(table: Table, made: Page) -> str:
    """Of what, with which network, and how much of the table there is."""
    found = [made.results.kept[place] for row in table.rows for place in row.entry.places]
    sizes = sorted({kept.record["train"]["rows"] for kept in found})
    networks = dict.fromkeys(wording.network_text(kept.record["config"]) for kept in found)
    seeds = len({kept.record["seed"] for kept in found})
    protocols = dict.fromkeys(kept.record["protocol"] for kept in found)
    words = [DATA_SETS.get(table.data, table.data),
             " or ".join(f"{size:,}" for size in sizes) + " training images" if sizes else "",
             ", ".join(networks).replace("resnet18", "ResNet-18"), ", ".join(protocols),
             count(seeds, "seed")]
    if table.line:
        measured = sum(not row.entry.chosen for row in table.rows)
        words.append(f"{measured} of {count(table.cells, 'cell')} measured")
    return " · ".join(filter(None, words))


def cells_of(row: Row, made: Page) -> dict[str, object]:
    """What stands under each head of a row."""
    entry = row.entry
    gap, mark = "", ""
    if entry.reported:
        gap = f"{entry.gap:+.1f}"
        mark = f";--published:{entry.reported['accuracy']:.1f}%"
    note = f"† best of these: {name_of(entry.chosen)}" if entry.chosen else row.note or entry.oracle
    return dict(zip(HEAD, (
        name_of(entry.row),
        join([text(name_of(entry.column)), tag("small", note) if note else None]),
        join([ours(entry.places, entry.accuracies, made),
              tag("i", style=f"--ours:{entry.mean:.1f}%{mark}", class_="bar")]),
        sourced([entry.reported] if entry.reported else []), gap, folded(entry.also),
        entry.saw, curve(*points(made.results.kept[entry.places[0]]), 90, 24)), strict=True))


def ours(places: tuple[Path, ...], accuracies: list[float], made: Page) -> Markup:
    """The accuracy, which opens its record; over several seeds, each of them does."""
    if len(places) == 1:
        return link(f"#{card_of(places[0], made)}", wording.spread(accuracies))
    seeds = (link(f"#{card_of(place, made)}", f"{accuracy:.1f}",
                  title=f"seed {made.results.kept[place].record['seed']}")
             for place, accuracy in zip(places, accuracies, strict=True))
    return join([text(wording.spread(accuracies)), tag("small", join(seeds, " "))])


def card_of(place: Path, made: Page) -> str:
    return "r" + made.results.kept[place].record["fingerprint"][:12]


def folded(facts: list[dict]) -> Markup:
    if len(facts) < 3:
        return sourced(facts)
    low, high = (pick(fact["accuracy"] for fact in facts) for pick in (min, max))
    return tag("details", tag("summary", f"{len(facts)}: {low:g} to {high:g}"), sourced(facts))


def line_shown(line: str) -> Markup | None:
    return tag("pre", line) if line else None


def printed(table: Printed, made: Page) -> Markup:
    """A table of which only the print was kept."""
    body = []
    for line in table.lines:
        attack, defence = found_by(table.head, line)
        words = [name_of(cell) if head in ("poison", "defence", "purifier") and cell else cell
                 for head, cell in zip(table.head, line, strict=False)]
        body.append(tag("tr", *(tag("td", word) for word in words),
                        **made.found_by(attack, defence, table.data)))
    said = join([link(made.path_to(table.path), "as printed"),
                 text(remade(table))])
    if table.data:
        said = join([DATA_SETS.get(table.data, table.data), " · ", said])
    return tag("div", tag("h3", table.title), tag("p", said, class_="about"),
               line_shown(table.line), *(tag("p", note) for note in table.notes),
               plain_table(table.head, body), class_="block")


def remade(table: Printed) -> str:
    """That there are no records, and what making them takes."""
    if not table.line:
        return ""
    time = f", in {table.minutes} minutes of two CPU cores or more" if table.minutes else ""
    return f"; its records were not kept: this line makes them again{time}"


def plain_table(head: list[str], body: list[Markup]) -> Markup:
    return tag("div", tag("table", tag("thead", tag("tr", *(tag("th", name) for name in head))),
                          tag("tbody", *body)), class_="wide")


def figure(one: Picture, made: Page) -> Markup:
    caption = [with_code(one.caption)]
    if one.line:
        caption.append(tag("p", with_code(one.line), class_="about"))
    if one.numbers:
        caption.append(tag("details", tag("summary", "numbers"), numbers(one.numbers)))
    target = made.path_to(one.path)
    shown = image(one.path.read_bytes(), one.caption) if made.embed else \
        link(target, image(target, one.caption))
    return tag("figure", shown,
               tag("figcaption", *caption), data_attack="|".join(one.attacks) or None,
               data_defence="|".join(one.defences) or None)


def with_code(said: str) -> Markup:
    """Text of a README, whose `words` are code."""
    return join(tag("code", part) if number % 2 else text(part)
                for number, part in enumerate(said.split("`")))


def numbers(path: Path) -> Markup:
    """What was printed beside a picture."""
    if path.suffix == ".txt":
        return tag("pre", lines(reading.text(path)))
    tables, notes = blocks(reading.text(path))
    return join([*(plain_table(head, [tag("tr", *(tag("td", cell) for cell in line))
                                      for line in body]) for head, *body in tables),
                 *(tag("p", note) for note in notes)])
