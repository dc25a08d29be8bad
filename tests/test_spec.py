"""Reading a table's YAML: its forms and parts, its data sets, what is wrong in it."""

import argparse
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tables
from conftest import ROOT
from tables import QUICK, beside, changed, planned

from core.datasets import EMBEDDED
from core.errors import UserError
from scripts.tables import plan, spec
from scripts.tables.table import FORMS, WHOLE, Choice

# fixtures
project, here, tiny, several = tables.project, tables.here, tables.tiny, tables.several


@pytest.mark.parametrize(("old", "new", "message"), [
    ("configs/purifiers/jpeg.yaml", "configs/purifiers/jpg.yaml", r"jpg\.yaml: no such file"),
    ("jpeg.quality:", "jpeg.qualty:", r"tiny\.yaml:\d+: .*unknown key 'jpeg.qualty'.*quality"),
    ('"{quality}"', '"{qality}"', r"there is no \{qality\} here; known: .*\{quality\}"),
    ("[10, 50]", "[]", r"tiny\.yaml:\d+: jpeg: over: a key without a value makes no line"),
    ("[10, 50]", "[10, 10]", r"tiny\.yaml:\d+: there are two of the name 'jpeg quality=10'"),
    ("iss_best:", "none:", r"tiny\.yaml:\d+: derived: there is a column of the name 'none'"),
    ("threads: 1", "seed: 1", r"tiny\.yaml: settings: seed: no key of a table; --seeds 1 ma"),
    ("threads: 1", "protocol: cpu12", r"settings: protocol: no key of a table; its YAML names its "
     r"schedules by `evaluate`, and docs/tables\.md shows how"),
    ("threads: 1", "fraction: 0.2", r"settings: fraction: no key of a table; a step `poison` of i"),
    ('"{quality}"', "30", r"jpeg: over: quality: no step reads \{quality\}; write it where"),
    ("      purify: configs/purifiers/jpeg.yaml\n", "      - purify: configs/purifiers/gray.yaml\n"
     "      - poison: configs/poisons/lsp.yaml\n        lsp.patch: 2\n"
     "      - purify: configs/purifiers/jpeg.yaml\n  ",
     r"no step after this p[a-z]+ reads what it makes .poison starts from the clean set"),
    ("only: [lsp]", "only: [lps]", r"only: there is no 'lps'; did you mean 'lsp'"),
    ("      purify:", "      purfy:", r"tiny\.yaml:\d+: a step names one of .*, not purfy"),
    ("    steps:\n      purify: configs/purifiers/jpeg.yaml\n      jpeg",
     "    purify: configs/purifiers/jpeg.yaml\n    jpeg",
     r"jpeg: o[a-z]+: put its steps under `steps:` beside it"),
    ('["jpeg quality=10", ', '["jpg", ', r"iss_best: there is no column 'jpg'"),
    ("columns:", "colums:", r"tiny\.yaml:\d+: unknown key 'colums'.*columns"),
    ("data: ", "dta: ", r"settings: unknown key 'dta'"),
    ("seeds: [0, 1]", "seeds: []", r"at least one seed"),
    ("seeds:", "let: {seed: 7}\nseeds:", r"tiny\.yaml:\d+: let: seed: in braces it is what each"),
    ("    over: {quality: [10, 50]}", "    over: {quality: [10, 50], set: [a]}",
     r"tiny\.yaml:\d+: jpeg: over: set: in braces it is what each cell has of its own"),
    ("method", "method", ""),
])
def test_a_mistake_in_a_table_is_named(tiny, old, new, message):
    if not message:                                     # an unknown method
        changed(tiny, "      jpeg.quality:", "      method: jpge\n      jpeg.quality:")
        message = r"tiny\.yaml:\d+: .*method: there is no purifiers/jpge\.py.*jpeg"
    else:
        changed(tiny, old, new)
    with pytest.raises(UserError) as error:
        planned(tiny)
    assert re.search(message, str(error.value)), error.value


