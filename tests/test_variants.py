"""`for:` a data set and `presets:` of a YAML."""

from pathlib import Path

import pytest
from conftest import CONFIGS, ROOT, run_command, succeed
from methods import APPLYING

import evaluate
from core import config, variants
from core.errors import UserError
from core.methods import list_methods
from core.request import parse
from poisons.__main__ import main as poison_main

YAML = """
method: lsp
data: cifar10
lsp: {radius: 1, patch: 8}
for:
  svhn: {lsp: {radius: 2}}
  digits: {lsp: {radius: 3, patch: 4}}
presets:
  large:
    lsp: {radius: 10}
    for: {digits: {lsp: {radius: 30}}}
"""


@pytest.fixture
def lsp(tmp_path):
    """Resolve YAML as `python -m poisons FILE words` would: (radius, patch)."""
    (tmp_path / "mine.yaml").write_text(YAML)

    def resolve(*words: str, file: str = "mine.yaml") -> tuple[float, int]:
        found = parse([file, *words], "", "poison").config
        return found.radius, found.patch

    return resolve


@pytest.mark.parametrize(("words", "expected"), [
    ([], (1, 8)), (["data=cifar10"], (1, 8)), (["data=cifar100"], (1, 8)),
    (["data=svhn"], (2, 8)), (["data=digits"], (3, 4)), (["data=x.npz", "like=digits"], (3, 4)),
    (["preset=large"], (10, 8)), (["preset=large", "data=svhn"], (10, 8)),
    (["preset=large", "data=digits"], (30, 4)),         # the preset's own section comes last
    (["preset=large", "data=digits", "lsp.radius=5"], (5, 4)),          # and what is typed over all
    (["--smoke"], (3, 8)),                              # smoke is on digits, with its own patch
])
def test_what_goes_over_what(lsp, words, expected):
    assert lsp(*words) == expected


def test_a_yaml_on_top_of_another_has_its_sections_too(lsp):
    Path("yours.yaml").write_text(
        "base: mine.yaml\nlsp: {radius: 7}\nfor: {svhn: {lsp: {patch: 2}}}")
    assert lsp(file="yours.yaml") == (7, 8)
    assert lsp("data=svhn", file="yours.yaml") == (2, 2)
    assert lsp("preset=large", file="yours.yaml") == (10, 8)


def test_a_yaml_of_another_method_takes_over_what_a_base_has_for_its_own(tmp_path):
    """A learner's YAML goes on from a protocol: so with its forms for data sets and its presets."""
    Path("old.yaml").write_text(
        "method: standard\nstandard: {epochs: 5, width: 4}\n"
        "for: {digits: {standard: {width: 2}, seed: 3}}\n"
        "presets: {long: {standard: {epochs: 9}, for: {digits: {standard: {width: 3}}}}}\n")
    Path("new.yaml").write_text("base: old.yaml\nmethod: smoothing\n"
                                "smoothing: {label_smoothing: 0.2}\n")

    def resolve(*words: str) -> tuple:
        request = parse(["new.yaml", *words], "", "evaluate")
        found = request.config
        return request.method, found.label_smoothing, found.epochs, found.width, \
            request.settings.seed

    assert resolve() == ("smoothing", 0.2, 5, 4, None)
    assert resolve("data=digits") == ("smoothing", 0.2, 5, 2, 3)
    assert resolve("data=digits", "preset=long") == ("smoothing", 0.2, 9, 3, 3)
    assert resolve("preset=long", "smoothing.width=7") == ("smoothing", 0.2, 9, 7, None)
    Path("new.yaml").write_text("base: old.yaml\nmethod: smoothing\nstandard: {epochs: 5}\n")
    with pytest.raises(UserError, match=r"new\.yaml:3: unknown key 'standard'"):
        resolve()
    Path("new.yaml").write_text("base: old.yaml\nmethod: [smoothing]\n")
    with pytest.raises(UserError, match="method: expected a single value"):
        resolve()


