"""Strict YAML: what people write is what is read, and every mistake names file, line and key."""

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from conftest import CONFIGS

from core import config
from core.errors import UserError
from core.ranges import Keys, Share


@dataclass(frozen=True)
class Part:
    size: int
    kind: Literal["small", "large"] = "small"


@dataclass(frozen=True)
class Sample(Keys):
    rate: Share = 0.1
    count: int = 3
    name: str = "plain"
    flag: bool = False
    mode: Literal["auto", "true", "false"] = "auto"
    maybe: float | None = None
    label: str | None = None
    folder: config.Place | None = None
    steps: tuple[int, ...] = ()
    parts: tuple[Part, ...] = (Part(1),)
    part: Part = Part(2)


def read(text: str, name: str = "a.yaml") -> Sample:
    return config.build(Sample, config.parse(text, name), "")


def complaint(text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(text)
    return str(caught.value)


# --- numbers, switches, words ----------------------------------------------------------------


@pytest.mark.parametrize(("text", "value"), [
    ("1e-3", 0.001), ("1E-3", 0.001), ("8/255", 8 / 255), ("8 / 255", 8 / 255), (".5", 0.5),
    ("1.", 1.0), ("1_000/2_000", 0.5), ("+0.25", 0.25), ("5e-4", 0.0005), ("1", 1.0),
    ("'1e-3'", 0.001), ("1.6/255", 1.6 / 255),
])
def test_numbers_are_read_as_people_mean_them(text, value):
    rate = read(f"rate: {text}").rate
    assert rate == value
    assert isinstance(rate, float | int)


@pytest.mark.parametrize(("text", "value"), [
    ("010", 10), ("1_000", 1000), ("-3", -3), ("3.0", 3), ("1e3", 1000), ("12:30:45", None),
    ("12/4", 3), ("9007199254740993", 2**53 + 1),
])
def test_whole_numbers(text, value):
    if value is None:               # YAML 1.1 would read 45,045
        assert "'12:30:45' is not a number" in complaint(f"count: {text}")
    else:
        count = read(f"count: {text}").count
        assert count == value
        assert type(count) is int


@pytest.mark.parametrize("text", [
    "nan", "inf", ".inf", "-inf", "1/0", "0x10", "1e999", "8//255", "8/255/2", "1e", "--1", "1_",
    "1__0", "_1", "''", "ten", "1,5", "true", "off", "1 2", "1e308/1e-10",
    "0" * 5000 + "1",               # Python reads no whole number of so many digits
])
def test_what_is_not_a_number_is_refused(text):
    message = complaint(f"name: x\nrate: {text}")
    assert message.startswith("a.yaml:2: rate: ")
    assert message.endswith("is not a number")


@pytest.mark.parametrize(("key", "text"), [
    ("maybe", "1e39"), ("maybe", "-1e300"), ("maybe", "2e39/3"), ("count", "1e20"),
    ("count", "9223372036854775808")])
def test_what_float32_or_int64_does_not_hold_is_refused(key, text):
    """What reads more would end in a traceback."""
    assert re.search(r"is larger than any (whole )?number that counts here$",
                     complaint(f"{key}: {text}"))
    assert read("maybe: 3e38").maybe == 3e38
    assert read("count: 9223372036854775807").count == np.iinfo(np.int64).max


@pytest.mark.parametrize("text", ["a\\0b", "a\\uD800b"])
def test_what_no_file_can_be_called_is_refused(tmp_path, text):
    file = write(tmp_path, "a.yaml", f'folder: "{text}"\n')
    with pytest.raises(UserError, match=r"a\.yaml:1: folder: .* has a character that no path has"):
        config.build(Sample, config.read([file]), "")
    based = write(tmp_path, "b.yaml", f'base: "{text}"\n')
    with pytest.raises(UserError, match=r"base: .* has a character that no path has"):
        config.read([based])


def test_what_is_read_is_the_callers_to_change():
    """Equal text is parsed once."""
    first = config.parse("a: {b: [1, 2]}", "x.yaml")
    first.value["a"].value["b"].value.clear()
    first.value["c"] = first.value.pop("a")
    assert config.text(config.parse("a: {b: [1, 2]}", "x.yaml")) == "{a: {b: [1, 2]}}"


def test_a_whole_number_is_not_rounded():
    assert "a.yaml:1: count: 2.5 is not a whole number" in complaint("count: 2.5")


@pytest.mark.parametrize(("word", "value"), [
    ("true", True), ("True", True), ("yes", True), ("on", True), ("false", False), ("no", False),
    ("off", False), ("OFF", False),
])
def test_switches(word, value):
    assert read(f"flag: {word}").flag is value
    assert read(f"mode: {word}").mode == str(value).lower()     # where true, false are choices


@pytest.mark.parametrize("word", ["1", "0", "y", "maybe", "null", "''"])
def test_what_is_not_a_switch_is_refused(word):
    assert "flag: " in complaint(f"flag: {word}")


@pytest.mark.parametrize("word", ["off", "no", "1e-3", "010", "2024-01-01", "8/255", "true", "~x"])
def test_words_stay_words(word):
    assert read(f"name: {word}").name == word


@pytest.mark.parametrize("word", ["null", "~", "none", "None", ""])
def test_null_where_it_is_allowed(word):
    assert read(f"maybe: {word}").maybe is None
    assert read(f"label: {word}").label is None
    assert "is not a number" in complaint(f"rate: {word}")


def test_a_quoted_null_is_a_word():
    assert read("label: 'null'").label == "null"
    assert read('label: "none"').label == "none"


def test_choices_name_all_and_the_nearest():
    message = complaint("part: {size: 1, kind: smal}")
    assert "a.yaml:1: part.kind: 'smal' is not one of small, large" in message
    assert "did you mean 'small'?" in message


def test_lists():
    assert read("steps: [80, 1e2]").steps == (80, 100)
    assert read("steps: []").steps == ()
    assert "steps: expected a list" in complaint("steps: 80")
    assert "steps.1: 'x' is not a number" in complaint("steps: [80, x]")
    assert "rate: expected a single value" in complaint("rate: [1]")
    assert "rate: expected a single value" in complaint("rate: {a: 1}")


def test_sections_inside_lists():
    sample = read("parts:\n  - {size: 4, kind: large}\n  - size: 5\n")
    assert sample.parts == (Part(4, "large"), Part(5))
    assert "a.yaml:3: parts.1.size: '' is not a number" in complaint(
        "parts:\n  - {size: 4}\n  - size:\n")
    assert "missing key 'parts.0.size'" in complaint("parts: [{kind: large}]")


# --- mistakes --------------------------------------------------------------------------------


def test_an_unknown_key_names_the_nearest_its_file_and_line():
    message = complaint("rate: 1\npart:\n  size: 3\n  kid: small\n")
    assert message == "a.yaml:4: unknown key 'part.kid'; did you mean 'part.kind'?"


def test_an_unknown_key_without_a_neighbour_lists_all():
    message = complaint("part: {size: 3, zzzzzz: 1}")
    assert message.endswith("known keys: part.size, part.kind")


@pytest.mark.parametrize(("text", "line"), [
    ("rate: 1\ncount: 2\nrate: 1\n", 3), ("part:\n  size: 1\n  size: 1\n", 3),
])
def test_a_repeated_key_is_refused(text, line):
    assert complaint(text).startswith(f"a.yaml:{line}: repeated key '")


def test_a_value_out_of_range_names_range_line_and_key():
    assert complaint("name: x\nrate: 2") == \
        "a.yaml:2: rate: 2 is out of range: it must be above 0 and at most 1"


@pytest.mark.parametrize("text", ["rate: [1", "rate: 1: 2", "\tx: 1", "a: 1\n---\na: 2", "rate: @x",
                                  "rate: *x", "part: &p {size: *p}"])
def test_broken_yaml_is_one_sentence_with_the_place(text):
    message = complaint(text)
    assert message.startswith("a.yaml")
    assert "\n" not in message


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just a word"])
def test_a_file_that_is_no_section_is_refused(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match="expected `key: value` lines"):
        config.read([tmp_path / "a.yaml"])


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        config.read([tmp_path / "none.yaml"])
    with pytest.raises(UserError, match="is no regular file"):
        config.read([tmp_path])
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=r"binary\.yaml: not a text file"):
        config.read([tmp_path / "binary.yaml"])


