"""A chain of purifiers is its links by hand, one after another: bytes, lineage, labels, resume."""

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIGS, Death, content, run_command, succeed, write_imageset
from methods import checkpoint_of, make_missing

import purify
from core import identity
from core.errors import UserError
from core.imageset import ImageSet
from core.request import parse
from purifiers import dvae, gray, jpeg
from scripts.tables import plan, spec

CHAIN = CONFIGS / "purifiers" / "chain.yaml"


@pytest.fixture(scope="module")
def clean(digits, tmp_path_factory) -> Path:
    """40 digits; beside them their checkpoints, made once."""
    return write_imageset(tmp_path_factory.mktemp("chain") / "clean", digits.images[:40],
                          digits.labels[:40])


@pytest.fixture(scope="module")
def trained(clean) -> dict[str, str]:
    """Checkpoint folders of a D-VAE and a VAE."""
    return {name: checkpoint_of(name, clean, tiny=True)[0].partition("=")[2]
            for name in ("dvae", "vae")}


def lineage(folder: Path) -> list[dict]:
    steps = json.loads((folder / "meta.json").read_text())["lineage"]
    return [{key: value for key, value in step.items() if key != "seconds"} for step in steps]


def links(*sections: str) -> str:
    return f"chain.links=[{', '.join(sections)}]"


def both(clean: Path, *lines: list[str]) -> tuple[Path, Path]:
    """The links' lines one after another, and the chain of them."""
    data, sections = clean, []
    for yaml, *words in lines:
        data = succeed(purify.main, CONFIGS / f"purifiers/{yaml}.yaml", f"data={data}", *words)
        keys = [word for word in words if not word.startswith("checkpoint=")]
        given = [word.partition("=")[2] for word in words if word.startswith("checkpoint=")]
        sections.append(f"{{purifier: {yaml}, keys: {json.dumps(keys)}, "
                        f"checkpoint: {given[0] if given else 'null'}}}")
    return data, succeed(purify.main, CHAIN, f"data={clean}", links(*sections), "out=chained")


def test_it_is_the_links_by_hand(clean):
    hand, chained = both(clean, ["gray"], ["jpeg", "jpeg.quality=30"])
    assert content(hand) == content(chained)
    assert [step["preset"] for step in lineage(hand)] == ["gray", "jpeg"]
    assert lineage(hand) == lineage(chained)
    hand, chained = (json.loads((out / "meta.json").read_text()) for out in (hand, chained))
    assert [hand[key] for key in ("name", "root", "test", "classes")] == \
        [chained[key] for key in ("name", "root", "test", "classes")]
    assert sorted(path.name for path in Path("chained").iterdir()) == [
        "config.yaml", "images.npy", "labels.npy", "log.jsonl", "meta.json"]


def test_so_with_a_limit(clean):
    """Which later splits, and learners of clean images, must know of."""
    hand = succeed(purify.main, CONFIGS / "purifiers/gray.yaml", f"data={clean}", "--limit", 12)
    hand = succeed(purify.main, CONFIGS / "purifiers/jpeg.yaml", f"data={hand}")
    chained = succeed(purify.main, CHAIN, f"data={clean}", "--limit", 12)
    assert content(hand) == content(chained)
    assert lineage(hand) == lineage(chained)
    assert [step["settings"] for step in lineage(chained)] == [{"limit": 12}, {}]


def test_a_seed_of_0_is_that_of_links_without_a_checkpoint(clean, trained):
    def fingerprint(*words: str) -> str:
        request = parse([str(CHAIN), f"data={clean}", *words], "", "purify")
        return identity.purify(request, request.load_data(), None).fingerprint

    assert fingerprint() == fingerprint("seed=0") != fingerprint("seed=1")
    learned = links(f"{{purifier: dvae, checkpoint: {trained['dvae']}}}")
    assert fingerprint(learned) != fingerprint(learned, "seed=0")       # none: its checkpoint's


def test_so_with_checkpoints_whose_seeds_it_takes(clean, trained):
    """Both draw noise; the D-VAE has labels, the VAE none."""
    hand, chained = both(
        clean, ["dvae", f"checkpoint={trained['dvae']}"],
        ["vae", "seed=3", f"checkpoint={trained['vae']}"])
    assert content(hand) == content(chained)
    assert lineage(hand) == lineage(chained)
    assert [step["seed"] for step in lineage(chained)] == [0, 3]
    assert all(step["trained_on"]["name"] == "clean" for step in lineage(chained))


