"""`list.py` and `compare.py`: what there is, what a name means, where a number is from."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import CONFIGS, ROOT, edit_record, run_command

from core import config, records
from core.methods import list_methods
from purifiers import dvae
from scripts.finding import cite, compare, listing
from scripts.finding.numbers import places
from scripts.pictures.figures import PAPER

SMALL = ROOT / "results/small/dvae_cifar10"
EM, DVAE = SMALL / "cifar10-train-em-cpu12-cb8d9ca8", SMALL / "cifar10-train-em-dvae-cpu12-c1010032"


@pytest.fixture(autouse=True)
def here(tmp_path):
    """Tables read configs/tables/ from where one stands."""
    (tmp_path / "configs").symlink_to(CONFIGS)


def listed(*words: str) -> str:
    outcome = run_command(listing.main, *words)
    assert outcome.status == 0, outcome.stderr
    return outcome.stdout


def test_everything_has_one_line():
    shown = listed()
    lines = [line.split()[0] for line in shown.splitlines() if line.startswith("  ")]
    for room in ("poisons", "purifiers", "learners"):
        yamls = [path.stem for path in (CONFIGS / room).glob("*.yaml")]
        assert {*yamls, *list_methods(room)} <= set(lines)
    assert {*PAPER, "le_table3", "dvae_cifar10", "digits", "photos", "cifar10",
            "preset=eps16"} <= set(lines)
    assert not {"quick", "small"} & set(lines)          # forms of a table, and none
    assert lines.count("em") == 1
    blocks = re.split(r"\n\n(?=\w)", shown)
    assert [block.split(",")[0] for block in blocks] == list(listing.PARTS)
    assert all(text for block in blocks for line in block.splitlines()[1:]
               for _, text in [re.split(r"\s{1,}", line.strip(), maxsplit=1)])


def test_a_part_alone():
    shown = listed("attacks")
    assert "\n  em                        EM: error-minimising noise, sample-wise.\n" in shown
    assert "jpeg" not in shown
    assert listed("poisons") in shown
    assert listed("methods").startswith(listed("poisons"))
    assert "\n  rem preset=lite           rem.transforms=2 " in listed("presets")
    assert "\n  ddpm preset=avatar_released precision=fp32 " in listed("presets")
    assert "bash scripts/attacks.sh [--quick | --small]" in shown       # a table has that name too


@pytest.mark.parametrize(("word", "lines"), [
    ("jcdp", ["purifiers/jcdp.py: JCDP", "  jcdp.t_star = 20 ", "[whole, at least 1]",
              "  preset=released "]),
    ("dvae", ["keys of python purify.py", "keys of python train_vae.py", "dvae.train.epochs = "]),
    ("t_star", ["jcdp.t_star = 20 steps of noise", "ddpm.t_star = 100 steps", "figures.py t_star"]),
    ("jcdp.t_star", ["jcdp.t_star = 20 steps of noise, of the prior's T; release: 20 [whole, at"]),
    ("split", ["split = train train, test, protected"]),
    ("cifar100", ["data=cifar100: 50,000 images for training, 10,000 for testing, 32x32, 100 cl"]),
    ("small", ["a table's --small:", "the first 10,000 training images of CIFAR-10"]),
    ("photos", ["data=photos: 520 tiles of scikit-learn's two photographs"]),
    ("pets", ["data=pets: 3,680 images for training, 3,669 for testing, 224x224, 37 classes"]),
    ("em60", ["EM's protocol, 60 epochs", "configs/learners/em60.yaml", "list.py standard"]),
    ("eps16", ["python -m poisons em preset=eps16: em.epsilon=16/255", " tap preset=eps16: "]),
    ("le_table3", ["rows: clean, em, lsp, rem\n", "columns: none, bdr, gray, jpeg, avatar, jcdp\n",
                   "[4 rows x 6 columns, 3 seeds, on cifar10, cifar100]",
                   "bash scripts/le_table3.sh [--quick"]),
    ("small_sweep", ["bash scripts/table.sh small_sweep"]),
    ("fig2b", ["python scripts/figures.py fig2b", "columns: none, vae, jpeg"]),
])
def test_what_a_name_is(word, lines):
    shown = listed(word)
    for line in lines:
        assert line in shown


def test_a_key_is_explained_in_one_line():
    shown = [line for line in listed("t_star").splitlines() if ".t_star = " in line]
    assert len(shown) == 2
    assert all(line.endswith("[whole, at least 1]") for line in shown)


@pytest.mark.parametrize(("word", "message"), [
    ("jdcp", "there is nothing of the name 'jdcp' (python scripts/list.py lists everything); did "
     "you mean 'jcdp'?"),
    ("le_table33", "did you mean 'le_table3'?"), ("em.epsilo", "did you mean 'em.epsilon'?"),
    ("xyzzy", "there is nothing of the name 'xyzzy' (python scripts/list.py lists everything)")])
def test_an_unknown_name_is_told_the_nearest(word, message):
    assert run_command(listing.main, word).error.endswith(message)


@pytest.mark.parametrize("words", [["--clean"], ["em", "--clean"], ["runs", "--yes"], ["cite"],
                                   ["cite", "a", "b"], ["runs", "a", "b"]])
def test_a_line_that_means_nothing_is_a_usage_error(words):
    assert run_command(listing.main, *words).status == 2


# --- numbers ---------------------------------------------------------------------------------


def test_where_a_number_is_from(tmp_path):
    (tmp_path / "results").mkdir()
    shutil.copytree(DVAE, tmp_path / "results/dvae")
    (tmp_path / "results/table.md").write_text("| em | dvae | 66.5 ± 0.2 (3) |\n| 166.5 | 66.55 |")
    assert listed("66.5").splitlines() == [
        "results/dvae: cifar10-train.npz > em > dvae, cpu12, seed 0: after the last epoch; "
        "best epoch, an oracle's choice", "results/table.md:1: | em | dvae | 66.5 ± 0.2 (3) |",
        "results/reported.csv: BridgePure T1 (paper): cifar100, rem, bridgepure_0.5k, resnet18"]
    assert "results/dvae: cifar10-train.npz > em > dvae" in listed("66.54")
    assert listed("66.5%") == listed("66.5")
    assert "reported.csv: APBench site-svhn (leaderboard): svhn, em, gray" in listed("65.66")
    assert listed("12.345").startswith("12.345 is in no record, table or page here")


def test_a_mean_names_its_records(tmp_path):
    """One of each seed; another of a seed is another mean's, and another learner's key is another
    cell. What lies in two folders is one record."""
    for name, seed, last, changes in (
            ("a", 0, 0.66, {}), ("b", 1, 0.68, {}), ("again", 1, 0.70, {}),
            ("other", 2, 0.9, {"config": {"epochs": 99}})):
        shutil.copytree(DVAE, tmp_path / "runs" / name)
        edit_record(tmp_path / "runs" / name, seed=seed, accuracy_last=last,
                    fingerprint=name * 9, **changes)
    shutil.copytree(tmp_path / "runs/a", tmp_path / "results/a")
    head = ("the mean of 2 records, cifar10-train.npz > em > dvae, cpu12: results/a (seed 0, "
            "66.00), ")
    assert head + "runs/b (seed 1, 68.00)" in listed("67.0").splitlines()
    assert head + "runs/again (seed 1, 70.00)" in listed("68.0").splitlines()
    assert "the mean" not in listed("74.7")


def test_every_mean_of_the_small_tables_is_found(monkeypatch):
    monkeypatch.chdir(ROOT)
    printed = {mean for path in ROOT.glob("results/small/*/table.md")
               for mean in re.findall(r"\| ([\d.]+) ± [\d.]+ \(3\)", path.read_text())}
    assert len(printed) > 10
    for mean in printed:
        line = next(line for line in places(mean) if line.startswith("the mean of 3 records"))
        assert re.findall(r"\(seed (\d)", line) == ["0", "1", "2"]


def test_the_epoch_that_was_kept_is_told(tmp_path):
    """Not the last one: early stopping keeps another's weights."""
    shutil.copytree(DVAE, tmp_path / "runs/kept")
    edit_record(tmp_path / "runs/kept", kept_epoch=4)
    assert "seed 0: after epoch 4, which was kept;" in listed("66.5")
    assert "correctly after epoch 4, which was kept (one run)" in listed("cite", "runs/kept")