PROTOCOL = """
method: standard
split: first:100
standard: {epochs: 5, clip_norm: null}
for: {digits: {standard: {epochs: 2, flip: false}}}
"""
LEARNER = """
method: smoothing
smoothing: {label_smoothing: 0.2, epochs: 9, schedule: multistep, milestones: [4]}
presets: {much: {smoothing: {label_smoothing: 0.5, epochs: 90}}}
"""


def test_protocol_puts_a_learner_under_the_schedule_of_another_yaml(tmp_path):
    """The learner's own keys stay; those that it shares are the protocol's, defaults included."""
    Path("short.yaml").write_text(PROTOCOL)
    Path("mine.yaml").write_text(LEARNER)

    def resolve(*words: str):
        return parse(["mine.yaml", "protocol=short.yaml", *words], "", "evaluate")

    found = resolve("data=cifar10")
    kept = found.config
    assert (found.method, kept.label_smoothing, found.data.split) == ("smoothing", 0.2,
                                                                      "first:100")
    assert (kept.epochs, kept.clip_norm, kept.schedule, kept.milestones) == (5, None, "cosine", ())
    assert found.preset == "mine_short"
    found = resolve("preset=much", "data=digits", "smoothing.flip=true", "split=test")
    assert (found.config.label_smoothing, found.config.epochs, found.config.flip) == (0.5, 2, True)
    assert (found.data.split, found.preset) == ("test", "mine_much_short")
    assert resolve("data=x.npz", "like=digits").config.epochs == 2
    assert parse(["mine.yaml", "protocol=null"], "", "evaluate").config.epochs == 9


def test_what_is_shown_of_a_protocol_gives_the_same_again(tmp_path, few_path):
    """config.yaml holds its values and not its name, so that no key typed over it is lost."""
    Path("short.yaml").write_text(PROTOCOL)
    Path("mine.yaml").write_text(LEARNER)
    words = [f"data={few_path}", "--dry-run"]
    first = run_command(evaluate.main, "mine.yaml", "protocol=short.yaml", "smoothing.width=4",
                        *words)
    shown = first.stdout.partition("\n# ")[0]
    assert "protocol" not in shown
    Path("config.yaml").write_text(shown)
    again = run_command(evaluate.main, "config.yaml", *words)
    assert again.stdout.splitlines()[-2] == first.stdout.splitlines()[-2]       # the fingerprint


@pytest.mark.parametrize(("words", "overrides"), [
    (["mine.yaml"], {}), (["mine.yaml", "smoothing.epochs=9"], {}),
    (["mine.yaml", "smoothing.epochs=3", "smoothing.label_smoothing=0.5"], {
     "epochs": 3, "label_smoothing": 0.5}),
    (["mine.yaml", "protocol=short.yaml"], {}),
    (["mine.yaml", "protocol=short.yaml", "smoothing.epochs=9"], {"epochs": 9}),
    (["mine.yaml", "more.yaml"], {"width": 4}),
    (["mine.yaml", "--smoke"], {"epochs": 2, "width": 8}),
    (["method=smoothing", "smoothing.epochs=3"], {"epochs": 3}),
    (["shown.yaml", "smoothing.epochs=3"], None),       # a run's own: its name is another YAML's
    (["width.yaml", "mine.yaml"], {"epochs": 9}),
])
def test_what_was_changed_of_a_protocol(tmp_path, words, overrides):
    for name, text in (("short", PROTOCOL), ("mine", LEARNER), ("width", "seed: 1\n"),
                       ("shown", "preset: x\nmethod: smoothing\n"),
                       ("more", "smoothing: {width: 4}\n")):
        Path(f"{name}.yaml").write_text(text)
    found = parse([*words, "data=digits"], "", "evaluate").overrides
    assert found is None if overrides is None else overrides.items() <= found.items()
    assert overrides != {} or found == {}