def test_its_seed_is_that_of_every_link_that_has_none(clean, trained):
    section = f"{{purifier: dvae, checkpoint: {trained['dvae']}"
    out = succeed(purify.main, CHAIN, f"data={clean}", "seed=5",
                  links(section + "}", section + ", keys: [seed=7]}"))
    assert [step["seed"] for step in lineage(out)] == [5, 7]


def test_precision_and_smoke_go_on_to_its_links():
    """But for a link whose keys have their own."""
    request = parse([str(CHAIN), "data=digits", "precision=bf16", "--smoke",
                     links("{purifier: gray}", "{purifier: jpeg, keys: [precision=fp32]}")], "",
                    "purify")
    first, second = (request.parts[f"links.{i}"] for i in (0, 1))
    assert (first.device.precision, first.smoke) == ("bf16", True)
    assert (second.device.precision, second.smoke) == ("fp32", True)


def test_its_config_is_its_line_again(clean, trained):
    """The seed that nobody typed, and the precision, stay those of each link's checkpoint."""
    given = ["dvae", f"checkpoint={trained['dvae']}", "seed=3"]
    _, out = both(clean, ["gray"], given)
    again = run_command(purify.main, out / "config.yaml", "out=again", "--dry-run")
    assert "seed: null\n" in again.stdout
    assert "precision: auto\n" in again.stdout
    assert f"{out} is already done" in run_command(purify.main, out / "config.yaml").stderr
    same = succeed(purify.main, out / "config.yaml", "out=again")
    assert content(same) == content(out)
    assert lineage(same) == lineage(out)


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_reach_the_links_that_need_them(clean, trained, labelled, monkeypatch):
    seen = {}

    def watch(module):
        own = module.purify
        monkeypatch.setattr(module, "purify", lambda images, *rest: (
            seen.update({module.__name__: images.labels}), own(images, *rest))[1])

    watch(gray)
    watch(dvae)
    sections = ["{purifier: gray}"]
    sections += [f"{{purifier: dvae, checkpoint: {trained['dvae']}}}"] * labelled
    out = succeed(purify.main, CHAIN, f"data={clean}", links(*sections))
    assert seen["purifiers.gray"] is None
    if labelled:
        np.testing.assert_array_equal(seen["purifiers.dvae"], np.load(clean / "labels.npy"))
    np.testing.assert_array_equal(np.load(out / "labels.npy"), np.load(clean / "labels.npy"))
    request = parse([str(CHAIN), links(*sections)], "", "purify")
    assert request.needs_labels is labelled


def test_what_counts_is_what_the_links_do(clean, trained):
    """Their values, checkpoints and seeds, wherever they stand; not the names of their YAMLs."""
    def fingerprint(*words: str) -> str:
        outcome = run_command(purify.main, CHAIN, f"data={clean}", *words, "--dry-run")
        assert outcome.status == 0, outcome.stderr
        return next(line for line in outcome.stdout.splitlines() if "# fingerprint" in line)

    Path("mine.yaml").write_text("method: jpeg\njpeg: {quality: 10}\n")
    usual = fingerprint()
    assert fingerprint(links("{purifier: gray}", "{purifier: mine.yaml}")) == usual
    shown = run_command(purify.main, CHAIN, f"data={clean}", "chain.links.0.purifier=chain",
                        "--dry-run").stdout
    assert "# chain.links.0: chain: gray > jpeg: quality 10\n" in shown
    Path("mine.yaml").write_text("method: jpeg\njpeg: {quality: 11}\n")
    others = [
        fingerprint(links("{purifier: gray}", "{purifier: mine.yaml}")),
        fingerprint("chain.links.1.keys=[jpeg.quality=12]"),
        fingerprint("chain.links.1.keys=[seed=1]"), fingerprint("seed=1"),
        fingerprint(links("{purifier: jpeg}", "{purifier: gray}")),
        *(fingerprint(links(f"{{purifier: dvae, checkpoint: {trained['dvae']}, keys: {keys}}}"))
          for keys in ("[]", "[dvae.latent=mean]"))]
    assert len({usual, *others}) == len(others) + 1
    copy = Path("copy")
    copy.symlink_to(trained["dvae"])
    assert fingerprint(links(f"{{purifier: dvae, checkpoint: {copy}}}")) == others[-2]


def test_a_link_takes_the_values_for_the_data_set_behind_the_images(clean):
    section = links("{purifier: jcdp}")
    own, chained = (parse([str(CONFIGS / f"purifiers/{name}.yaml"), *words], "", "purify")
                    for name, words in (("jcdp", [f"data={clean}"]),
                                        ("chain", [f"data={clean}", section])))
    assert own.config.sampler == "subsampled"
    assert chained.parts["links.0"].config == own.config
    liked = parse([str(CHAIN), "data=elsewhere", "like=digits", section], "", "purify")
    assert liked.parts["links.0"].config == own.config
    other = parse([str(CHAIN), "data=photos", section], "", "purify")
    assert "no values of its own for photos" in other.fit