def test_a_mistake_in_a_smaller_form_is_the_forms(tiny):
    changed(tiny, "title: tiny", "title: tiny\nquick: {over: {qality: [10, 50]}, rows: [lsp]}")
    with pytest.raises(UserError, match=r"tiny\.yaml:3: over: no row or column varies "
                                        r"'qality'; did you mean 'quality'"):
        planned(tiny, QUICK)
    changed(tiny, "qality:", "quality:")
    assert {cell.row.name for cell in planned(tiny, QUICK)} == {"lsp"}
    changed(tiny, "rows: [lsp]", "rows: [lps]")
    with pytest.raises(UserError, match=r"tiny\.yaml:3: quick: rows has no 'lps'; did you mean"):
        planned(tiny, QUICK)


@pytest.mark.parametrize("text", ["clean,lsp,a,b", "clean, lsp, a, b"])
def test_a_name_with_any_comma_can_be_chosen(tiny, text):
    for name in ("a,b", "a,  b"):
        changed(tiny, "  clean: []\n", f'  clean: []\n  "{name}": []\n')
        rows = spec.read_one(str(tiny), Choice.split(["--rows", text])[0]).rows
        assert [line.name for line in rows] == ["clean", name, "lsp"]
        changed(tiny, f'  "{name}": []\n', "")


@pytest.mark.parametrize("size", ["quick", "small"])
def test_a_size_of_tables_is_no_table(here, size):
    with pytest.raises(UserError, match=rf"{size}\.yaml: no table, but what --{size} changes in"):
        spec.read(size)


def test_quick_is_the_same_grid_on_digits(here):
    full = spec.read_one("configs/tables/dvae_cifar10.yaml")
    quick = spec.read_one("configs/tables/dvae_cifar10.yaml", QUICK)
    assert [line.name for line in quick.rows] == [line.name for line in full.rows]
    assert [line.name for line in quick.columns] == [line.name for line in full.columns]
    assert quick.settings == {"data": "digits"}
    cell = next(cell for cell in plan.Planner(quick).cells()
                if (cell.row.name, cell.column.name) == ("em", "dvae"))
    purify, = (need for need in cell.record.needs if need.job.kind == "purified")
    poison, dvae = purify.needs
    assert poison.job.config["epsilon"] == 32 / 255     # what the YAMLs hold `for: digits:`
    assert dvae.job.config["width"] == 16
    assert cell.record.job.config["epochs"] == 10


def test_a_part_of_a_table(several):
    """Rows, columns and seeds by name; `none` of all of an `over`; seeds in the order typed."""
    choice, settings = Choice.split(["--rows=lsp", "--seeds", "2,1", "threads=1"])
    assert settings == ("threads=1",)
    assert choice.words == ["--rows=lsp", "--seeds=2,1"]
    digits, photos = spec.read(str(several), choice)
    assert (digits.seeds, [row.name for row in photos.rows]) == ((2, 1), ["lsp"])
    def read(choice: Choice = WHOLE, path: str = "configs/tables/le_table3.yaml"):
        return spec.read_one(path, choice, ("data=cifar10",))

    whole, part = read(), read(Choice(columns=("jpeg", "none")))
    assert [line.name for line in part.columns] == ["none", "jpeg"]     # in the table's order
    assert part.rows == whole.rows
    assert not part.derived                                             # bdr and gray are not there
    part = read(Choice(columns=("bdr", "gray", "jpeg")))
    assert [line.name for line in part.derived] == ["iss_best"]
    table = spec.read("configs/tables/le_table2.yaml",
                      Choice.split(["--columns", "blur, sigma 1,jcdp"])[0])[0]
    assert {line.name for line in table.columns} == {"blur, sigma 1", "jcdp"}   # a comma in a name
    swept = spec.read_one("configs/tables/fig2b.yaml", Choice(columns=("jpeg",)))
    assert len(swept.columns) == 7
    with pytest.raises(UserError, match=r"--rows: .*le_table3.yaml has no 'lps'; did you mean"):
        read(Choice(rows=("lps",)))
    assert read(path="le_table3").title == whole.title
    with pytest.raises(UserError, match=r"^there is no configs/tables/le_table33.yaml; did you"):
        spec.read("le_table33")
    with pytest.raises(UserError, match="--seeds 1,x: expected whole numbers"):
        Choice.split(["--seeds", "1,x"])
    assert Choice.split(["--seeds", "1,0,1"])[0].seeds == (1, 0)
    with pytest.raises(UserError, match="--rows ',': it names none"):
        Choice.split(["--rows", ","])


