"""A table as its YAML says it: rows and columns of steps, which plan.py turns into artefacts.

A table YAML names

    data        its data sets: the whole table for each            [cifar10, cifar100]
    for         what changes on one of them, merged over the rest  cifar100: {let: {prior: cifar10}}
    let         words that steps and names may write as {word}     {prior: cifar100}
    rows        poisons: lists of steps that make a set            clean: []
    columns     defences: lists of steps that go on from there     none: []
    evaluate    the last step of every cell: a learner, where row and column name none
    seeds       of everything but the poisons (a poison takes the table's with `seed: "{seed}"`)
    derived     columns computed from others                       iss_best: {max: [gray, jpeg]}
    settings    keys for every command: test, split, threads ...

A step is one command with its YAML and the keys that this table changes:

    - train_vae: configs/purifiers/dvae.yaml
      dvae.train.epochs: 20
    - purify: configs/purifiers/dvae.yaml

A row or column may end with a learner of its own (never both of a cell), which trains in the place
of the table's; `protocol:`, a key of evaluate.py as of any step, puts it under another schedule:

    - evaluate: configs/learners/mixup.yaml
      protocol: configs/learners/cpu12.yaml

`poison` and `train_ddpm` start from the clean set, the others from the set that the step before
left; `data:` and `split:` in a step name another. `purify` applies the checkpoint trained last, or
the one that its `checkpoint:` names. In values, {seed} is the cell's seed, {set} the folder of the
current set, {checkpoint} that of the checkpoint trained last, and `over: {x: [1, 2]}` beside
`steps:` makes one row or column for each x, which its steps read as {x}. `only: [name, ...]` there
leaves cells out, `reported:` names what the published numbers are filed under (of a list, the first
is its own; numbers of the others say so).
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from core import config, manual, outlines, variants
from core.commands import COMMANDS, OWNER
from core.config import Node
from core.datasets import DataSettings
from core.device import DeviceSettings
from core.distributed import note
from core.errors import UserError
from core.methods import find_method
from core.remembered import NAMED
from core.settings import known_keys
from scripts.tables import keys
from scripts.tables.table import FORMS, WHOLE, Choice, Derived, Line, Step, Table, fill, named

TABLES = Path("configs/tables")
DATA_KEYS, DEVICE_KEYS = (tuple(f.name for f in dataclasses.fields(group))
                          for group in (DataSettings, DeviceSettings))
LINE_KEYS = ("steps", "over", "reported", "only")
KEYS = ("title", "data", "for", "let", "dataset", "source", "seeds", "settings", "rows", "columns",
        "derived", "evaluate")
# Keys of one command: what to write for a table
INSTEAD = {"seed": "--seeds 1 makes that one", "limit": "split=first:100 reads the first 100 "
           "images", "smoke": "--quick makes the table on digits", "preset": "a step names its own",
           **{key: f"a step `{owner.name}` of its YAML may have it"
              for key, owner in OWNER.items()},
           "protocol": "its YAML names its schedules by `evaluate`, and docs/tables.md shows how a "
           "table of your own names others"}
SIZE_KEYS = ("sets", "with", "over", "made")     # of a smaller form only


def read(path: str, choice: Choice = WHOLE, overrides: tuple[str, ...] = ()) -> tuple[Table, ...]:
    """Read a table YAML: one Table for each of its data sets, or for the one that `data=` names.

    In a smaller form (`choice.size`), configs/tables/SIZE.yaml and the table's own section of that
    name replace its keys and (`over: {x: [1]}`) the values of its `over`; `columns: [a, b]` are
    those that are made unless others are chosen. Every step takes small data sets in the place of
    its own (`sets`), or the lines that need others do with checkpoints that are there (`made`).
    `overrides` are key=value for every command, or of its methods (scripts/tables/keys.py). Raises
    UserError that names file and line.
    """
    size, path = choice.size, manual.yaml_of("tables", path)
    tree = config.read([path])
    for name in FORMS:
        if config.as_path(path).resolve() == (manual.CONFIGS / f"tables/{name}.yaml").resolve():
            raise UserError(f"{path}: no table, but what --{name} changes in one")
    own = {name: section(tree.value, name) for name in FORMS}
    small = config.read([TABLES / f"{size}.yaml"]).value | own[size] if size else {}
    tree.value = {key: node for key, node in tree.value.items() if key not in FORMS}
    written: dict[str, str] = {}        # where those that are made are named
    for key in ("rows", "columns"):
        if key in small and isinstance(small[key].value, list):
            node = small.pop(key)
            if not getattr(choice, key):
                choice = dataclasses.replace(choice, **{key: tuple(map(config.text, node.value))})
                written[key] = f"{node.origin}: {size}: {key}"
    tree.value |= {key: node for key, node in small.items() if key not in SIZE_KEYS}
    for override in overrides:
        if "=" not in override:
            raise UserError(f"'{override}' is not key=value")
    given = dict(override.split("=", 1) for override in overrides)
    methods = {key: value for key, value in given.items() if "." in key}
    typed = {key: value for key, value in given.items() if key not in methods}

    def chosen_of(table: Table) -> Table:
        return keys.over(choice.of_table(alone(table, small, size), written), methods)

    if typed.get("data") == "":
        raise UserError("data=: it names no data set")
    if "data" not in tree.value:
        return (chosen_of(read_block(path, tree, "", small, typed)),)
    origin = tree.value["data"].origin
    sets = tuple(map(config.text, as_list(tree.value.pop("data"))))
    if not sets or len(set(sets)) < len(sets):
        raise UserError(f"{origin}: data: {'it has one twice' if sets else 'it names no data set'}")
    changes = section(tree.value, "for")
    for name, node in changes.items():
        if name not in sets and not size:
            raise UserError(f"{node.origin}: for: {name}: the table's data sets are "
                            + ", ".join(sets))
    tree.value.pop("for", None)
    wanted = typed.get("like", typed.get("data"))
    chosen = (wanted,) if wanted in sets else sets[:1] if "data" in typed else sets
    return tuple(chosen_of(
        read_block(path, variants.over(tree, changes.get(name)), name, small, typed,
                   block=typed.get("data", name) if len(sets) > 1 else "")) for name in chosen)


def read_one(path: str, choice: Choice = WHOLE, overrides: tuple[str, ...] = ()) -> Table:
    """The table of a YAML, for what is drawn of one data set."""
    first, *rest = read(path, choice, overrides)
    if rest:
        names = ", ".join(table.block for table in (first, *rest))
        raise UserError(f"{path}: data: it has several data sets; data= names one of {names}")
    return first


def read_block(path: str, tree: Node, data_set: str, small: dict[str, Node],
               typed: dict[str, str], *, block: str = "") -> Table:
    """One data set's table; what is typed goes over its settings."""
    for key, node in tree.value.items():
        if key not in KEYS:
            raise UserError(f"{node.origin}: unknown key '{key}'{config.suggest(key, KEYS)}")
    for key in ("rows", "columns", "evaluate"):
        if key not in tree.value:
            raise UserError(f"{path}: {key}: a table needs it")

    def get(key: str, kind, default):
        return config.build(kind, tree.value[key], key) if key in tree.value else default

    settings = {key: config.text(node) for key, node in section(tree.value, "settings").items()}
    if data_set:
        if "data" in settings:
            raise UserError(f"{path}: settings: data: the table names its data sets at its top")
        settings["data"] = data_set
    settings |= typed
    known = [*DATA_KEYS, *DEVICE_KEYS]
    for key in settings:
        where, own = ("command line", "are typed with its name, as in em.epsilon=4/255") \
            if key in typed else (f"{path}: settings", "go to its step")
        if key in INSTEAD:
            raise UserError(f"{where}: {key}: no key of a table; {INSTEAD[key]}")
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'{config.suggest(key, known)}; a "
                            f"method's own keys {own}")
    check_places("let", section(tree.value, "let"))
    words = {key: config.text(node) for key, node in section(tree.value, "let").items()}
    if small and (sets := section(small, "sets")):
        words = {key: config.text(sets[value]) if value in sets else value
                 for key, value in words.items()}
    rows, columns = (read_lines(section(tree.value, key), small, words)
                     for key in ("rows", "columns"))
    swept = {key for line in (*rows, *columns) for key in line.variables}
    for key, node in section(small, "over").items():
        if key not in swept:
            raise UserError(f"{node.origin}: over: no row or column varies '{key}'"
                            + config.suggest(key, sorted(swept)))
    for lines, others in ((rows, columns), (columns, rows)):
        for line in lines:
            for name in line.only:
                if not any(named(other, (name,)) for other in others):
                    raise UserError(f"{path}: {line.name}: only: there is no '{name}'"
                                    + config.suggest(name, [other.name for other in others]))
    names = [line.name for line in columns]
    derived = tuple(read_derived(name, node, names)
                    for name, node in section(tree.value, "derived").items())
    seeds = get("seeds", tuple[int, ...], (0,))
    if not seeds or not rows or not columns:
        raise UserError(f"{path}: a table needs at least one seed, one row and one column")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds: {list(seeds)} has one twice")
    title = get("title", str, Path(path).stem)
    dataset = typed["data"] if typed.get("data") in NAMED else get("dataset", str, data_set)
    return Table(path, f"{title} ({block})" if block else title, block,
                 dataset, get("source", str, ""), seeds, settings, rows,
                 columns, derived, quicken(read_step(tree.value["evaluate"], ("evaluate",)), small))


