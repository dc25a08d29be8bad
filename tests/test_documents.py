"""README and docs say what is there: references, names, numbers, links, shell lines."""

import re

import pytest
from conftest import ROOT

from core.command import list_methods

ROOMS = ("poisons", "purifiers", "learners", "models", "core", "configs", "scripts", "tests",
         "docs")
BIB = (ROOT / "docs/references.bib").read_text()
REQUIRED = {"inproceedings": {"title", "author", "booktitle", "year"},
            "misc": {"title", "author", "year"}}


def texts() -> dict[str, str]:
    """Every text of the repository that people read, by path: code, YAML, pages, scripts."""
    kinds = ("*.py", "*.yaml", "*.md", "*.sh", "*.cff")
    places = [ROOT, *(ROOT / room for room in ROOMS)]
    return {str(path.relative_to(ROOT)): path.read_text()
            for place in places for kind in kinds
            for path in (place.glob(kind) if place == ROOT else place.rglob(kind))}


def test_only_what_a_reader_can_open_is_cited():
    """Papers, releases and pages of docs/: no notes that are not here, no numbers of tasks."""
    cited = re.compile(r"\b(?:attack|defence|JCDP|D-VAE) notes|\bnotes,? \(?sections?\b"
                       r"|\bissue[- ]\d+\b", re.IGNORECASE)
    found = [f"{path}: {match[0]}" for path, text in texts().items()
             if path != "tests/test_documents.py" and not path.startswith("configs/tables/le_t")
             for match in cited.finditer(" ".join(text.split()))]
    assert not found, "\n".join(found)


def test_every_page_of_evidence_is_listed():
    pages = {path.name for path in (ROOT / "docs/evidence").glob("*.md")} - {"README.md"}
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs/evidence/README.md").read_text()))
    assert listed == pages


# --- references ------------------------------------------------------------------------------


def entries(text: str) -> dict[str, dict[str, str]]:
    """BibTeX entries by key, with `type`; fields in braces. Raises ValueError where BibTeX would
    stumble. What stands between entries is comment."""
    found: dict[str, dict[str, str]] = {}
    for match in re.finditer(r"@", text):
        head = re.compile(r"@(\w+)\{([\w-]+),\s*").match(text, match.start())
        if head is None:
            raise ValueError(f"no entry begins at: {text[match.start():][:40]}")
        if head[2] in found:
            raise ValueError(f"{head[2]}: twice")
        fields, at = {"type": head[1]}, head.end()
        while text[at] != "}":
            field = re.compile(r"(\w+)\s*=\s*\{").match(text, at)
            if field is None or field[1] in fields:
                raise ValueError(f"{head[2]}: no field, or one twice, at: {text[at:][:40]}")
            at, depth = field.end(), 1
            while depth:
                depth += {"{": 1, "}": -1}.get(text[at], 0)
                at += 1
            fields[field[1]] = text[field.end():at - 1]
            at = re.compile(r"\s*,?\s*").match(text, at).end()
        found[head[2]] = fields
    return found


def test_the_references_are_bibtex():
    found = entries(BIB)
    assert {"yu2024dvae", "jiang2023le"} <= set(found)
    for key, fields in found.items():
        assert REQUIRED[fields["type"]] <= set(fields), key
        assert re.fullmatch(r"\d{4}", fields["year"]), key
        for author in fields["author"].split(" and "):
            assert re.fullmatch(r"[^,]+, [^,]+", author), f"{key}: {author}"


@pytest.mark.parametrize("broken", [
    "@misc{a, title = {x}", "@misc{a, title = {x}, title = {y}}", "@misc{a, title = {{x}}",
    "@misc{a, % note\n title = {x}}", "@misc{a, title = {x}}\n@misc{a, title = {x}}"])
def test_what_is_no_bibtex_is_seen(broken):
    with pytest.raises((ValueError, IndexError)):
        entries(broken)


def test_every_source_that_a_method_names_is_a_reference():
    """"Source: Yu et al., KDD 2022" and the like."""
    known = {(fields["author"].split(",")[0], fields["year"]) for fields in entries(BIB).values()}
    for room in ("poisons", "purifiers", "learners"):
        for method in list_methods(room):
            text = " ".join((ROOT / room / f"{method}.py").read_text().split())
            for author, year in re.findall(r"([A-Z][\w-]+) et al\.,? (?:[A-Z][A-Za-z]+ )*(\d{4})",
                                           text.split('"""')[1]):
                assert (author, year) in known, f"{room}/{method}.py: {author} {year}"