def test_a_record_of_a_part_or_of_a_trial_says_so(tmp_path):
    """Its accuracy is not the protocol's."""
    for name, settings in (("smoke", {"smoke": True}), ("part", {"limit": 500})):
        shutil.copytree(DVAE, tmp_path / "runs" / name)
        edit_record(tmp_path / "runs" / name, settings=settings)
    assert [line.partition(" > dvae, ")[2].partition(":")[0] for line in listed(
        "66.54").splitlines()] == ["cpu12 --limit 500, seed 0", "cpu12 --smoke, seed 0"]


# --- citing ----------------------------------------------------------------------------------


def newer(folder: Path, **more) -> Path:
    """A record with what records say from now on."""
    shutil.copytree(DVAE, folder)
    edit_record(folder, **{"commit": "ab" * 20, "dirty": False, "date": "2026-11-26T18:00:04Z",
                           "overrides": {"epochs": 2}, **more})
    return folder


def test_a_record_is_cited_with_what_it_knows(tmp_path):
    sentence, entry, *methods = cite.text(newer(tmp_path / "r")).split("\n\n")
    assert sentence == (
        "A resnet18 of width 16, trained for 12 epochs (protocol cpu12, epochs=2, seed 0) on "
        "10,000 images of cifar10-train poisoned by EM (batch_size=128, width=16) and purified by "
        "D-VAE (latent=mean), classifies 66.5 % of the 10,000 test images of cifar10-test.npz "
        "correctly after the last epoch (one run), where the defence saw the poisoned set; "
        "measured on 2026-11-26 with commit abababab and torch 2.14.1 on Intel(R) Xeon(R) "
        "Processor; record c1010032.")
    assert entry.startswith("@misc{record-c1010032,\n  title  = {{Purifying unlearnable ex")
    assert r"cifar10-train.npz $>$ em $>$ dvae, cpu12, epochs=2: 66.5 \%}," in entry
    assert "  year   = {2026},\n" in entry
    assert f"commit {'ab' * 20}}}" in entry
    assert [method.partition(",")[0] for method in methods] == [
        "@inproceedings{yu2024dvae", "@inproceedings{huang2021em"]