@pytest.mark.parametrize(("name", "seeds"), [
    ("countermeasures", (0,)), ("bridgepure_table1", (0, 1, 2, 3, 4)), ("fig3", (0,))])
def test_a_tables_own_seeds_win(here, name, seeds):
    """Also over those of --quick, unless its own `quick:` has others."""
    assert spec.read_one(name, QUICK).seeds == seeds


def test_a_seed_is_named_once(tiny):
    with pytest.raises(UserError, match=r"seeds: \[0, 0\] has one twice"):
        spec.read_one(str(changed(tiny, "[0, 1]", "[0, 0]")))


def test_small_is_the_same_grid_on_few_photographs(here):
    """What the YAMLs hold `for: small:`, whatever set stands in the place of CIFAR-10."""
    table = spec.read_one("configs/tables/le_table3.yaml", Choice("small", rows=("em", "lsp")),
                          ("data=digits", "size=32", "split=first:100"))
    assert table.settings == {"data": "digits", "size": "32", "split": "first:100", "like": "small"}
    jobs = {(cell.row.name, cell.column.name): cell.record for cell in plan.Planner(table).cells()}
    record = jobs["em", "none"]
    assert (record.job.config["epochs"], record.job.config["width"]) == (12, 16)
    assert record.needs[0].job.config["batch_size"] == 128
    [purified] = jobs["lsp", "jcdp"].needs
    [poison] = purified.needs
    assert poison.job.config["radius"] == 1.3041
    prior = json.loads((ROOT / "results/small/prior/meta.json").read_text())
    assert purified.job.inputs["checkpoint"] == prior["fingerprint"]


@pytest.mark.parametrize("name", sorted(path.stem for path in spec.TABLES.glob("*.yaml")
                                        if path.stem not in FORMS))
def test_small_needs_no_second_data_set(here, name, capsys):
    """Every table: beside CIFAR-10's rows a prior sees its test images or what is embedded."""
    table = spec.read_one(name, Choice("small"))
    read = {step.settings["data"] for line in (*table.rows, *table.columns) for step in line.steps
            if "data" in step.settings}
    assert (table.settings["data"], read - set(EMBEDDED)) == ("cifar10", set())
    assert not capsys.readouterr().err              # nothing had to be left out


