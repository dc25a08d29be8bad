"""The contract of design.md, for every module found in poisons/, purifiers/ and learners/.

A module counts as random if its source draws from the run: `run.stream`, `run.rng`, `run.seed` or
`run.initialisation`, itself or through core.training or walk.walk. Another seed must then give
other bytes, and must not otherwise.
"""

import dataclasses
import json
import math
import re
import typing
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    CONFIGS,
    ROOT,
    content,
    digest,
    log_of,
    new_run,
    process,
    run_command,
    succeed,
    write_imageset,
)
from methods import (
    APPLYING,
    LEARNERS,
    MODULES,
    POISONS,
    PURIFIERS,
    ROOMS,
    checkpoint_of,
    config_of,
    line_of,
    module_of,
    needed_paths,
    poisoned_by,
    purified_by,
    smoke_config,
    smoke_keys,
    smoke_values,
)

import evaluate
from core import commit, config, manual, streams
from core.datasets import DataSettings
from core.imageset import ImageSet
from core.methods import fact, list_methods
from core.perturbation import check_bound, measure
from core.request import parse
from core.streams import BLOCK
from core.training import Result

ROWS = 64                       # four batches of 16
pytestmark = pytest.mark.usefixtures("short_refit")


def made(room: str, name: str, clean: Path) -> Path:
    """What a method makes of the clean set with seed 0, made once for the tests that read it."""
    out = clean.parent / f"made-{name}"
    make = poisoned_by if room == "poisons" else purified_by
    return out if out.exists() else make(name, clean, out)


@pytest.fixture
def draws(monkeypatch):
    """Call it to begin noting what is drawn: a list of stream names that grows. The command's own
    probe is no draw of a method."""
    def begin() -> list[str]:
        noted, derive = [], streams.derive

        def noting(seed, name, *step):
            if name != "probe":
                noted.append(name)
            return derive(seed, name, *step)

        monkeypatch.setattr(streams, "derive", noting)
        return noted

    return begin


@pytest.fixture(scope="module")
def clean(few, tmp_path_factory) -> Path:
    """The set that every module gets. Shuffled labels would show a module that sorts rows."""
    return write_imageset(tmp_path_factory.mktemp("contract") / "clean", few.images[:ROWS],
                          few.labels[:ROWS])


@pytest.fixture(scope="module")
def tests(digits, tmp_path_factory) -> Path:
    """Digits that are not in that set, to test on."""
    return write_imageset(tmp_path_factory.mktemp("contract") / "test", digits.images[320:380],
                          digits.labels[320:380])


@pytest.fixture(autouse=True)
def untouched(clean):
    """No test changes the input."""
    before = {path.name: digest(path) for path in clean.iterdir()}
    yield
    assert {path.name: digest(path) for path in clean.iterdir()} == before


# --- what a module holds ---------------------------------------------------------------------


def test_the_rooms_are_not_empty():
    assert {"lsp", "random_signs"} <= set(POISONS)
    assert {"identity", "gray", "jpeg", "bdr", "dvae"} <= set(PURIFIERS)
    assert "standard" in LEARNERS


@pytest.mark.parametrize(("room", "name"), MODULES)
def test_a_module_holds_what_the_design_asks(room, name):
    module = module_of(room, name)
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen
    assert isinstance(module.VERSION, int)
    assert module.VERSION >= 1
    assert isinstance(module.SMOKE, dict)
    assert module.__doc__, f"{room}/{name}.py needs a docstring"
    assert "Source:" in module.__doc__ or name in ("identity", "standard"), \
        f"the docstring of {room}/{name}.py needs a line 'Source: ...'"
    verb = {"poisons": "poison", "purifiers": "purify", "learners": "fit"}[room]
    assert getattr(module, verb).__doc__
    if room == "poisons":
        found = module.bound(module.Config())
        assert found is None or found[0] in ("linf", "l2", "l0")
    module.Config()                     # every field has a default


@pytest.mark.parametrize(("room", "name"), MODULES)
def test_a_module_imports_no_other_room(room, name):
    """Attacks, purifiers and learners share code through core and models only."""
    source = (ROOT / room / f"{name}.py").read_text()
    others = [other for other in (*ROOMS, "scripts", "tests") if other != room]
    assert not re.search(rf"^\s*(from|import) ({'|'.join(others)})\b", source, re.MULTILINE)


@pytest.mark.parametrize("path", sorted((ROOT / "core").glob("*.py")), ids=lambda path: path.stem)
def test_core_imports_libraries_alone(path):
    others = "|".join((*ROOMS, "models", "scripts", "tests"))
    assert not re.search(rf"^\s*(from|import) ({others})\b", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("room", "name"), MODULES)
