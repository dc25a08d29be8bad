"""Methods' keys that are typed behind a table's name: `le_table3.sh --quick dvae.train.epochs=20`.

Such a key goes to every step of the table that takes it. It must be clear what that changes: where
those steps have several values for it now (a column swept over it, a prior and its fine-tuning, two
presets), these are the table's point, and the key is refused.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from core import config, manual
from core.commands import COMMANDS
from core.errors import UserError
from core.methods import find_method
from core.ranges import types_of
from core.request import Request, parse
from core.settings import known_keys
from scripts.tables.table import Line, Step, Table

PLACES = {"seed": "0", "set": "set", "checkpoint": "checkpoint"}    # in braces, until it is planned


def over(table: Table, typed: dict[str, str]) -> Table:
    """The table with these values in its steps. Raises UserError for a key that none of them takes,
    and for one of which they have several values."""
    for key, value in typed.items():
        check(table, key, value)
    if not typed:
        return table

    def changed(step: Step) -> Step:
        new = {key: value for key, value in typed.items() if takes(step, key)}
        kept = {key: value for key, value in step.settings.items() if key not in new}
        return dataclasses.replace(step, settings=kept | new)       # behind what it goes over

    def line(of: Line) -> Line:
        return dataclasses.replace(of, steps=tuple(map(changed, of.steps)),
                                   learner=of.learner and changed(of.learner))

    return dataclasses.replace(
        table, rows=tuple(map(line, table.rows)), columns=tuple(map(line, table.columns)),
        evaluate=changed(table.evaluate),
        typed=tuple(f"{key}={value}" for key, value in typed.items()))


def check(table: Table, key: str, value: str) -> None:
    """Raise UserError unless some steps take the key and the value, all of which have one now."""
    found: list[tuple[str, str]] = []       # row or column, its value now
    for name, step, filled in steps_of(table):
        if not takes(step, key):
            continue
        if "{" in step.settings.get(key, ""):
            raise UserError(f"{key}={value}: {table.path} has {name} for a value of its own; "
                            "--rows and --columns choose among those")
        found.append((name, manual.typed(value_at(request(filled, table), key))))
        request(dataclasses.replace(filled, settings={**filled.settings, key: value}), table)
    if not found:
        raise UserError(f"{key}={value}: no step of {table.path} takes it{instead(table, key)}")
    if len({now for _, now in found}) > 1:
        values = ", ".join(f"{now} in {name}" for name, now in dict.fromkeys(found))
        raise UserError(f"{key}={value}: {table.path} has several values of it ({values}); choose "
                        "one by --rows or --columns, or change the table")


def left_out(tables: Sequence[Table]) -> list[str]:
    """Where a learner's key was typed, the same of the tables' other learners: their cells, which
    one may think are meant too, keep what they have."""
    typed = [word.partition("=")[0] for word in tables[0].typed]
    learners = {step.method for table in tables for _, step, _ in steps_of(table)
                if step.command == "evaluate"}
    same = (f"{other}.{key.partition('.')[2]}" for key in typed for other in sorted(learners)
            if key.partition(".")[0] in learners)
    return [key for key in dict.fromkeys(same) if key not in typed and
            key.split(".")[1] in types_of(find_method("learners", key.split(".")[0]).Config)]


def instead(table: Table, key: str) -> str:
    """The nearest key of that method, or which methods the steps have."""
    methods = {step.method: step for _, step, _ in steps_of(table)}
    name = key.partition(".")[0]
    if name not in methods:
        return f"; its methods are {', '.join(methods)}"
    module = find_method(COMMANDS[methods[name].command].room, name)
    return config.suggest(key, known_keys(module, name))


def steps_of(table: Table) -> Iterator[tuple[str, Step, Step]]:
    """Every step with the name of its row or column, as written and with its braces filled as far
    as the table can."""
    for line in (*table.rows, *table.columns):
        for step in (*line.steps, *([line.learner] if line.learner else [])):
            yield line.name, step, step.fill({**PLACES, **line.words, **line.variables})
    yield "evaluate", table.evaluate, table.evaluate.fill({**PLACES, **table.rows[0].words})


def takes(step: Step, key: str) -> bool:
    """Whether it is a key of the step's method, and of this half where that is trained."""
    name, _, rest = key.partition(".")
    return name == step.method and (
        (rest.partition(".")[0] == "train") == COMMANDS[step.command].trains)


def request(step: Step, table: Table) -> Request:
    """As the step's line will be parsed, for the table's data set."""
    data_set = table.settings.get("like") or step.settings.get("data", table.settings.get("data"))
    words = (f"{key}={value}" for key, value in step.settings.items())
    return parse([*step.yamls, *words], "", step.command, data_set)


def value_at(request: Request, key: str) -> object:
    """What the request has at a dotted key; None where it has no such."""
    _, *parts = key.split(".")
    found = request.config
    if request.command.trains:
        found, parts = request.train_config, parts[1:]
    for part in parts:
        if isinstance(found, tuple):
            found = found[int(part)] if part.isdecimal() and int(part) < len(found) else None
        else:
            found = getattr(found, part, None)
    return found