def test_small_makes_jcdp_with_a_prior_of_the_test_images(here):
    """The committed one, in the place of one of CIFAR-100 that is fine-tuned on them, and of what
    other tables train; all other columns stay."""
    small, full = (spec.read("le_table1", Choice(size))[0] for size in ("small", ""))
    assert [line.name for line in small.columns] == [line.name for line in full.columns]
    [purified], [first, *_] = (next(line.steps for line in table.columns if line.name == "jcdp")
                               for table in (small, full))
    assert first.settings["data"] == "{prior}"
    assert purified.settings == {"checkpoint": "results/small/prior"}
    columns = {line.name: [(step.command, step.method, step.settings) for step in line.steps]
               for line in spec.read_one("countermeasures", Choice("small")).columns}
    assert columns["jcdp"] == [("purify", "jcdp", purified.settings)]
    assert columns["dvae, then jcdp"] == [*columns["dvae"], *columns["jcdp"]]
    [only] = spec.read_one("pets_uc", Choice("small", columns=("jcdp, then simclr",))).columns
    assert ([step.method for step in only.steps], only.learner.method) == (["jcdp"], "simclr")
    swept = [line for line in spec.read_one("le_table6", Choice("small")).columns
             if line.family == "jcdp"]
    assert [line.steps[0].settings["checkpoint"] for line in swept] == ["results/small/prior"] * 2
    [own] = spec.read_one("cifar10_contrastive", Choice("small", columns=("jcdp",))).columns
    assert own.steps[0].settings == {"jcdp.t_star": "20", **purified.settings}      # it stays
    trained = json.loads((ROOT / "results/small/prior/meta.json").read_text())["trained_on"]
    assert trained["shape"] == [10000, 32, 32, 3]
    [*records] = ROOT.glob("results/small/le_table3/*/record.json")
    assert {json.loads(record.read_text())["test"]["root_digest"] for record in records} \
        == {trained["root_digest"]}


OTHER = """
  svhn prior:
    - {{train_ddpm: configs/purifiers/ddpm.yaml, data: {data}}}
    - purify: configs/purifiers/jcdp.yaml
derived:
  best: {{max: [none, svhn prior]}}
"""


@pytest.mark.parametrize("data", ["svhn", '"{other}"\nlet: {other: svhn}'])
def test_small_says_which_lines_it_leaves_out(tiny, data, capsys):
    """Those that read another data set and for which it has no checkpoint."""
    name, _, words = data.partition("\n")
    text = changed(tiny, "dataset: cifar10", f"dataset: cifar10\n{words}").read_text()
    tiny.write_text(text.split("derived:")[0].rstrip() + OTHER.format(data=name))
    table = spec.read_one(str(tiny), Choice("small"))
    assert [line.family for line in table.columns] == ["none", "jpeg", "jpeg"]
    assert not table.derived
    assert capsys.readouterr().err == (
        f"note: {tiny} --small: without svhn prior, which read other data sets\n")
    assert len(spec.read_one(str(tiny)).columns) == 4


def test_small_leaves_a_vit_its_network_and_rate(here):
    """Typed, for a preset of a protocol's own method would be the protocol's; on as many images as
    the other cells."""
    table = spec.read_one("dvae_transfer", Choice("small", rows=("clean",),
                                                  columns=("none vit_small", "none"), seeds=(0,)),
                          ("data=digits", "size=32", "split=first:100"))
    cells = {cell.column.name: cell.record.job.config for cell in plan.Planner(table).cells()}
    vit, usual = cells["none vit_small"], cells["none architecture=resnet18"]
    changed = {"architecture": "vit_small", "optimizer": "adam", "learning_rate": 5e-4,
               "weight_decay": 0.0, "nesterov": False}
    assert {key: vit[key] for key in changed} == changed
    assert {**usual, **changed} == vit
    [step] = {line.name: line.learner for line in table.columns
              if line.name == "none vit_small"}.values()
    assert step.settings["split"] == "first:10000"


def test_small_may_make_a_part_unless_others_are_chosen(here):
    def columns(*chosen: str) -> list[str]:
        return [line.name for line in
                spec.read_one("le_table3", Choice("small", columns=chosen)).columns]

    assert columns() == ["none", "bdr", "gray", "jpeg", "jcdp"]
    assert columns("avatar") == ["avatar"]


def test_small_leaves_a_learner_of_its_own_kind_its_protocol(here):
    """SimCLR's classifier is a probe: a protocol of supervised training is none for it."""
    table = spec.read_one("le_table4", Choice("small", columns=("none", "cutout")),
                          ("data=digits", "size=32"))
    jobs = {(cell.row.name, cell.column.name): cell.record.job
            for cell in plan.Planner(table).cells()}
    assert {(job.method, job.config["width"], job.config["epochs"]) for job in jobs.values()} == {
        ("simclr", 16, 40)}
    assert jobs["cp_s", "cutout"].config["views"]["cutout"] == 16