@pytest.mark.parametrize(("word", "expected"), [
    ("epochs", "; did you mean 'a.epochs'?"), ("epoch", "; did you mean 'a.epochs'?"),
    ("a", "; did you mean 'a'?"), ("zzz", "; methods: seed, a, a.epochs, a.train.epochs"),
])
def test_a_word_is_matched_with_the_last_part_of_dotted_names(word, expected):
    known = ["seed", "a", "a.epochs", "a.train.epochs"]
    assert config.suggest(word, known, "methods") == expected


# --- merging ---------------------------------------------------------------------------------


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_files_merge_left_to_right_and_keys_go_on_top(tmp_path):
    first = write(tmp_path, "1.yaml", "rate: 0.5\nsteps: [1, 2, 3]\npart: {size: 1, kind: large}\n")
    second = write(tmp_path, "2.yaml", "steps: [9]\npart: {size: 5}\n")
    tree = config.read([first, second], ["part.size=7", "count=1e2"])
    sample = config.build(Sample, tree, "")
    assert sample.rate == 0.5
    assert sample.steps == (9,)                 # lists replace
    assert sample.part == Part(7, "large")      # sections merge
    assert sample.count == 100


def test_a_base_goes_under_its_file_and_is_found_beside_it(tmp_path):
    write(tmp_path, "a/grand.yaml", "rate: 0.5\ncount: 1\nname: grand\n")
    write(tmp_path, "a/parent.yaml", "base: grand.yaml\ncount: 2\nname: parent\n")
    child = write(tmp_path, "child.yaml", "name: child\nbase: a/parent.yaml\n")
    sample = config.build(Sample, config.read([child]), "")
    assert (sample.rate, sample.count, sample.name) == (0.5, 2, "child")