def test_the_yaml_of_a_method_is_its_defaults(room, name):
    """So that YAML and dataclass cannot drift. Learners' YAMLs are named after protocols: some one
    must be the defaults."""
    module = module_of(room, name)
    paths = [CONFIGS / room / f"{name}.yaml"]
    if room == "learners":
        paths = sorted((CONFIGS / room).glob("*.yaml"))
    resolved = []
    for path in paths:
        tree = config.read([path])
        if tree.value["method"].value != name:
            continue
        section = tree.value.get(name, config.Node({}, "none"))
        train = section.value.pop("train", config.Node({}, "none"))
        if hasattr(module, "TrainConfig"):
            assert config.build(module.TrainConfig, train, name) == module.TrainConfig()
        resolved.append(config.build(module.Config, section, name))
    assert module.Config() in resolved


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_parses_with_its_command(path):
    room = path.relative_to(CONFIGS).parts[0]
    if room not in ROOMS:
        pytest.skip("a table, not a command's YAML")
    request = parse([str(path)], "", APPLYING[room])
    assert request.method in list_methods(room)
    assert request.preset == path.stem


@pytest.mark.parametrize("path", sorted((CONFIGS / "learners").glob("*.yaml")),
                         ids=lambda path: path.stem)
def test_smoke_makes_every_protocol_short(path):
    """A protocol that counts in steps (rem40k) once trained 8,000 epochs under --smoke."""
    protocol = parse([str(path), "--smoke"], "", "evaluate").config
    assert protocol.epochs <= 2
    assert protocol.steps is None or protocol.steps <= 20


@pytest.mark.parametrize("path", [p for room in ROOMS for p in CONFIGS.glob(f"{room}/*.yaml")],
                         ids=lambda path: path.stem)
def test_smoke_needs_no_download_and_no_compiler(path):
    room = path.relative_to(CONFIGS).parts[0]
    request = parse([str(path), "--smoke"], "", APPLYING[room])
    assert request.data == DataSettings("digits", size=32)
    assert (request.device.compile, request.limit) == ("false", 320)
    given = parse([str(path), "--smoke", "data=mine", "--limit", "7", "compile=auto"], "",
                  APPLYING[room])
    assert given.data.data == "mine"
    assert (given.device.compile, given.limit) == ("auto", 7)


def test_a_runs_config_makes_the_same_again(clean, tmp_path):
    """With --smoke, --limit and its preset, which follows the first YAML of a line."""
    own = tmp_path / "own.yaml"
    own.write_text("seed: 3\n")
    out = succeed(evaluate.main, CONFIGS / "learners" / "em60.yaml", own, f"data={clean}",
                  "--smoke", "--limit", "200")
    assert "-em60-" in out.name
    before = digest(out / "record.json")
    again = run_command(evaluate.main, out / "config.yaml")
    assert again.status == 0
    assert again.path == out
    assert f"{out} is already done" in again.stderr
    assert digest(out / "record.json") == before


def test_a_committed_record_is_not_planned_again(clean):
    line = [evaluate.main, CONFIGS / "learners/em60.yaml", f"data={clean}", "--smoke"]
    out = succeed(*line)
    Path("results").mkdir()
    out = out.rename(f"results/{out.name}")
    assert f"{out} is already done" in run_command(*line).stderr
    assert f"# {out}: already done" in run_command(*line, "--dry-run").stdout


def test_em60_is_the_default_protocol():
    request = parse([str(CONFIGS / "learners" / "em60.yaml")], "", "evaluate")
    assert request.config == module_of("learners", "standard").Config()


@pytest.mark.parametrize(("room", "name"), MODULES)
def test_one_typed_key_of_a_section_leaves_the_others_at_their_defaults(room, name):
    """A section is built of its class's defaults, which a factory's own values would not be."""
    module = module_of(room, name)
    for half in filter(None, (module.Config, getattr(module, "TrainConfig", None))):
        for field in dataclasses.fields(half):
            default = manual.default_of(field)
            if dataclasses.is_dataclass(default):
                node = config.Node({}, "here")
                assert config.build(typing.get_type_hints(half)[field.name], node, "x") == default


