"""The page of results: its numbers, what they lead to, what it needs, and what it refuses."""

import contextlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from conftest import ROOT, edit_record, run_command, succeed

from scripts.report import report
from scripts.report.curves import MOST_POINTS, curve
from scripts.report.prints import blocks, found_by

RECORD = ROOT / "results/digits-tables/demo_jcdp/digits-em-digits10-c8f8ad2d"
DEMO = sorted(path.parent for path in ROOT.glob("results/digits-tables/demo_jcdp/*/record.json"))


class Read(HTMLParser):
    """A page as its tags: (name, attributes), and the text inside each id."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[tuple[str, str]] = []
        self.inside: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in ("img", "meta", "link"):
            self.open.append((name, dict(attributes).get("id", "")))

    def handle_endtag(self, name):
        assert self.open.pop()[0] == name

    def handle_data(self, text):
        text = text.replace("\n", "")
        for _, own in self.open:
            if own:
                self.inside[own] = self.inside.get(own, "") + text

    def all(self, key: str) -> list[str]:
        return [attributes[key] for _, attributes in self.tags if key in attributes]


@pytest.fixture
def results(tmp_path) -> Path:
    """A folder with an undefended record of EM and one behind JPEG."""
    folder = tmp_path / "here"
    for name, start in (("em", "digits-em-digits10"), ("jpeg", "digits-em-jpeg-digits10")):
        [place] = [place for place in DEMO if place.name.rpartition("-")[0] == start]
        shutil.copytree(place, folder / name)
    return folder


def page_of(*words: object) -> Read:
    return Read(succeed(report.main, *words, "--out", "page").read_text())


# --- the page of this repository -------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The page of results/, as on a machine without data sets and runs."""
    here = tmp_path_factory.mktemp("repository")
    for name in ("configs", "results", "docs"):
        (here / name).symlink_to(ROOT / name)
    with contextlib.chdir(here):
        return succeed(report.main, "--out", "report").absolute()


@pytest.fixture(scope="module")
def committed(made) -> Read:
    return Read(made.read_text())


def test_the_page_is_small(made):
    assert made.stat().st_size < 1e6


def test_it_needs_no_network_and_no_server(made, committed):
    loaded = [attributes[key] for name, attributes in committed.tags for key in ("src", "href")
              if key in attributes and name != "a"]
    assert loaded
    assert not [target for target in loaded if re.match(r"\w\w+:|//|/", target)
                and not target.startswith("data:")]
    assert "url(" not in made.read_text()
    assert "@import" not in made.read_text()


def test_every_link_leads_somewhere(made, committed):
    ids = committed.all("id")
    assert len(ids) == len(set(ids))
    for target in (*committed.all("href"), *committed.all("src")):
        if target.startswith("#"):
            assert target[1:] in ids
        elif not target.startswith("data:"):
            path = unquote(urlsplit(target).path)
            assert (made.parent / path).is_file(), target


def test_every_record_and_picture_of_results_is_on_it(committed):
    wanted = {f"../{path.relative_to(ROOT)}" for kind in ("record.json", "*.png")
              for path in (ROOT / "results").rglob(kind)}
    assert wanted <= set(committed.all("href"))


def test_every_printed_table_is_on_it(committed):
    """Those that have records stand there from these."""
    tables = [path for path in (ROOT / "results").rglob("*.md")
              if path.name != "README.md" and not path.with_suffix(".png").exists()
              and path.with_suffix("").name != "table"]
    assert len(tables) > 5
    assert {f"../{path.relative_to(ROOT)}" for path in tables} <= set(committed.all("href"))


def test_a_printed_table_says_that_it_has_no_records_and_what_they_take(made):
    said = re.findall(r"its records were not kept: this line makes them again, in (\d+) minutes of "
                      r"two CPU cores or more", made.read_text())
    printed = yaml.safe_load((ROOT / "results/index.yaml").read_text())["printed"]
    assert sorted(map(int, said)) == sorted(about["minutes"] for about in printed.values())


def test_a_number_stands_beside_the_published_one(committed):
    rows = [text for own, text in committed.inside.items() if own.startswith("n")]
    found = [row for row in rows if row.startswith("EMnone13.9")]
    beside = [row for row in found if "21.2 LE T1-7.3" in row]
    assert beside
    alone = "EMnone13.9nothingclean test accuracy 13.9 % after epoch 12"    # of `dataset: ""`
    assert {row for row in found if row not in beside} == {alone}