def test_a_citation_is_latex_whatever_a_set_is_called(tmp_path):
    train = json.loads((EM / "record.json").read_text())["train"]
    train["root"]["data"] = "my{set$1_^.npz"
    _, entry, *_ = cite.text(newer(tmp_path / "r", train=train)).split("\n\n")
    assert r"my\{set\$1\_\^{}.npz" in entry


def test_how_the_purifier_was_trained_is_cited(tmp_path):
    train = json.loads((DVAE / "record.json").read_text())["train"]
    trained = config.plain(dvae.TrainConfig()) | {"epochs": 15, "stages": [
        {"kld_target": 1.0, "output": "subtract"}, {"kld_target": 2.0, "output": "both"}]}
    train["lineage"][-1]["trained_on"]["config"] = trained
    record = newer(tmp_path / "r", train=train)
    assert ("purified by D-VAE (latent=mean, train.epochs=15, train.stages=[{kld_target: 1, "
            "output: subtract}, {kld_target: 2, output: both}])") in cite.text(record)


def test_a_changed_tree_and_an_older_record_are_told(tmp_path):
    assert "with commit abababab with changes and torch" in cite.text(
        newer(tmp_path / "a", dirty=True))
    assert "measured on 2026-11-26 with an unrecorded commit and torch" in cite.text(
        newer(tmp_path / "b", commit=None, dirty=None))
    old = listed("cite", str(EM))
    assert "poisoned by EM (batch_size=128, width=16), classifies" in old
    assert "measured on a day that is not recorded with an unrecorded commit" in old
    assert "year" not in old.partition("\n\n")[2].partition("\n\n")[0]


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/**/record.json")),
                         ids=lambda path: path.parent.name)
def test_every_committed_record_is_cited(path):
    """Also those of years ago: without learner, test set or versions."""
    sentence, entry = cite.text(path).split("\n\n")[:2]
    assert f"{100 * json.loads(path.read_text())['accuracy_last']:.1f} % of" in sentence
    assert entry.count("{") == entry.count("}")


def test_what_is_no_record_is_not_cited(tmp_path):
    assert "no such folder; it should be a record" in run_command(
        listing.main, "cite", str(tmp_path / "x")).error


# --- comparing -------------------------------------------------------------------------------


def compared(one: Path, other: Path) -> list[str]:
    outcome = run_command(compare.main, one, other)
    assert outcome.status == 0, outcome.stderr
    return [" ".join(line.split()) for line in outcome.stdout.splitlines()]


def test_what_two_records_differ_in(tmp_path):
    record = json.loads((DVAE / "record.json").read_text())
    record["config"]["epochs"] = 2
    record["train"]["lineage"][0]["config"]["epsilon"] = 16 / 255
    other = newer(tmp_path / "other", seed=1, accuracy_last=0.7, date="x", versions={"torch": "3"},
                  config=record["config"], train=record["train"])
    lines = compared(DVAE, other)
    assert lines[0].endswith("c1010032: cifar10-train.npz > em > dvae, cpu12")
    assert lines[1].endswith("other: cifar10-train.npz > em > dvae, cpu12, epochs=2")
    assert lines[2:] == [
        "the same work, made twice", "numbers:", "accuracy_last 66.54 % | 70.00 % (+3.46)",
        "settings:", "config.epochs 12 | 2", "seed 0 | 1", "data:",
        "train.em.epsilon 8/255 | 16/255", "versions:", "versions.torch 2.14.1 | 3"]


def test_steps_that_one_alone_has_are_told_by_the_lineage():
    lines = compared(EM, DVAE)
    assert "train.lineage em | em > dvae" in lines
    assert not [line for line in lines if line.startswith(("train.em.", "train.dvae."))]
    assert "settings: no difference" in lines
    assert compared(EM, EM / "record.json")[2:] == [
        "the same record", *(f"{name}: no difference" for name in compare.HEADINGS)]