@pytest.mark.parametrize(("room", "name"), MODULES)
def test_the_resolved_config_is_shown_and_reads_back(room, name, clean):
    """--dry-run prints a YAML that gives the same work again, and writes nothing."""
    main, line = line_of(room, name, "", clean, tiny=True)
    first = run_command(main, *line, "seed=3", "--dry-run")
    assert first.status == 0, first.stderr
    Path("again.yaml").write_text(first.stdout)
    again = run_command(main, "again.yaml", "--dry-run")
    assert again.status == 0, again.stderr
    prints = [re.search(r"# fingerprint (\w+)", out.stdout)[1] for out in (first, again)]
    assert prints[0] == prints[1]
    assert [path.name for path in Path().iterdir()] == ["again.yaml"]


# --- poisons ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POISONS)
def test_a_poison_keeps_its_contract(name, clean, tmp_path):
    out = made("poisons", name, clean)
    before, after = np.load(clean / "images.npy"), np.load(out / "images.npy")
    assert after.dtype == np.uint8
    assert after.shape == before.shape
    np.testing.assert_array_equal(np.load(out / "labels.npy"), np.load(clean / "labels.npy"))
    assert not np.array_equal(after, before)

    module, cfg = module_of("poisons", name), smoke_config("poisons", name, tiny=True)
    bound = module.bound(cfg)
    rounding = getattr(cfg, "rounding", "round")
    check_bound(bound, measure(ImageSet.load(clean), ImageSet.load(out)), 768, rounding)
    if bound is not None:               # and by hand
        norm, radius = bound
        delta = (after.astype(float) - before) / 255
        slack = (1 if rounding == "floor" else 0.5) / 255
        value = {"linf": np.abs(delta).max(), "l2": np.sqrt((delta**2).sum((1, 2, 3)).max()),
                 "l0": (delta != 0).any(3).sum((1, 2)).max()}[norm]
        limit = {"linf": radius + slack, "l2": radius + slack * math.sqrt(768), "l0": radius}[norm]
        assert value <= limit + 1e-9
        # Row i stays row i: it is nearer to clean row i than to any other.
        one, other = (torch.from_numpy(x).flatten(1).double() for x in (after, before))
        np.testing.assert_array_equal(torch.cdist(one, other).argmin(1), np.arange(len(before)))


@pytest.mark.parametrize("name", POISONS)
def test_a_poison_repeats_with_its_seed_only(name, clean, tmp_path, draws):
    one = content(made("poisons", name, clean))
    drawn = draws()
    same, other = (content(poisoned_by(name, clean, tmp_path / out, f"seed={seed}"))
                   for out, seed in (("b", 0), ("c", 1)))
    assert one == same
    seeded = "run.seed" in (ROOT / f"poisons/{name}.py").read_text()
    assert (one["images.npy"] != other["images.npy"]) == (bool(drawn) or seeded)
    assert one["labels.npy"] == other["labels.npy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", POISONS)
def test_two_processes_make_the_bytes_of_one(name, clean, tmp_path):
    """Of whatever they share."""
    _, line = line_of("poisons", name, "", clean, tiny=True)
    both = process("-m", "poisons", *line, "threads=1", f"out={tmp_path / 'both'}", ranks=2,
                   torchrun=True)
    alone = process("-m", "poisons", *line, "threads=1", f"out={tmp_path / 'alone'}")
    for run in (both, alone):
        _, stderr = run.communicate(timeout=180)
        assert run.returncode == 0, stderr
    assert content(tmp_path / "both") == content(tmp_path / "alone")


@pytest.mark.parametrize("name", POISONS)
def test_a_poison_tells_its_origin(name, clean, tmp_path):
    meta = json.loads((made("poisons", name, clean) / "meta.json").read_text())
    [step] = meta["lineage"]
    assert step["method"] == name
    assert step["version"] == module_of("poisons", name).VERSION
    paths = fact(module_of("poisons", name), "PATHS")
    expected = config.plain(smoke_config("poisons", name, tiny=True), identity=True)
    assert step["config"] == {key: value for key, value in expected.items() if key not in paths}
    source = json.loads((clean / "meta.json").read_text())
    assert step["inputs"]["data"] == source["fingerprint"]
    assert set(step["inputs"]) == {"data", *needed_paths("poisons", name)}
    assert meta["test"] == source["test"]
    assert meta["root"] == source["root"]


# --- rows ------------------------------------------------------------------------------------

# Not those that learn from all rows while they purify, or train a surrogate on them: their tests
# know what becomes of a row.
ROW_BY_ROW = [("purifiers", name) for name in PURIFIERS
              if not fact(module_of("purifiers", name), "SEES_SET")] + [
    ("poisons", name) for name in POISONS
    if module_of("poisons", name).bound(module_of("poisons", name).Config()) is None
    and not hasattr(module_of("poisons", name).Config(), "surrogate")]


