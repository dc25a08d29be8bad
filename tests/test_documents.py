"""README and docs say what is there: references, names, numbers, links, shell lines."""

import io
import os
import re
import shlex
import subprocess
import tokenize

import pytest
import yaml
from conftest import CONFIGS, ROOT, run_command, succeed

import evaluate
import purify
import train_ddpm
import train_vae
from core import commands
from core.errors import UserError
from core.methods import list_methods
from core.request import parse
from poisons.__main__ import main as poison
from scripts.documents import documents
from scripts.tables import run_table, spec
from scripts.tables.table import Choice
from scripts.tables.wording import NAMES

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
    cited = re.compile(r"\b(?:attack|defence|JCDP|D-VAE) notes|\bnotes on\b|\bthe notes\b"
                       r"|\bnotes,? \(?sections?\b"
                       r"|\bissue[- ]\d+\b", re.IGNORECASE)
    found = [f"{path}: {match[0]}" for path, text in texts().items()
             if path != "tests/test_documents.py"
             for match in cited.finditer(" ".join(text.split()))]
    assert not found, "\n".join(found)


def test_every_page_of_evidence_is_listed():
    pages = {path.name for path in (ROOT / "docs/evidence").glob("*.md")} - {"README.md"}
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs/evidence/README.md").read_text()))
    assert listed == pages


# --- what is written from elsewhere ----------------------------------------------------------


def test_pages_are_what_code_and_results_give(tmp_path):
    """The data sets behind the tables are not read, here or not."""
    for path in ROOT.iterdir():
        if path.name not in ("data", "runs"):
            (tmp_path / path.name).symlink_to(path)
    for page, text in documents.pages().items():
        assert (ROOT / page).read_text() == text, f"{page}: run python scripts/documents.py"


@pytest.mark.parametrize("text", [
    "<!-- tabel: x.md -->\n<!-- end -->\n",
    "<!-- methods: poisons -->\n<!-- methods: purifiers -->\n<!-- end -->\n",
])
def test_a_mark_that_nothing_fills_is_refused(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(UserError, match=r"page\.md: '<!-- .* needs one of accuracies, .*end"):
        documents.filled(str(page))


def test_no_accuracy_stands_in_a_table_by_hand():
    """In README and docs/results.md every table with percentages is between marks."""
    for page in documents.PAGES:
        by_hand = documents.FILLED.sub("", (ROOT / page).read_text())
        rows = [line for line in by_hand.splitlines() if line.startswith("|")]
        assert not [row for row in rows if re.search(r"\|\s*\**\d\d\.\d", row)], page


# --- the README ------------------------------------------------------------------------------


def test_the_readme_is_short():
    """150 lines with the methods of today; one of one's own adds a line that is not counted."""
    by_hand = documents.FILLED.sub("", (ROOT / "README.md").read_text())
    assert len(by_hand.splitlines()) <= 96


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))],
                         ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


COMMANDS = {"-m poisons": poison, "train_vae.py": train_vae.main, "train_ddpm.py": train_ddpm.main,
            "purify.py": purify.main, "evaluate.py": evaluate.main}
NAME_OF = {" ".join(command.words): name for name, command in commands.COMMANDS.items()}


def shell_lines(page: str) -> list[list[str]]:
    """Words of every line in a page's ```bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [words for block in blocks for line in block.splitlines()
            if (words := shlex.split(line, comments=True))]


def split(words: list[str]) -> tuple[str, list[str]]:
    """A `python ...` line as the command's name and its arguments."""
    length = 3 if words[1] == "-m" else 2
    return " ".join(words[1:length]), words[length:]


@pytest.fixture
def recorded(tmp_path):
    """Runs a shell line with a `python` that only writes its words down; returns them."""
    fake, log = tmp_path / "bin/python", tmp_path / "log"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {log}\n')
    fake.chmod(0o755)

    def run(words: list[str]) -> list[list[str]]:
        log.write_text("")
        subprocess.run(words, check=True, cwd=ROOT, timeout=60, capture_output=True,
                       env={"PATH": f"{fake.parent}:/usr/bin:/bin", "VIRTUAL_ENV": str(tmp_path),
                            "INSTALL": "no", "HOME": os.environ.get("HOME", "/")})
        return [["python", *line.split()] for line in log.read_text().splitlines()]

    return run