def test_a_mistake_in_a_base_names_the_base(tmp_path):
    write(tmp_path, "parent.yaml", "rate: 1\ncount: x\n")
    child = write(tmp_path, "child.yaml", "base: parent.yaml\nrate: 0.5\n")
    with pytest.raises(UserError, match=r"parent\.yaml:2: count: 'x' is not a number"):
        config.build(Sample, config.read([child]), "")


def test_a_base_that_is_missing_or_its_own(tmp_path):
    child = write(tmp_path, "child.yaml", "base: none.yaml\n")
    with pytest.raises(UserError, match=r"none\.yaml: no such file"):
        config.read([child])
    write(tmp_path, "b.yaml", "base: c.yaml\n")
    write(tmp_path, "c.yaml", "base: b.yaml\n")
    with pytest.raises(UserError, match="includes itself"):
        config.read([tmp_path / "b.yaml"])
    (tmp_path / "x").mkdir()
    write(tmp_path, "x/d.yaml", "base: ../x/d.yaml\n")
    with pytest.raises(UserError, match="includes itself") as error:
        config.read([tmp_path / "x/d.yaml"])
    assert len(str(error.value)) < 300


def test_overrides_reach_into_sections_and_lists(tmp_path):
    file = write(tmp_path, "a.yaml", "parts:\n - {size: 1}\n - {size: 2}\nsteps: [1, 2]\n")
    tree = config.read([file], ["parts.1.size=8", "steps.0=5", "part.size=6", "name=a=b", "label="])
    sample = config.build(Sample, tree, "")
    assert sample.parts == (Part(1), Part(8))
    assert sample.steps == (5, 2)
    assert sample.part.size == 6
    assert sample.name == "a=b"
    assert sample.label is None


@pytest.mark.parametrize(("override", "words"), [
    ("parts.2.size=1", "'2' is not one of the 2 items of parts, which count from 0"),
    ("parts.x.size=1", "'x' is not one of the 2 items of parts"),
    ("rate.x=1", "rate is a single value"),
    ("=3", "neither a YAML file nor key=value"),
    ("rate", "neither a YAML file nor key=value"),
    ("rate=[1", "not valid YAML"),
    ("part.=1", "unknown key 'part.'"),
    ("ra te=1", "did you mean 'rate'"),
    ("rate=x", "command line: rate: 'x' is not a number"),
])
def test_mistakes_on_the_command_line(tmp_path, override, words):
    file = write(tmp_path, "a.yaml", "rate: 1\nparts: [{size: 1}, {size: 2}]\npart: {size: 1}\n")
    with pytest.raises(UserError) as caught:
        config.build(Sample, config.read([file], [override]), "")
    assert words in str(caught.value)


# --- writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [
    Sample(),
    Sample(rate=8 / 255, maybe=1e-12, label="null", name="off", flag=True, mode="false"),
    Sample(rate=1 / 3, maybe=-1e22, label="", name="a: b #c\n'd' \"e\"", steps=(1, 2, 10**12)),
    Sample(label="~", name="é 8/255", parts=(Part(3, "large"), Part(4))),
    Sample(name=" padded", label="1e-3", parts=()),
])
def test_what_is_dumped_is_read_back(sample):
    assert config.rebuild(Sample, config.plain(sample), "meta.json") == sample


def test_every_yaml_of_the_project_is_read_to_its_end():
    for path in sorted(CONFIGS.rglob("*.yaml")):
        assert isinstance(config.read([path]).value, dict), path


@dataclass(frozen=True)
class Inner:
    old: int = 1
    new: float = config.added(0.0)


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...] = (Inner(),)
    new: str | None = config.added(None)


def test_a_key_added_later_enters_no_fingerprint_at_its_default():
    assert config.plain(Outer(), identity=True) == {"inner": [{"old": 1}]}
    assert config.plain(Outer()) == {"inner": [{"old": 1, "new": 0.0}], "new": None}
    changed = Outer((Inner(new=0.5),), "x")
    assert config.plain(changed, identity=True) == config.plain(changed)
    assert config.rebuild(Outer, config.plain(Outer(), identity=True), "") == Outer()