# --- chains in chains ------------------------------------------------------------------------


def test_a_chain_may_hold_a_chain(clean):
    flat = succeed(purify.main, CHAIN, f"data={clean}", "preset=iss")
    nested = succeed(purify.main, CHAIN, f"data={clean}",
                     links("{purifier: bdr}", f"{{purifier: {CHAIN}}}"))
    assert content(flat) == content(nested)
    assert lineage(flat) == lineage(nested)


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_a_chain_that_contains_itself_is_refused(clean, names):
    for name, inside in zip(names, names[1:] + names[:1], strict=True):
        Path(f"{name}.yaml").write_text(
            f"method: chain\nchain: {{links: [{{purifier: gray}}, {{purifier: {inside}.yaml}}]}}\n")
    outcome = run_command(purify.main, "a.yaml", f"data={clean}")
    assert outcome.status == 1
    assert "a chain that contains itself has no end" in outcome.error
    assert not Path("runs").exists()


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("section", "said"), [
    ("{purifier: jpeg, keys: [jpeg.qualty=5]}", r"chain.links.1 \(jpeg\): .*unknown key "
     r"'jpeg.qualty'; did you mean 'jpeg.quality'"),
    ("{purifier: jpeg, keys: [jpeg.quality=500]}", r"links.1 \(jpeg\): .*500 is out of range"),
    ("{purifier: jpg}", r"chain.links.1.purifier: there is no configs/purifiers/jpg.yaml; did you "
     "mean 'jpeg'"),
    ("{purifier: no.yaml}", r"chain.links.1 \(no.yaml\): no.yaml: no such file"),
    ("{purifier: dvae}", r"chain.links.1 \(dvae\): checkpoint: dvae is trained; make one with "
     r"python train_vae.py"),
    ("{purifier: jpeg, checkpoint: x}", r"links.1 \(jpeg\): checkpoint: jpeg is not trained"),
    ("{purifier: dvae, checkpoint: nowhere}", r"chain.links.1.*nowhere"),
    ("{purifier: jpeg, keys: [out=x]}", "chain.links.1.keys: 'out=x' is no key=value that a link"),
    ("{purifier: jpeg, keys: [--force]}", "chain.links.1.keys: '--force' is no key=value"),
    ("{purifier: jpeg, keys: [data=digits]}", "'data=digits' is no key=value that a link takes"),
    ("{purifer: jpeg}", "unknown key 'chain.links.1.purifer'; did you mean "
     "'chain.links.1.purifier'"),
    (f"{{purifier: {CONFIGS}/learners/em60.yaml}}", "there is no purifiers/standard.py")])
def test_a_mistake_names_its_link(clean, section, said):
    outcome = run_command(purify.main, CHAIN, f"data={clean}", links("{purifier: gray}", section),
                          "out=out")
    assert outcome.status == 1
    with pytest.raises(UserError, match=said):
        raise UserError(outcome.error)
    assert list(Path().iterdir()) == []


def test_no_links_and_a_foreign_checkpoint_are_refused(clean, trained):
    outcome = run_command(purify.main, CHAIN, f"data={clean}", "chain.links=[]")
    assert "chain.links: a list of 0 is out of range" in outcome.error
    outcome = run_command(purify.main, CHAIN, f"data={clean}", links(
        "{purifier: gray}", f"{{purifier: dvae, checkpoint: {trained['vae']}}}"), "out=out")
    assert "chain.links.1 (dvae): " in outcome.error
    assert "is a checkpoint of 'vae'" in outcome.error
    assert list(Path().iterdir()) == []             # the first link did not begin


# --- resume ----------------------------------------------------------------------------------


@pytest.mark.parametrize("death", [Death, UserError])
def test_a_link_that_was_whole_is_not_made_again(clean, monkeypatch, death):
    straight = content(succeed(purify.main, CHAIN, f"data={clean}", "out=straight"))
    made, own = [], gray.purify
    monkeypatch.setattr(gray, "purify", lambda *given: made.append("gray") or own(*given))

    def die(*given):
        raise death("row 3 has non-finite pixels")

    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "purify", die)
        if death is Death:
            with pytest.raises(Death):
                run_command(purify.main, CHAIN, f"data={clean}", "out=out")
        else:
            outcome = run_command(purify.main, CHAIN, f"data={clean}", "out=out")
            assert outcome.error == "chain.links.1 (jpeg): row 3 has non-finite pixels"
    assert content(succeed(purify.main, CHAIN, f"data={clean}", "out=out")) == straight
    assert made == ["gray"]
    assert not Path("out.partial").exists()