def quicken(step: Step, small: dict[str, Node]) -> Step:
    """A step with the small data sets and further settings of the table's smaller form."""
    if not small:
        return step
    extra = section(section(small, "with"), step.command)
    settings = {fill(key, {"method": step.method}, node.origin): config.text(node)
                for key, node in extra.items()}
    settings = {key: value for key, value in settings.items() if takes(step, key, value)}
    settings |= step.settings
    split = section(small, "settings").get("split")
    if split and settings.get("split") == "train" and "data" not in settings:
        settings["split"] = config.text(split)      # all training images, of this form
    sets = section(small, "sets")
    if settings.get("data") in sets:
        settings["data"] = config.text(sets[settings["data"]])
    return dataclasses.replace(step, settings=settings)


def alone(table: Table, small: dict[str, Node], size: str) -> Table:
    """A table of a smaller form that reads no data set but its own and embedded ones. A line whose
    checkpoint is `made` trains none; another that names another data set is left out, and that is
    said."""
    if "made" not in small:
        return table
    checkpoints, left_out = section(small, "made"), []

    def lines(of: tuple[Line, ...]) -> Iterator[Line]:
        for line in of:
            made = checkpoints.get(line.name) or checkpoints.get(line.family)
            if made:
                yield applying(config.text(made), line)
            elif any(line.words.get(data.strip("{}"), data) in outlines.SIZES
                     for data in (step.settings.get("data", "") for step in line.steps)):
                left_out.append(line.name)
            else:
                yield line

    rows, columns = tuple(lines(table.rows)), tuple(lines(table.columns))
    if left_out:
        note(f"{table.path} --{size}: without {', '.join(left_out)}, which read other data "
             "sets")
    return dataclasses.replace(
        table, rows=rows, columns=columns,
        derived=tuple(line for line in table.derived if not set(line.max_of) & set(left_out)))