def test_what_smoke_has_of_its_own_is_told(capsys):
    parse(["simclr", "--smoke", "simclr.batch_size=8", "simclr.temperature=1"], "", "evaluate")
    assert "note: --smoke has its own simclr.batch_size: what is typed" in capsys.readouterr().err
    parse(["simclr", "--smoke", "simclr.temperature=1"], "", "evaluate")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("words", "message"), [
    (["mine.yaml", "protocol=shrt.yaml"], r"^protocol: shrt\.yaml: no such file; .*'short\.yaml'"),
    (["mine.yaml", "protocol=em6"], r"^protocol: there is no configs/learners/em6\.yaml; .*'em60'"),
    (["mine.yaml", "short.yaml"], r"unknown key 'smoothing': .* runs standard; protocol= puts a"),
    (["mine.yaml", "protocol=other.yaml"], r"other\.yaml:1: method: there is no learners/jpeg\.py"),
    (["mine.yaml", "protocol=none.yaml"], r"^protocol: none\.yaml: a learner's YAML"),
    (["method=smoothing", "protocol=short.yaml"], r"^protocol: a learner's YAML with a `method:`"),
    (["mine.yaml", "protocol=mixed.yaml"], r"mixed\.yaml is of mixup, which smooth.*/cpu12\.yaml$"),
    (["simclr", "protocol=short.yaml"], r"simclr does not go on from; .* leave protocol= out"),
    (["mine.yaml", "protocol=wrong.yaml"], r"wrong\.yaml:2: unknown key 'standard\.epoch'"),
    (["bridge120", "preset=vit", "protocol=short.yaml"], r"^preset: vit is keys of .*120\.yaml, "),
])
def test_a_mistake_about_a_protocol_is_named(tmp_path, words, message):
    for name, text in (("short", PROTOCOL), ("mine", LEARNER), ("other", "method: jpeg\n"),
                       ("none", "seed: 1\n"), ("mixed", "method: mixup\n"),
                       ("wrong", "method: standard\nstandard: {epoch: 1}")):
        Path(f"{name}.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        parse([*words, "data=digits"], "", "evaluate")


def test_only_evaluate_takes_a_protocol():
    with pytest.raises(UserError, match=r"protocol: python purify\.py takes none; .*evaluate\.py"):
        parse([str(CONFIGS / "purifiers/gray.yaml"), "protocol=x.yaml"], "", "purify")


def test_the_root_of_a_set_picks_the_section(lsp, few_path):
    """What is made of digits is read as digits, however far away."""
    made = succeed(poison_main, "method=lsp", f"data={few_path}", "lsp.patch=4", "threads=1")
    assert lsp(f"data={made}") == (3, 4)


def test_the_name_says_the_preset_and_config_yaml_is_read_back(lsp):
    request = parse(["mine.yaml", "preset=large"], "", "poison")
    assert request.preset == "mine_large"
    Path("config.yaml").write_text("method: lsp\npreset: mine_large\nlsp: {radius: 10}\n")
    assert parse(["config.yaml"], "", "poison").preset == "mine_large"


def test_a_data_set_without_a_section_is_said(few_path, tmp_path):
    (tmp_path / "mine.yaml").write_text(YAML)
    words = ["mine.yaml", f"data={few_path}", "lsp.patch=4", "threads=1"]
    assert "no values of its own" not in run_command(poison_main, *words).stderr
    (tmp_path / "mine.yaml").write_text(YAML.replace("  digits:", "  photos:"))
    notes = [line for line in run_command(poison_main, *words, "out=again").stderr.splitlines()
             if line.startswith("note: ") and "no values of its own for digits" in line]
    assert len(notes) == 1
    assert "like=" in notes[0]


@pytest.mark.parametrize(("words", "said"), [
    (["preset=larg"], "did you mean 'large'?"),
    (["like=digit"], "did you mean 'digits'?"),
])
def test_mistakes(lsp, words, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        lsp(*words)


@pytest.mark.parametrize(("text", "said"), [
    ("method: lsp\nfor: 3", "for: expected"), ("method: lsp\npresets: [a]", "presets: expected"),
    ("method: lsp\nfor: {digits: 3}", "for: expected"),
    ("method: lsp\nfor: {digits: {lsp: {radus: 3}}}", "did you mean 'lsp.radius'"),
])
def test_a_section_that_is_none(lsp, text, said):
    Path("odd.yaml").write_text(text)
    with pytest.raises(UserError, match=said):
        lsp("data=digits", "preset=x" if "presets" in text else "seed=0", file="odd.yaml")


def test_data_sets_that_a_preset_alone_has_values_for():
    learner = [f"{CONFIGS}/learners/autoaugment.yaml", "preset=torchvision"]
    for words in (["like=imagenet100", "data=digits"], ["data=imagenet100"]):
        request = parse([*learner, *words], "", "evaluate")
        assert request.config.policy == "torchvision_imagenet"
        assert request.fit == ""
    with pytest.raises(UserError, match=r"like: .* has no values for 'imagenet100'"):
        parse([learner[0], "like=imagenet100", "data=digits"], "", "evaluate")


def test_an_empty_section_changes_nothing(lsp):
    Path("odd.yaml").write_text("method: lsp\nlsp: {radius: 2}\nfor: {digits: }\npresets:\n"
                                "  usual:\n  none: {for: }\n")
    found = [lsp("data=digits", *words, file="odd.yaml")
             for words in ([], ["preset=usual"], ["preset=none"])]
    assert found == found[:1] * 3


def test_a_preset_of_a_yaml_without_any():
    with pytest.raises(UserError, match="no presets"):
        parse([f"{CONFIGS}/poisons/ops.yaml", "preset=lite"], "", "poison")


@pytest.mark.parametrize(("old", "said"), [
    ("poisons/em_cifar100", "em.yaml data=cifar100"), ("poisons/rem_lite", "rem.yaml preset=lite"),
    ("poisons/sep_fa_vr", "sep.yaml preset=fa_vr"), ("poisons/em_classwise_svhn", "data=svhn"),
    ("purifiers/ddpm_finetune_digits", "data=digits"), ("poisons/em_16", "preset=eps16"),
])
def test_the_name_of_an_older_yaml_says_the_new_form(old, said):
    room = old.split("/")[0]
    with pytest.raises(UserError, match="no such file") as error:
        parse([f"{CONFIGS}/{old}.yaml"], "", APPLYING[room])
    assert said in str(error.value)


def every_variant():
    for room, name in APPLYING.items():
        for path in sorted((CONFIGS / room).glob("*.yaml")):
            _, sets, presets = variants.split(config.read([path]))
            for preset in (None, *presets):
                for data_set in (None, *sets):
                    yield pytest.param(path, name, preset, data_set,
                                       id=f"{path.stem}-{preset}-{data_set}")


@pytest.mark.parametrize(("path", "name", "preset", "data_set"), list(every_variant()))
def test_every_variant_is_read_to_its_end(path, name, preset, data_set):
    words = [f"like={data_set}"] * (data_set is not None) + [f"preset={preset}"] * bool(preset)
    request = parse([str(path), *words], "", name)
    assert request.preset == (f"{path.stem}_{preset}" if preset else path.stem)


def test_every_method_has_its_one_yaml():
    for room in ("poisons", "purifiers"):
        files = {path.stem for path in (ROOT / "configs" / room).glob("*.yaml")}
        assert files == set(list_methods(room))


def test_a_mistyped_yaml_gets_the_nearest_name():
    outcome = run_command(poison_main, str(CONFIGS / "poisons/hyppo.yaml"), "--dry-run")
    assert outcome.status == 1
    assert "no such file; did you mean 'hypo.yaml'?" in outcome.error
    outcome = run_command(poison_main, str(CONFIGS / "poisons/quite_another.yaml"), "--dry-run")
    assert outcome.error.endswith("no such file")


@pytest.mark.parametrize("room", ["poisons", "purifiers", "learners"])
def test_every_yaml_has_its_small_form(room):
    """`--small` of a table picks it: a YAML that has values for data sets has some for it."""
    sets = {path.name: variants.meant_for(config.read([path]), None)
            for path in CONFIGS.joinpath(room).glob("*.yaml")}
    assert len(sets) > 5
    assert [name for name, known in sets.items() if known and "small" not in known] == []