def test_an_interrupt_of_a_links_last_step_is_the_chains(clean, monkeypatch):
    """Not forgotten with the link: the next one may take hours."""
    straight = content(succeed(purify.main, CHAIN, f"data={clean}", "out=straight"))
    own = gray.purify

    def interrupted(poisoned, config, run):
        made = own(poisoned, config, run)
        signal.raise_signal(signal.SIGINT)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(gray, "purify", interrupted)
        outcome = run_command(purify.main, CHAIN, f"data={clean}", "out=out")
    assert (outcome.status, outcome.error) == (130, None)
    assert sorted(path.name for path in Path("out.partial/state").iterdir()) == ["links.0"]
    assert content(succeed(purify.main, CHAIN, f"data={clean}", "out=out")) == straight


def test_it_is_of_its_links_code_too(clean):
    """So that a resumed run says which of them was changed, and --force makes all of it again."""
    request = parse([str(CHAIN), f"data={clean}"], "", "purify")
    job = identity.purify(request, request.load_data(), None)
    assert list(job.code) == [f"purifiers/{name}.py" for name in ("chain", "gray", "jpeg")]
    assert dataclasses.replace(job, parts=()).fingerprint == job.fingerprint


def test_a_damaged_set_between_the_links_is_refused(clean, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "purify", lambda *given: (_ for _ in ()).throw(Death))
        with pytest.raises(Death):
            run_command(purify.main, CHAIN, f"data={clean}", "out=out")
    images = Path("out.partial/state/links.0/images.npy")
    data = bytearray(images.read_bytes())
    data[-1] ^= 1
    images.write_bytes(data)
    outcome = run_command(purify.main, CHAIN, f"data={clean}", "out=out")
    assert outcome.status == 1
    assert "links.0/images.npy" in outcome.error


# --- tables ----------------------------------------------------------------------------------

TABLE = """
title: chains
settings: {{data: {clean}, test: {clean}, threads: 1}}
evaluate:
  evaluate: configs/learners/em60.yaml
  standard.architecture: linear
  standard.batch_size: 16
  standard.epochs: 1
rows:
  clean: []
columns:
  steps:
    - purify: configs/purifiers/gray.yaml
    - purify: configs/purifiers/jpeg.yaml
  chain:
    - purify: configs/purifiers/chain.yaml
  trained:
    - train_vae: configs/purifiers/vae.yaml
      vae.train.width: 2
      vae.train.latent_channels: 16
      vae.train.epochs: 1
      vae.train.batch_size: 16
    - purify: configs/purifiers/chain.yaml
      chain.links: "[{{purifier: vae, checkpoint: {checkpoint}}}, {{purifier: gray}}]"
"""


def cells(text: str) -> dict[str, plan.Cell]:
    Path("configs").exists() or Path("configs").symlink_to(CONFIGS)
    Path("table.yaml").write_text(text)
    return {cell.column.name: cell for cell in plan.Planner(spec.read_one("table.yaml")).cells()}


def test_a_table_takes_it_for_its_steps(clean):
    made = cells(TABLE.format(clean=clean, checkpoint="'{checkpoint}'"))
    make_missing(list(made.values()))
    records = {name: json.loads((cell.record.out / "record.json").read_text())
               for name, cell in made.items()}
    one, same = records["steps"], records["chain"]
    for key in ("curve", "train_accuracy"):
        assert one[key] == same[key]
    assert one["train"]["name"] == same["train"]["name"]
    assert [[step["method"] for step in records[name]["train"]["lineage"]] for name in made] == [
        ["gray", "jpeg"], ["gray", "jpeg"], ["vae", "gray"]]
    assert [len(records[name]["purifier_trained_on"]) for name in made] == [0, 0, 1]
    assert made["steps"].record.out.name.rpartition("-")[0] == \
        made["chain"].record.out.name.rpartition("-")[0]
    for name, cell in made.items():             # planned as the commands made it
        [of] = [need for need in cell.record.needs if need.job.kind == "purified"]
        assert ImageSet.load(of.out).fingerprint == of.job.fingerprint, name


def test_a_table_whose_chain_lacks_a_checkpoint_is_refused(clean):
    text = TABLE.format(clean=clean, checkpoint="null")
    with pytest.raises(UserError, match=r"table.yaml:\d+: chain.links.0 \(vae\): checkpoint: vae"):
        cells(text)