def applying(checkpoint: str, line: Line) -> Line:
    """The line with its last step, a purify, of this checkpoint, in the place of the training right
    before it."""
    *before, purify = line.steps
    while before and COMMANDS[before[-1].command].trains:
        before.pop()
    settings = purify.settings | {"checkpoint": checkpoint}
    return dataclasses.replace(
        line, steps=(*before, dataclasses.replace(purify, settings=settings)))


def takes(step: Step, key: str, value: str) -> bool:
    """Whether the step's method has such a key, if it is a method's, or goes on from such a
    protocol."""
    room = COMMANDS[step.command].room
    method = find_method(room, step.method)
    if key == "protocol":
        other = config.text(config.read([value]).value["method"])
        return issubclass(method.Config, find_method(room, other).Config)
    return "." not in key or key in known_keys(method, step.method)


def section(tree: dict[str, Node], key: str) -> dict[str, Node]:
    """The `name: ...` lines under a key; none if it is absent."""
    return variants.section(tree[key], key) if key in tree else {}


def read_lines(nodes: dict[str, Node], small: dict[str, Node], words: dict[str, str]
               ) -> tuple[Line, ...]:
    """Rows or columns, with `over` spread out and the words of `let` in their names."""
    lines, fewer = [], section(small, "over")
    for written, node in nodes.items():
        name = fill(written, words, node.origin)
        over, reported, only, steps = {}, (name,), (), node
        if isinstance(node.value, dict) and "steps" in node.value:
            for key, item in node.value.items():
                if key not in LINE_KEYS:
                    raise UserError(f"{item.origin}: unknown key '{key}'"
                                    + config.suggest(key, LINE_KEYS))
            steps, over = node.value["steps"], section(node.value, "over")
            check_places(f"{name}: over", over)
            if "reported" in node.value:
                reported = names_of(node.value["reported"])
            if "only" in node.value:
                only = config.build(tuple[str, ...], node.value["only"], "only")
        elif isinstance(node.value, dict) and (stray := node.value.keys() & set(LINE_KEYS)):
            raise UserError(f"{node.origin}: {name}: {min(stray)}: put its steps under `steps:` "
                            "beside it")
        found = [quicken(read_step(step), small) for step in as_list(steps)]
        learner = found.pop() if found and found[-1].command == "evaluate" else None
        for step in found:
            if step.command == "evaluate":
                raise UserError(f"{step.origin}: {name}: evaluate is the last step of a row or "
                                "column, if it names one")
        check_steps(name, found, learner, over, words)
        values = [[(key, config.text(value)) for value in as_list(fewer.get(key, item))]
                  for key, item in over.items()]
        if not all(values):
            raise UserError(f"{node.origin}: {name}: over: a key without a value makes no line")
        for chosen in itertools.product(*values):
            values_of = dict(chosen)
            label = " ".join([name, *(f"{key}={value}" for key, value in chosen)])
            lines.append(Line(label, tuple(found), learner, values_of, words,
                              tuple(fill(one, words | values_of, node.origin)
                                    for one in reported), only))
            if [line.name for line in lines].count(label) > 1:
                raise UserError(f"{node.origin}: there are two of the name '{label}'")
    return tuple(lines)