def test_a_card_has_its_command_line_lineage_and_machine(committed):
    [card] = [text for own, text in committed.inside.items() if own.startswith("r")
              and text.startswith("closeEM > D-VAE: 66.5 %")]
    for line in ("python scripts/list.py cite results/small/dvae_cifar10/cifar10-train-em-dvae-",
                 "python scripts/run_table.py configs/tables/dvae_cifar10.yaml --small data="
                 "data/cifar10-train.npz test=data/cifar10-test.npz --rows=em --columns=dvae "
                 "--seeds=0", "epsilon=8/255", "Xeon",
                 "the defence saw the poisoned set"):
        assert line in card


# --- any folder ------------------------------------------------------------------------------


def test_records_that_no_index_knows_stand_by_data_and_protocol(results):
    page = page_of(results)
    rows = [attributes for name, attributes in page.tags if "data-attack" in attributes]
    assert [(row["data-attack"], row["data-defence"], row["data-data"]) for row in rows] \
        == [("EM", "none", "digits"), ("EM", "JPEG", "digits")]
    assert [text for own, text in page.inside.items() if own.startswith("n")][1].startswith(
        "EMJPEG81.9")


def test_published_numbers_stand_beside_records_of_a_named_data_set(results):
    record = json.loads((results / "em/record.json").read_text())
    train = {**record["train"], "root": {"data": "cifar10", "split": "train"}}
    edit_record(results / "em", train=train, accuracy_last=0.25)
    page = page_of(results)
    [row] = [text for own, text in page.inside.items()
             if own.startswith("n") and "25.0" in text]
    assert "21.2 LE T1" in row
    assert "+3.8" in row


def test_of_several_seeds_each_opens_its_record(results):
    shutil.copytree(results / "em", results / "em1")
    edit_record(results / "em1", seed=1, fingerprint="f" * 64, accuracy_last=0.85)
    page = page_of(results)
    assert "80.0 ± 7.1 (2)" in page.inside["n1"]
    assert "#rffffffffffff" in page.all("href")
    assert "85.0 %" in page.inside["rffffffffffff"]
    assert [title for title in page.all("title") if "seed" in title] == ["seed 0", "seed 1"]


def test_a_record_that_is_there_twice_counts_once(results):
    shutil.copytree(results / "em", results / "copy")
    page = page_of(results)
    assert any("75.0" in text for text in page.inside.values())
    assert "75.0 ±" not in " ".join(page.inside.values())


def test_a_record_of_two_folders_is_there_once(results):
    other = shutil.copytree(results, results.parent / "there")
    page = page_of(results, other)
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert len([own for own in ids if own.startswith("r")]) == 2


def test_other_epochs_are_no_other_seed(results):
    """Records of one protocol that was changed otherwise stand in tables of their own; how often a
    network was tested does not matter."""
    for name, seed, overrides in (("more", 1, {"test_every": 0}), ("short", 2, {"epochs": 2})):
        shutil.copytree(results / "em", results / name)
        edit_record(results / name, seed=seed, fingerprint=name[0] * 64, accuracy_last=0.45,
                    overrides=overrides)
    text = (Path("page") / "index.html").read_text() if page_of(results) else ""
    assert "60.0 ± 21.2 (2)" in text
    assert re.search(r"<h3>Records, digits10, epochs=2</h3>", text)


def test_rows_of_the_same_methods_say_what_differs(results):
    for quality in (10, 50):
        shutil.copytree(results / "em", results / f"q{quality}")
        record = json.loads((results / "em/record.json").read_text())
        step = {"method": "jpeg", "preset": "jpeg", "version": 1, "seed": 0, "settings": {},
                "config": {"quality": quality, "rounding": "round"}, "fingerprint": "0" * 64,
                "inputs": {}}
        edit_record(results / f"q{quality}", fingerprint=f"{quality}" * 32,
                    train={**record["train"], "lineage": [*record["train"]["lineage"], step]})
    found = " ".join(page_of(results).inside.values())
    assert "JPEGjpeg.quality=10" in found
    assert "JPEGjpeg.quality=50" in found
    assert "rounding=" not in found.split("JPEGjpeg.quality=50")[1][:40]