@pytest.mark.parametrize(("room", "name"), ROW_BY_ROW)
def test_row_i_stays_row_i(room, name, digits, tmp_path):
    """Of more rows than a block of noise: where other images stand in a random half of them, the
    same half comes out changed. (Attacks with a budget are nearest to their own clean row.)"""
    images, labels = digits.images[: BLOCK + 16, ::2, ::2], digits.labels[: BLOCK + 16]
    marked = np.random.default_rng(0).permutation(len(images)) < len(images) // 2
    mark = np.where(marked[:, None, None, None], 255 - images, images)
    small = 40 if room == "purifiers" else len(images)      # that a checkpoint is trained on
    source = write_imageset(tmp_path / "source" / "clean", images[:small], labels[:small])
    main, line = line_of(room, name, "", source, tiny=True)
    one, two = (
        np.load(succeed(main, *line, f"data={write_imageset(tmp_path / place, pixels, labels)}",
                        f"out={tmp_path / f'out-{place}'}") / "images.npy")
        for place, pixels in (("usual", images), ("marked", mark)))
    np.testing.assert_array_equal((one != two).any((1, 2, 3)), marked)


# --- purifiers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PURIFIERS)
def test_a_purifier_keeps_its_contract(name, clean, tmp_path):
    out = made("purifiers", name, clean)
    images = np.load(out / "images.npy")
    assert images.dtype == np.uint8
    assert images.shape == (ROWS, 16, 16, 3)
    np.testing.assert_array_equal(np.load(out / "labels.npy"), np.load(clean / "labels.npy"))
    meta = json.loads((out / "meta.json").read_text())
    request = parse([f"method={name}"], "", "purify")       # of others, if it is made of them
    assert [step["method"] for step in meta["lineage"]] == request.steps
    assert meta["test"] == {"data": "digits", "size": 16, "split": "test"}


@pytest.mark.parametrize("name", PURIFIERS)
def test_a_purifier_repeats_with_its_seed_only(name, clean, tmp_path, draws):
    one = content(made("purifiers", name, clean))
    drawn = draws()
    same, other = (content(purified_by(name, clean, tmp_path / out, f"seed={seed}"))
                   for out, seed in (("b", 0), ("c", 1)))
    assert one == same
    drawn = [name for name in drawn if not name.removeprefix("stage").isdigit()]   # loaded over
    assert (one["images.npy"] != other["images.npy"]) == bool(drawn)


@pytest.mark.parametrize("name", PURIFIERS)
def test_labels_are_withheld_from_purifiers_that_do_not_need_them(name, clean, tmp_path,
                                                                  monkeypatch):
    module = module_of("purifiers", name)
    original, seen = module.purify, []

    def watched(poisoned, *rest):
        seen.append(poisoned.labels)
        return original(poisoned, *rest)

    monkeypatch.setattr(module, "purify", watched)
    purified_by(name, clean, tmp_path / "out")
    assert len(seen) == 1
    if fact(module, "NEEDS_LABELS"):
        np.testing.assert_array_equal(seen[0], np.load(clean / "labels.npy"))
    else:
        assert seen[0] is None


@pytest.mark.parametrize("name", PURIFIERS)
def test_a_purifier_that_is_trained_says_on_what(name, clean, tmp_path):
    """design.md: the lineage names what a purifier was trained on, for the table's column."""
    out = made("purifiers", name, clean)
    step = json.loads((out / "meta.json").read_text())["lineage"][-1]
    if checkpoint_of(name, clean, tiny=True):
        trained_on = step["trained_on"]
        assert trained_on["fingerprint"] == ImageSet.load(clean).fingerprint
    else:
        assert not step.get("trained_on")


# --- learners --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_keeps_its_contract(name, clean, tests, tmp_path):
    main, line = line_of("learners", name, "", clean, tiny=True)
    records = []
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        outcome = run_command(main, *line, f"test={tests}", "--limit", "40", f"seed={seed}",
                              f"out={tmp_path / out}")
        assert outcome.status == 0, outcome.stderr
        record = json.loads((tmp_path / out / "record.json").read_text())
        assert outcome.stdout == f"{record['accuracy_last']:.4f} {tmp_path / out}\n"
        records.append(record)
    one, same, other = records
    told = {field.name for field in dataclasses.fields(Result)} - {"last", "best", "saw", "network"}
    assert told <= one.keys()
    for record in records:
        assert 0 <= record["accuracy_last"] <= record["accuracy_best"] <= 1
        headline = record["kept_epoch"] or record["curve"][-1][0]
        assert dict(record["curve"])[headline] == record["accuracy_last"]
        assert record["test"]["rows"] == 60
        assert record["train"]["rows"] == 40
        assert record["learner"] == name
        for key in ("seconds", "images_per_second", "versions", "device", "config"):
            assert record[key]
    for key in ("curve", "train_accuracy", "fingerprint", "images"):
        assert one[key] == same[key]
    assert one["fingerprint"] != other["fingerprint"]
    logs = [log_of(tmp_path / out) for out in "abc"]    # losses: few images have few accuracies
    assert logs[0] == logs[1] != logs[2]