def check_places(where: str, given: dict[str, Node]) -> None:
    """Raise UserError for a name that every step has a value of its own for."""
    for key in keys.PLACES.keys() & given.keys():
        raise UserError(f"{given[key].origin}: {where}: {key}: in braces it is what each cell has "
                        "of its own; take another name")


def check_steps(name: str, steps: list[Step], learner: Step | None, over: dict[str, Node],
                words: dict[str, str]) -> None:
    """Raise UserError for an `over` that no step reads, which would make equal lines."""
    values = [[*step.yamls, *step.settings.values()]
              for step in (*steps, *([learner] if learner else []))]
    read = set(re.findall(r"\{(\w+)\}", " ".join(itertools.chain(*values))))
    if read <= {*over, *words, *keys.PLACES}:       # else a misspelt one will be named
        for key in over.keys() - read:
            raise UserError(f"{over[key].origin}: {name}: over: {key}: no step reads {{{key}}}; "
                            f"write it where the value goes, in quotes: \"{{{key}}}\"")


def names_of(node: Node) -> tuple[str, ...]:
    """`reported:`, a name or a list of some, or of none."""
    several = isinstance(node.value, list)
    found = config.build(tuple[str, ...] if several else str, node, "reported")
    if not found and not several:
        raise UserError(f"{node.origin}: reported: it names nothing; [] is for no number")
    return found if several else (found,)


def read_step(node: Node, allowed: tuple[str, ...] = tuple(COMMANDS)) -> Step:
    if not isinstance(node.value, dict):
        raise UserError(f"{node.origin}: expected a step such as `purify: "
                        "configs/purifiers/jpeg.yaml`")
    commands = [key for key in node.value if key in allowed]
    if len(commands) != 1:
        found = commands or list(node.value)[:1]
        raise UserError(f"{node.origin}: a step names one of {', '.join(allowed)}"
                        + (f", not {' and '.join(found)}" if found else ""))
    command = commands[0]
    yamls = tuple(manual.yaml_of(COMMANDS[command].room, config.text(item), node.origin)
                  for item in as_list(node.value[command]))
    settings = {key: config.text(item) for key, item in node.value.items() if key != command}
    return Step(command, yamls, settings, node.origin)


def read_derived(name: str, node: Node, columns: list[str]) -> Derived:
    if name in columns:
        raise UserError(f"{node.origin}: derived: there is a column of the name '{name}'")
    of = section({name: node}, name).get("max")
    if of is None:
        raise UserError(f"{node.origin}: {name}: write `max: [column, ...]`")
    names = config.build(tuple[str, ...], of, f"{name}.max")
    for column in names:
        if column not in columns:
            raise UserError(f"{of.origin}: {name}: there is no column '{column}'"
                            + config.suggest(column, columns))
    return Derived(name, names)


def as_list(node: Node) -> list[Node]:
    return node.value if isinstance(node.value, list) else [node]