def test_what_differs_anywhere_is_no_other_seed(results):
    """In how the purifier was trained, in the test images, the split or the learner's keys; and two
    of one seed are never one cell, also where older records do not tell why."""
    record = json.loads((results / "em/record.json").read_text())
    train = record["train"]
    step = {"method": "vae", "preset": "vae", "version": 1, "seed": 0, "settings": {}, "config": {},
            "fingerprint": "0" * 64, "inputs": {"checkpoint": "1" * 64},
            "trained_on": {"name": "x", "shape": [1, 8, 8, 3], "num_classes": 10,
                           "root": train["root"], "lineage": []}}

    def add(name: str, seed: int, trained: dict | None = None, **changes):
        lineage = [*train["lineage"], {**step, "trained_on": {**step["trained_on"],
                                                              "config": trained or {}}}]
        shutil.copytree(results / "em", results / name)
        edit_record(results / name, fingerprint=name * 64, seed=seed, accuracy_last=seed / 10,
                    **{"train": {**train, "lineage": lineage}, **changes})

    add("a", 1, {"kld_target": 1.0})
    add("b", 2, {"kld_target": 1.0})
    add("c", 3, {"kld_target": 2.0})
    add("d", 4, {"kld_target": 2.0}, test={**record["test"], "root": {"data": "others"}})
    add("e", 5, {"kld_target": 2.0}, config={**record["config"], "width": 99})
    add("f", 6)
    add("0", 6)
    shown = " ".join(page_of(results).inside.values())
    for text in ("test=digits, vae.train.kld_target=1, standard.width=815.0 ± 7.1 (2)",
                 "test=digits, vae.train.kld_target=2, standard.width=830.0",
                 "test=others, vae.train.kld_target=2, standard.width=840.0",
                 "test=digits, vae.train.kld_target=2, standard.width=9950.0",
                 "test=digits, standard.width=860.0", "standard.width=8, record ffffffff60.0"):
        assert text in shown, text
    assert "(3)" not in shown


def test_what_a_record_says_is_text(results):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    record = json.loads((results / "em/record.json").read_text())
    lineage = [{**record["train"]["lineage"][0], "method": evil, "preset": evil,
                "config": {evil: evil}, "fingerprint": evil}]
    edit_record(results / "em", protocol=evil, versions={"torch": evil}, device={"name": evil},
         train={**record["train"], "name": evil, "lineage": lineage,
                "root": {"data": evil, "split": evil}})
    (results / "README.md").write_text(
        f"# {evil}\n\n| picture | what it is | line |\n|---|---|---|\n"
        f"| `x.png` | {evil} | `{evil}` |\n")
    (results / "x.png").write_bytes((ROOT / "results/small/purified.png").read_bytes())
    (results / "x.txt").write_text(f"one\n{evil}\x1b[2J\n")
    (results / "table.md").write_text(f"# {evil}\n\n{evil}\n\n| poison | {evil} |\n|---|---|\n"
                                      f"| {evil} | {evil} |\n")
    plain = {name for name, _ in page_of(results / "jpeg").tags}
    page = page_of(results)
    names = [name for name, _ in page.tags]
    assert names.count("script") == 1
    assert names.count("img") == 1
    assert set(names) <= plain | {"figure", "figcaption", "img", "details", "summary"}
    assert not page.all("onerror")
    assert not [name for _, attributes in page.tags for name in attributes if '"' in name]
    assert "\x1b" not in Path("page/index.html").read_text()


def test_a_path_with_signs_of_an_address_is_found(results, tmp_path):
    odd = tmp_path / "50% #1 a?b"
    results.rename(odd)
    (odd / "x#1.png").write_bytes((ROOT / "results/small/purified.png").read_bytes())
    page = page_of(odd)
    for target in (*page.all("src"), *page.all("href")):
        if not target.startswith(("#", "data:")):
            path = unquote(urlsplit(target).path)       # as a browser reads it
            assert (tmp_path / "page" / path).is_file(), target


def test_a_damaged_record_is_left_out_and_named(results):
    (results / "em/record.json").write_text("{}")
    page = page_of(results)
    assert "Left out" in Path("page/index.html").read_text()
    text = Path("page/index.html").read_text()
    assert "here/em/record.json does not match its SHA-256" in text
    assert len([own for own in page.inside if own.startswith("r")]) == 1


def test_a_table_in_an_unreadable_file_is_left_out_and_named(results):
    (results / "table.md").write_bytes(b"\xff\xfe|")
    page_of(results)
    assert "table.md: not a text file" in Path("page/index.html").read_text()


def test_what_is_no_text_beside_a_picture_is_left_out_and_named(results):
    (results / "x.png").write_bytes((ROOT / "results/small/purified.png").read_bytes())
    for name in ("README.md", "x.md"):
        (results / name).write_bytes(b"# \xff\xfe|")
    page = page_of(results)
    assert "../here/x.png" in page.all("src")
    text = Path("page/index.html").read_text()
    assert text.count("here/README.md: not a text file") == 1
    assert text.count("here/x.md: not a text file") == 1


def test_unfinished_work_is_not_on_it(results):
    (results / "em").rename(results / "em.partial")
    assert len([own for own in page_of(results).inside if own.startswith("r")]) == 1