def test_the_test_images_never_reach_the_training(clean, tests, tmp_path):
    """The same training set against two test sets: another score, the same training."""
    images = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
    noise = write_imageset(tmp_path / "noise", images, np.arange(50) % 10)
    scores = []
    for test in (tests, noise):
        out = succeed(evaluate.main, "method=standard", f"data={clean}", f"test={test}",
                      *smoke_keys("learners", "standard", tiny=True))
        scores.append([(line["loss"], line["train_accuracy"]) for line in log_of(out)])
    assert scores[0] == scores[1]


def test_a_record_tells_the_way_of_its_set(clean, tmp_path):
    poisoned = poisoned_by("random_signs", clean, tmp_path / "p")
    purified = purified_by("gray", poisoned, tmp_path / "q")
    out = succeed(evaluate.main, "method=standard", f"data={purified}",
                  *smoke_keys("learners", "standard", tiny=True))
    record = json.loads((out / "record.json").read_text())
    assert [step["method"] for step in record["train"]["lineage"]] == ["random_signs", "gray"]
    assert record["train"]["root"]["data"] == "digits"
    assert record["train"]["images_sha256"] == digest(purified / "images.npy")
    assert record["test"]["root"]["split"] == "test"
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert {key: record[key] for key in ("commit", "dirty")} == commit.of_code()
    assert datetime.fromisoformat(record["date"]).tzinfo is not None
    assert record["overrides"].keys() >= {"epochs"}     # of --smoke


# What a learner forgets that copies the loop of core.training; every other key has a test in
# test_contract_keys.py, but of those that learners share only in the first of them.
FORGOTTEN = {"steps": 3, "mean": [0.5, 0.5, 0.5], "test_every": 0}


def small_config(name: str, **changes):
    """A learner's Config for sets of 60 rows, two batches."""
    values = {key: value for key, value in smoke_values("learners", name).items()
              if key not in ("width", "steps")}
    usual = {"epochs": 2, "batch_size": 24, "architecture": "linear", "test_every": 1}
    return config_of("learners", name, "", {**values, **usual, **changes})


def ignored(fit, learner: str, data: ImageSet, out: Path) -> set[str]:
    """Those of the three keys that change neither what is trained nor what is told."""

    def outcome(name: str, **changes):
        config = small_config(learner, **{"mean": [0.1] * 3, "std": [0.9] * 3, **changes})
        with new_run(out / name) as run:
            run.clean = data.first(10)
            result = fit(data, data, config, run)
            log = [{key: value for key, value in line.items() if key != "seconds"}
                   for line in run.folder.log.lines()]
        return log, result.curve

    base = outcome("base")
    assert outcome("again") == base                     # so that a difference means something
    return {key for key, value in FORGOTTEN.items() if outcome(key, **{key: value}) == base}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_heeds_steps_mean_and_test_every(name, few, tmp_path):
    module = module_of("learners", name)
    assert ignored(module.fit, name, few.first(60), tmp_path) == set()


@pytest.mark.parametrize("key", FORGOTTEN)
def test_a_learner_that_ignores_one_is_seen(key, few, tmp_path):
    standard = module_of("learners", "standard")
    default = {"steps": None, "mean": (0.1,) * 3, "test_every": 1}[key]

    def fit(train, test, config, run):
        return standard.fit(train, test, dataclasses.replace(config, **{key: default}), run)

    assert ignored(fit, "standard", few.first(60), tmp_path) == {key}


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize(("changes", "images", "scored"), [
    ({"steps": 7}, 7 * 24, [2, 4]),                     # two batches an epoch
    ({"epochs": 3}, 6 * 24, [2, 3])])
def test_a_learner_takes_so_many_steps_and_is_scored_so_often(name, few, tmp_path, changes, images,
                                                             scored):
    module = module_of("learners", name)
    config = small_config(name, test_every=2, **changes)
    with new_run(tmp_path / "out") as run:
        run.clean = few.first(10)
        result = module.fit(few.first(60), few.first(60), config, run)
    assert result.images == images
    curve = result.curve if result.probe is None else result.probe["knn"]
    assert [epoch for epoch, _ in curve] == scored