def test_every_shell_line_of_the_readme_runs(tmp_path, monkeypatch, recorded):
    """Commands one after another, tiny and on digits; a table with --quick as a plan; the rest as
    far as the words that they pass on."""
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    lines = shell_lines("README.md")
    assert {words[0] for words in lines} == {"bash", "python"}
    for words in lines:
        if words[0] == "python":
            command, arguments = split(words)
            small = [w.replace("data=cifar10", "data=digits") for w in arguments]
            assert succeed(COMMANDS[command], *small, "--smoke").exists(), words
            continue
        passed_on = recorded(words)
        assert passed_on, words
        for line in passed_on:
            command, arguments = split(line)
            if command in COMMANDS:
                parse(arguments, "", NAME_OF[command])
            elif command == "scripts/run_table.py" and "--quick" in arguments:
                outcome = run_command(run_table.main, *arguments, "--dry-run")
                assert outcome.status == 0, outcome.stderr
            elif command == "scripts/run_table.py":
                choice, settings = Choice.split(arguments[1:])
                spec.read(arguments[0], choice, tuple(w for w in settings if "=" in w))
            else:
                assert command in ("-m pytest", "scripts/table.py", "scripts/figures.py"), line


@pytest.mark.parametrize("page", sorted({path.name for path in (ROOT / "docs").glob("*.md")}
                                        - {"extending.md"}))     # tests/test_extending.py runs it
def test_shell_lines_of_the_pages_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in shell_lines(f"docs/{page}"):
        command, arguments = split(words) if words[0] == "python" else (words[1], [])
        if command in COMMANDS:
            parse(arguments, "", NAME_OF[command])
        else:
            assert (ROOT / command).is_file(), words


# --- names -----------------------------------------------------------------------------------


SAID = {tokenize.STRING, tokenize.COMMENT,
        getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}       # from Python 3.12 on
# Other ways to write a method's name than its paper's and this project's: LSP, D-VAE, JCDP, ...
WRONG = (r"DVAE|D-Vae|d-vae|Dvae|DVae|Jcdp|J-CDP|LE-JCDP|Lsp|Avatar|Em|Rem|Sem|Tap|Hypo|Pil|Iss|"
         r"Jpeg|Vae|Ddpm|[Gg]r[ae]yscale")
AS_CODE = "|".join(sorted(set(NAMES) - {"ar", "ae", "cuda", "reuse", "random_signs"}))


def wrong_names(text: str, wrong: str) -> list[str]:
    """Those in a text, outside of `code`."""
    return re.findall(rf"(?<![\w./-])(?:{wrong})(?!\w|[./=-]\w)", re.sub(r"`[^`]*`", "", text))


def test_a_wrong_name_is_seen():
    assert wrong_names("Lsp, then DVAE.", WRONG) == ["Lsp", "DVAE"]
    assert not wrong_names("LSP, D-VAE and `Lsp`; resnet18DVAE.yaml", WRONG)
    assert wrong_names("| lsp | none |", AS_CODE) == ["lsp"]


def test_pages_write_names_one_way():
    """Also not as modules and YAMLs write them, but where docs/methods.md prints choices."""
    for path, text in texts().items():
        if path.endswith(".md"):
            for code in (r"(?s)```.*?```", r"(?m)^ {4}.*$", r"(?s)<!--.*?-->", r"\]\([^)]*\)"):
                text = re.sub(code, "", text)
            wrong = WRONG if path == "docs/methods.md" else f"{WRONG}|{AS_CODE}"
            assert not wrong_names(text, wrong), path


def test_code_writes_names_one_way():
    """Comments, docstrings and messages of everything but the tests; all of a YAML or script."""
    for path, text in texts().items():
        if path.endswith(".py") and not path.startswith("tests/"):
            with io.StringIO(text) as source:
                text = "\n".join(token.string for token in tokenize.generate_tokens(source.readline)
                                 if token.type in SAID)
        if not path.startswith("tests/") and not path.endswith(".md"):
            assert not wrong_names(text, WRONG), path


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


def test_the_citation_file_has_the_two_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    known = {fields["title"]: fields for fields in entries(BIB).values()}
    assert len(cited) == 2
    for paper in cited:
        fields = known[paper["title"]]
        assert fields["year"] == str(paper["year"])
        assert fields["author"] == " and ".join(
            f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])


def test_every_source_that_a_method_names_is_a_reference():
    """"Source: Yu et al., KDD 2022" and the like."""
    known = {(fields["author"].split(",")[0], fields["year"]) for fields in entries(BIB).values()}
    for room in ("poisons", "purifiers", "learners"):
        for method in list_methods(room):
            text = " ".join((ROOT / room / f"{method}.py").read_text().split())
            for author, year in re.findall(r"([A-Z][\w-]+) et al\.,? (?:[A-Z][A-Za-z]+ )*(\d{4})",
                                           text.split('"""')[1]):
                assert (author, year) in known, f"{room}/{method}.py: {author} {year}"