def test_quick_takes_any_learner(tiny):
    """What it changes of an evaluation is a key of whichever method that is."""
    changed(tiny, "configs/learners/em60.yaml", "configs/learners/smoothing.yaml")
    changed(tiny, "  standard.width: 4\n  standard.epochs: 1\n  standard.test_every: 0\n", "")
    [cell, *_] = plan.Planner(spec.read_one(str(tiny), QUICK)).cells()
    assert (cell.record.job.method, cell.record.job.config["test_every"]) == ("smoothing", 0)


@pytest.mark.parametrize(("words", "title", "data", "prior"), [
    (("data=photos",), "Two sets (photos)", "photos", "digits prior"),
    (("data=few.npz",), "Two sets (few.npz)", "few.npz", "photos prior"),
    (("data=few.npz", "like=photos"), "Two sets (few.npz)", "few.npz", "digits prior")])
def test_data_names_one_of_a_tables_data_sets(several, words, title, data, prior):
    table = spec.read_one(str(several), overrides=words)
    assert (table.title, table.settings["data"], table.columns[1].name) == (title, data, prior)


def test_quick_is_one_small_data_set(several):
    table = spec.read_one(str(several), QUICK)
    assert (table.title, table.settings) == ("Two sets", {"data": "digits"})
    assert table.columns[1].words == {"other": "photos"}


@pytest.mark.parametrize(("old", "new", "message"), [
    ("  photos: {let", "  photo: {let", r"several\.yaml:\d+: for: photo: the table's data sets are "
     "digits, photos"),
    ("size: 16", "data: digits", "settings: data: the table names its data sets at its top"),
    ("other} prior", "ohter} prior", r"several\.yaml:\d+: there is no \{ohter\} here"),
    ("let: {other: photos}\n", "lett: {other: photos}\n", "unknown key 'lett'.*'let'")])
def test_a_mistake_about_data_sets_is_named(several, old, new, message):
    with pytest.raises(UserError, match=message):
        spec.read(str(changed(several, old, new)))


def test_a_tables_own_mistake_is_not_the_command_lines(several):
    row = "  em: {poison: configs/poisons/em.yaml, em.epsilom: 1}\n"
    table = changed(several, "columns:", f"{row}columns:")
    with pytest.raises(UserError, match=r"several\.yaml:\d+: unknown key 'em\.epsilom'"):
        plan.cells_of(spec.read(str(table)))


def test_no_data_set_is_a_mistake(several):
    with pytest.raises(UserError, match="data=: it names no data set"):
        spec.read(str(several), overrides=("data=",))


def test_what_is_drawn_is_of_one_data_set(several):
    with pytest.raises(UserError, match="data= names one of digits, photos"):
        spec.read_one(str(several))


def test_le_table_1_is_as_printed(here):
    """Its three data sets, each with its own prior and protocol; jcdp's numbers are LE's."""
    tables = spec.read("configs/tables/le_table1.yaml")
    assert [table.dataset for table in tables] == ["cifar10", "cifar100", "svhn"]
    for key, expected in (("prior", ["cifar100", "cifar10", "cifar10"]),
                          ("protocol", ["em60", "em100", "em60"])):
        words = [Path(table.columns[-1].words[key]).stem for table in tables]
        assert words == expected
    for table in tables:                                # what `protocol` says twice
        assert table.evaluate.yamls == (table.columns[-1].words["protocol"],)
    found = [beside(table, ("lsp",), ("jcdp",))[0]["accuracy"] for table in tables]
    assert len(set(found)) == 3


@pytest.mark.parametrize(("data", "dataset"), [
    ("cifar100", "cifar100"), ("svhn", "svhn"), ("digits", "digits"), ("data/copy.npz", "cifar10")])