def test_a_page_to_be_sent_holds_its_pictures(results):
    (results / "x.png").write_bytes((ROOT / "results/small/purified.png").read_bytes())
    page = page_of(results, "--embed")
    [source] = page.all("src")
    assert source.startswith("data:image/png;base64,")
    assert len(source) > (results / "x.png").stat().st_size


def test_commit_and_overrides_of_a_record_are_on_its_card(results):
    edit_record(results / "em", commit="abc1234", dirty=True, date="2026-11-26T18:00:00Z",
         overrides={"epochs": 2})
    [card] = [text for own, text in page_of(results / "em").inside.items()
              if own.startswith("r")]
    assert "abc1234, with changes that were not committed" in card
    assert "epochs=2" in card


@pytest.mark.parametrize(("words", "error"), [
    (["nowhere"], "nowhere: no such folder; name folders that hold records"),
    (["empty"], "empty: no finished record, printed table or picture is below it"),
    (["here", "--out", "here/em/log.jsonl"], "--out here/em/log.jsonl is a file; name a folder"),
    (["here", "--out", "taken"], "index.html is a file of another kind and is not written over"),
])
def test_a_mistake_is_one_sentence(results, words, error):
    Path("empty").mkdir()
    Path("taken").mkdir()
    Path("taken/index.html").write_text("<html>mine</html>")
    outcome = run_command(report.main, *words, *([] if "--out" in words else ["--out", "page"]))
    assert outcome.status == 1
    assert error in outcome.error
    assert Path("taken/index.html").read_text() == "<html>mine</html>"
    assert not Path("page").exists()


@pytest.mark.parametrize(("index", "error"), [
    ("tables: [a]", "index.yaml:1: tables: expected `name: ...` lines"),
    ("tables:\n  a: {table: [b]}", "index.yaml:2: unknown key 'a.table'; did you mean 'a.tables'"),
    ("tables:\n  a: {tables: [no_such]}", "no_such.yaml"),
    ("table: {}", "index.yaml:1: unknown section 'table'; did you mean 'tables'"),
    ("tables:\n  a: {tables: [le_table3], settings: [--row]}",
     "here/index.yaml: tables: a: le_table3 --row: argument --rows: expected one argument"),
    ("tables:\n  a: {tables: [le_table3], settings: [--seeds, one]}",
     "here/index.yaml: tables: a: le_table3 --seeds one: --seeds one: expected whole numbers"),
    ("- a", "index.yaml: expected `key: value` lines"),
])
def test_a_mistake_in_an_index_is_one_sentence(results, index, error):
    (results / "index.yaml").write_text(index)
    outcome = run_command(report.main, results, "--out", "page")
    assert outcome.status == 1
    assert error in outcome.error


# --- its parts -------------------------------------------------------------------------------


def test_a_curve_is_where_its_numbers_are():
    drawn = curve([(1, 0.0), (2, 1.0)], [(2, 0.5)], 105, 104)
    assert 'points="52,102 102,2"' in drawn
    assert 'cx="102" cy="52"' in drawn
    assert curve([], [], 105, 104) is None


def test_a_long_curve_keeps_its_shape_and_its_end():
    drawn = curve([(epoch, epoch / 1000) for epoch in range(1, 1001)], [], 1005, 1004)
    points = re.search(r'points="([^"]*)"', drawn)[1].split()
    assert MOST_POINTS / 2 < len(points) <= MOST_POINTS + 1
    assert points[-1] == "1002,2"


def test_markdown_tables_are_read():
    tables, notes = blocks("# Title\n\nA note\nof two lines.\n\n| a | b |\n| :-- | --- |\n"
                           "| x \\| y |  |\n\n|c|\n|---|\n|-|\n")
    assert tables == [[["a", "b"], ["x | y", ""]], [["c"], ["-"]]]
    assert notes == ("A note of two lines.",)
    assert blocks("") == ([], ())


@pytest.mark.parametrize(("head", "line", "expected"), [
    (["poison", "defence"], ["em", "jcdp strength=0.3"], ("EM", "JCDP")),
    (["poison", "defence"], ["em 16/255", "dvae, hinge scaled"], ("EM", "D-VAE")),
    (["poison", "purifier"], ["lsp", "none"], ("LSP", "none")),
    (["poison", "defence"], ["clean", "iss_best"], ("clean", "best of several")),
    (["trained on", "x"], ["LSP, grey scale", "1"], ("LSP", "grey scale")),
    (["trained on", "x"], ["clean", "1"], ("clean", "none")),
    (["beta", "0"], ["rate", "1"], ("", "")),
    (["poison"], ["em"], ("EM", "none")),
])
def test_a_printed_row_is_found_by_its_methods(head, line, expected):
    assert found_by(head, line) == expected