# --- values after `=` ------------------------------------------------------------------------


def typed(*words: str) -> Sample:
    return config.build(Sample, config.read([], words), "")


LITERAL = ["run #2", "a: b", "[x", "x]", "{y", "[x]", "{a: b}", "&x", "*x", "!x", "@x", "%x", "'q'",
           '"q', "`b`", "- x", "? x", "| x", "> x", "#x", " x ", "a=b", "off", "1e-3", "x\\n",
           "a\tb", "---", "größe", "..", "null #2"]


@pytest.mark.parametrize("text", LITERAL)
def test_a_text_is_taken_as_typed(text):
    sample = typed(f"name={text}", f"label={text}", f"folder={text}")
    assert (sample.name, sample.label, sample.folder) == (text,) * 3
    kept = config.rebuild(Sample, config.plain(sample), "x")        # as config.yaml has it
    assert (kept.name, kept.label, kept.folder) == (text,) * 3


def test_other_values_are_yaml():
    sample = typed("rate=8/255", "count='010'", "flag=off", "maybe=null", "label=none",
                   "steps=[80, 1e2]", "parts=[{size: 4, kind: large}, {size: 5}]",
                   "parts.1.size=6", "part={size: 7}", "mode=off", "folder=~")
    assert sample == Sample(8 / 255, 10, "plain", False, "false", None, None, None, (80, 100),
                            (Part(4, "large"), Part(6)), Part(7))


@pytest.mark.parametrize(("word", "message"), [
    ("rate=[1", "command line: not valid YAML"), ("steps=[1, {", "command line: not valid YAML"),
    ("part={size: 1, size: 2}", "repeated key 'size'"), ("maybe=: 1", "not valid YAML"),
    ("parts.\u0661.size=3", "is not one of the 1 items"), ("rate=" + "9" * 5000, "not a number"),
    ("count=[" * 200, "YAML"), ("part.size.x=3", "is a single value")])
def test_a_mistake_in_such_a_value_is_named(word, message):
    with pytest.raises(UserError, match=message):
        typed("parts=[{size: 1}]", "part={size: 3}", word)


def test_home_folders_are_expanded_wherever_a_path_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert typed("folder=~/x").folder == f"{tmp_path}/x"
    assert typed("folder=folder:~/x").folder == f"folder:{tmp_path}/x"
    assert typed("folder=a~/x").folder == "a~/x"
    assert typed("name=~/x").name == "~/x"
    (tmp_path / "base.yaml").write_text("folder: ~/y\n")
    (tmp_path / "file.yaml").write_text("base: ~/base.yaml\n")
    assert config.build(Sample, config.read(["~/file.yaml"]), "").folder == f"{tmp_path}/y"
    assert config.as_path("~/z") == tmp_path / "z"


@pytest.mark.parametrize(("word", "setting"), [
    ("data=x", True), ("a.b.0=", True), ("a_1=b=c", True), ("runs/a=b/config.yaml", False),
    ("./a=b.yaml", False), ("x.yaml", False), ("=3", False)])
def test_a_path_with_an_equals_sign_is_a_file(word, setting):
    assert config.is_setting(word) is setting


@pytest.mark.parametrize("text", [
    "label: run #2", "label: 'run #2'", "steps: [80, 100]", "maybe: 0.5",
    "parts: [{size: 1, kind: 'large'}]"])
def test_what_a_table_passes_on_is_read_back(text):
    """A table's YAML becomes words of a command line."""
    tree = config.parse(text, "t.yaml")
    key, node = next(iter(tree.value.items()))
    expected = read(text)
    assert typed(f"{key}={config.text(node)}") == expected


def test_texts_in_a_list_are_quoted_where_they_must_be():
    node = config.parse("x: ['a, b', 'c #d', e, \"null\", 'f: g', '[']", "t.yaml").value["x"]
    again = config.parse(config.text(node), "y")
    assert [item.value for item in again.value] == ["a, b", "c #d", "e", "null", "f: g", "["]
    assert config.text(config.parse("x: [a, 1]", "t").value["x"]) == "[a, 1]"


# --- files made to harm ----------------------------------------------------------------------


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(("text", "message"), [
    (LAUGHS, "with aliases .* unfolded"), ("[" * 10_000, "levels inside each other"),
    ("{a: " * 500, "levels inside each other"),
    ("".join(" " * i + "a:\n" for i in range(200)), "levels inside each other"),
    ("a: &a [*a]", "contains itself"), ("k: &k [x]\n? *k\n: 1\n", "a key is one word"),
    ("x" * (1 << 20), "too many for a text")])
def test_what_would_unfold_or_nest_without_end_is_refused(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        config.read([tmp_path / "a.yaml"])