def test_published_numbers_are_of_the_data_set_that_is_typed(data, dataset):
    """Of a file nobody knows whose copy it is: it stands in the place of the table's."""
    for name in ("dvae_cifar10", "le_table3"):
        assert spec.read_one(name, overrides=(f"data={data}",)).dataset == dataset


def test_a_seed_typed_in_two_ways_is_one():
    parser = argparse.ArgumentParser()
    Choice.add_to(parser)
    assert Choice.of(parser.parse_args(["--seeds", "0,00,1"])).seeds == (0, 1)


@pytest.mark.parametrize(("data", "said"), [
    ("[]", "it names no data set"), ("[digits, digits]", "it has one twice")])
def test_data_sets_are_some_and_each_once(several, data, said):
    changed(several, "data: [digits, photos]", f"data: {data}")
    changed(several, "for:\n  photos: {let: {other: digits}, evaluate: {evaluate: "
            "configs/learners/em100.yaml}}\n", "")
    with pytest.raises(UserError, match=rf"several\.yaml:3: data: {said}"):
        spec.read(str(several))


@pytest.mark.parametrize(("line", "said"), [
    ("table.sh le_table3 threads=1 fig4", "error: 'fig4': name all tables first"),
    ("table.sh le_table3 --rows em fig4", "error: 'fig4': name all tables first"),
    ("quickstart.sh --seeds", "usage: "), ("quickstart.sh --seeds two", "usage: "),
    ("quickstart.sh --seeds 0", "usage: "), ("quickstart.sh --out", "usage: "),
    ("table.sh --columns none le_table3", "error: name a table first")])
def test_a_shell_line_with_a_mistake_says_how_to_write_it(line, said):
    done = subprocess.run(["bash", *f"{ROOT}/scripts/{line}".split()], capture_output=True,
                          text=True, env={**os.environ, "INSTALL": "no"}, check=False)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


def test_every_table_stands_on_the_page_of_tables():
    page = (ROOT / "docs/tables.md").read_text()
    tables = {path.stem for path in (ROOT / "configs/tables").glob("*.yaml")} - set(FORMS)
    assert {name for name in tables if not re.search(rf"\b{name}\b", page)} == set()


def test_the_pages_row_is_planned(here):
    """By the line behind it, in which one part of two names ("lsp") stands twice."""
    page = (ROOT / "docs/tables.md").read_text()
    example, = (block for block in re.findall(r"(?s)```yaml\n(.*?)```", page) if "\nrows:" in block)
    line, = re.findall(r"run_table\.py (mine\.yaml --quick .* --rows .*?) *#", page)
    (here / "mine.yaml").write_text(example)
    path, *words = shlex.split(line)
    cells = plan.cells_of(spec.read(path, Choice.split(words)[0]))
    assert {cell.row.name for cell in cells} == {
        "lsp, a fifth", "lsp swept radius=2", "lsp swept radius=4", "lsp, with smoothing"}
    assert {(cell.row.name, cell.record.job.method) for cell in cells} >= {
        ("lsp, a fifth", "standard"), ("lsp, with smoothing", "smoothing")}
    assert len(cells) == 8


def test_every_table_has_its_line_and_every_line_its_table():
    tables = {path.stem for path in (ROOT / "configs/tables").glob("*.yaml")} - set(FORMS)
    for name in tables:
        head = "".join((ROOT / f"configs/tables/{name}.yaml").read_text().splitlines(True)[:4])
        lines = re.findall(r"(?:bash|python) (scripts/\w+\.(?:sh|py))", head)
        assert lines, f"{name}.yaml names no line that makes it"
        assert all((ROOT / line).exists() for line in lines), lines
    for path in (ROOT / "scripts").glob("*.sh"):
        for name in re.findall(r'table\.sh" (\w+)', path.read_text()):
            assert name == path.stem
            assert name in tables