def test_how_a_purifier_was_trained_is_compared(tmp_path):
    """By its settings, or where older records do not tell them by its checkpoint."""
    train = json.loads((DVAE / "record.json").read_text())["train"]
    *before, step = train["lineage"]
    told = {"config": {"epochs": 15, "stages": [{"kld_target": 1.0}, {"kld_target": 3.0}]}}
    for name, trained in (("older", {}), ("one", told),
                          ("other", {"config": {**told["config"], "epochs": 30}})):
        shutil.copytree(DVAE, tmp_path / name)
        made = {**step, "inputs": {**step["inputs"], "checkpoint": "c" * 64},
                "trained_on": {**step["trained_on"], **trained}}
        edit_record(tmp_path / name, train={**train, "lineage": [*before, made]})
    other = step["inputs"]["checkpoint"][:8]
    assert f"train.dvae.checkpoint {other} | cccccccc" in compared(
        DVAE, tmp_path / "older")
    assert "train.dvae.trained_on.config.epochs 15 | 30" in compared(
        tmp_path / "one", tmp_path / "other")


def test_a_key_that_was_added_later_is_at_its_default_in_an_older_record(tmp_path):
    """Of the learner and of a set's step; what it says of its own is kept."""
    record = json.loads((EM / "record.json").read_text())
    [step] = record["train"]["lineage"]
    assert not {"shuffle", "warmup_epochs"} & record["config"].keys()
    assert "random_start" not in step["config"]
    said = {"config": {**record["config"], "shuffle": True, "warmup_epochs": 0},
            "train": {**record["train"], "lineage": [
                {**step, "config": {**step["config"], "random_start": False}}]}}

    def kept(name: str) -> Path:
        shutil.copytree(EM, tmp_path / name)
        edit_record(tmp_path / name, **said)
        return tmp_path / name

    same = kept("same")
    assert compared(EM, same)[3:] == [f"{name}: no difference" for name in compare.HEADINGS]
    said["config"]["warmup_epochs"] = 5
    said["train"]["lineage"][0]["config"]["random_start"] = True
    lines = compared(EM, kept("other"))
    assert "config.warmup_epochs 0 | 5" in lines
    assert "train.em.random_start false | true" in lines


def test_steps_of_one_method_are_told_apart_by_their_number(tmp_path):
    train = json.loads((DVAE / "record.json").read_text())["train"]
    [poison, step] = train["lineage"]
    again = {**step, "config": {**step["config"], "latent": "mean"}}
    for name, latent in (("one", "mean"), ("other", "sample")):
        lineage = [poison, {**step, "config": {**step["config"], "latent": "mean"}},
                   {**again, "config": {**again["config"], "latent": latent}}]
        newer(tmp_path / name, train={**train, "lineage": lineage})
    lines = compared(tmp_path / "one", tmp_path / "other")
    assert [line for line in lines if "latent" in line] == [
        "train.dvae (2).latent mean | sample"]


def test_two_sets_of_one_fingerprint_are_told_apart_by_their_bytes(tmp_path):
    """As two kinds of processor make them."""
    train = json.loads((EM / "record.json").read_text())["train"]
    assert "images_sha256" not in train                 # of a record made before it was kept
    one, other = (newer(tmp_path / byte, train={**train, "images_sha256": 64 * byte})
                  for byte in "ab")
    assert "train.images_sha256 aaaaaaaa | bbbbbbbb" in compared(one, other)


def test_that_only_a_part_was_poisoned_is_told_everywhere(tmp_path):
    train = json.loads((DVAE / "record.json").read_text())["train"]
    poison, purifier = train["lineage"]
    half = newer(tmp_path / "half", train={**train, "lineage": [
        {**poison, "settings": {"fraction": 0.5, "craft_on": "all"}},
        {**purifier, "settings": {"limit": 500}}]})
    part = newer(tmp_path / "part", train={**train, "lineage": [
        {**poison, "settings": {"fraction": 0.5, "craft_on": "part"}}, purifier]})
    assert "em (fraction=0.5) > dvae (limit=500)" in records.lineage_text(records.load(half))
    assert "em (fraction=0.5, craft_on=part) > dvae," in "\n".join(compared(half, part))
    assert ("poisoned by EM (batch_size=128, width=16, fraction=0.5) and purified by D-VAE "
            "(latent=mean, limit=500)") in cite.text(half)
    lines = compared(DVAE, half)
    assert "train.em.settings.fraction - | 0.5" in lines
    assert "train.dvae.settings.limit - | 500" in lines


def test_what_is_no_record_is_not_compared(tmp_path):
    assert "it should be a record" in run_command(compare.main, EM, tmp_path / "x").error
