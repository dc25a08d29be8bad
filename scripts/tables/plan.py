"""A table as a plan: every step of every cell an artefact that is addressed by its fingerprint."""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from core import config, files, identity, outlines, records
from core.applying import require_checkpoints
from core.checkpoint import Checkpoint, trained_on
from core.commands import COMMANDS
from core.datasets import load
from core.device import DeviceSettings
from core.distributed import note
from core.errors import UserError
from core.imageset import ImageSet
from core.job import Job, fingerprint_at
from core.methods import fact, takes_any_size
from core.origins import load_test
from core.request import Request, parse
from core.splits import split_of
from scripts.tables.spec import DATA_KEYS, DEVICE_KEYS
from scripts.tables.table import Line, Step, Table, named


@dataclass(frozen=True, eq=False)
class Artefact:
    """A step whose work is known: the line that makes it, and what must be there before."""

    step: Step
    job: Job
    arguments: tuple[str, ...]      # of the command, with out=
    out: Path
    needs: tuple["Artefact", ...]
    rows: int                       # images that it reads, for estimates
    check: Callable[[], None]       # raises UserError for what its command will refuse
    device: DeviceSettings
    brief: bool = False             # its command takes less than its start: a filter of images
    known: bool = True              # False: a data set behind it is not here, nor is its digest
    image_shape: tuple[int, ...] = ()   # height and width of what it reads, for estimates

    def __str__(self) -> str:
        return f"{self.step.command} {self.out.name}"

    @property
    def line(self) -> list[str]:
        """Words after `python`."""
        return [*COMMANDS[self.step.command].words, *self.arguments, "--wait"]

    @property
    def checkpoint(self) -> Path | None:
        """The folder of what it applies, trained in this table or not."""
        given = dict(word.split("=", 1) for word in self.arguments if "=" in word)
        return Path(given["checkpoint"]) if "checkpoint" in given else None

    @property
    def done(self) -> bool:
        """Whether it is there. An edited record is not: making it again will say so."""
        try:
            meta = files.read_json(self.out / "meta.json")
            if self.job.kind == "records":
                records.load(self.out)
            return meta["fingerprint"] == self.job.fingerprint
        except (UserError, OSError, ValueError, KeyError, TypeError):
            return False


@dataclass(frozen=True)
class Cell:
    table: Table
    row: Line
    column: Line
    seed: int
    record: Artefact

    def __str__(self) -> str:
        block = f"{self.table.block}: " if self.table.block else ""
        return f"{block}{self.row.name} x {self.column.name}, seed {self.seed}"


@dataclass
class Planner:
    """Turns cells into artefacts. Equal work is one artefact, whichever cells ask for it."""

    table: Table
    fetch: bool = True              # download data sets that are not here; else outlines
    artefacts: dict[Path, Artefact] = field(default_factory=dict)   # by folder
    _loaded: dict[str, ImageSet] = field(default_factory=dict)
    _noted: set[str] = field(default_factory=set)
    _unknown: set[str] = field(default_factory=set)                 # what stands for fingerprints
    _numbers: dict[str, int] = field(default_factory=dict)          # of steps that have none
    _looked: dict[str, Callable[[], None]] = field(default_factory=dict)
    _requests: dict[tuple, Request] = field(default_factory=dict)       # what was parsed
    _trained_on: dict[Path, ImageSet] = field(default_factory=dict)     # by the checkpoint's folder

    def fetching(self) -> contextlib.AbstractContextManager:
        """Inside, nothing is downloaded, unless `fetch`."""
        return contextlib.nullcontext() if self.fetch else outlines.allowed()

    def cells(self) -> Iterator[Cell]:
        """Every cell with its artefacts. Raises UserError for a mistake in the table."""
        for row, column, seed in itertools.product(
                self.table.rows, self.table.columns, self.table.seeds):
            if not (named(column, row.only) and named(row, column.only)):
                continue
            state = State(seed)
            steps = [self._plan(step.fill(state.variables(line)), state)
                     for line in (row, column) for step in line.steps]
            line = row if row.learner else column
            learner = line.learner or self.table.evaluate
            if row.learner and column.learner:
                raise UserError(f"{column.learner.origin}: {column.name}: the row {row.name} names "
                                "a learner too; let one of them be, or leave this cell out by "
                                "`only:`")
            record = self._plan(learner.fill(state.variables(line)), state)
            cell = Cell(self.table, row, column, seed, record)
            refuse_unread(cell, steps)
            yield cell

    def _plan(self, step: Step, state: "State") -> Artefact:
        request = self._request(step, state)
        reads = self._reads(request, state)
        try:
            request.check_images(reads.image_shape)
        except UserError as error:
            raise UserError(f"{step.origin}: {error}") from None
        needs = [state.set_by] if request.data.data == state.folder else []

        def resolve(path: str) -> str:
            """The fingerprint of an artefact that a method names: perhaps still to be made."""
            made = self.artefacts.get(Path(path))
            if made is None:
                return fingerprint_at(path)
            needs.append(made)
            return made.job.fingerprint

        check = nothing
        if step.command == "poison":
            job = identity.poison(request, reads, resolve)
        elif step.command == "purify":
            trained = None
            try:
                if request.trained_as:
                    checkpoint, made = self._checkpoint(request, state)
                    trained = checkpoint.fingerprint, checkpoint.meta["seed"]
                    needs.append(made)
                    check = self._checks(step, request, reads, checkpoint, there=made is None)
                require_checkpoints(request)
            except UserError as error:
                raise UserError(f"{step.origin}: {error}") from None
            job = identity.purify(request, reads, trained, resolve)
        elif step.command == "evaluate":
            test = self._test(reads, request)
            job = identity.record(request, reads, test, resolve, self._clean(reads, test, request))
        else:
            if request.train_config is None:
                raise UserError(f"{step.origin}: {request.method} is not trained")
            job = identity.train(request, reads, resolve)

        artefact = self._artefact(step, job, request, reads, needs, state, check)
        if step.command in ("poison", "purify"):
            meta = {**reads.meta, "fingerprint": job.fingerprint, "unknown": not artefact.known,
                    "lineage": [*reads.meta["lineage"],
                                *({"method": method} for method in request.steps)]}
            state.images = dataclasses.replace(reads, meta=meta)
            state.set_by = artefact
        elif step.command != "evaluate":
            state.checkpoint, self._trained_on[artefact.out] = artefact, reads
        return artefact

    def _checkpoint(self, request: Request, state: "State"
                    ) -> tuple[Checkpoint, Artefact | None]:
        """What a trained purifier applies: the checkpoint that its step names, or the one that the
        line trained last. An Artefact beside it: this table makes it, perhaps still has to."""
        given = request.settings.checkpoint
        made = self.artefacts.get(Path(given)) if given else state.checkpoint
        if given and (made is None or made.out not in self._trained_on):
            return Checkpoint.load(given), None
        if made is None:
            raise UserError(f"{request.method} is trained: a train step must come before, or the "
                            "step names a `checkpoint:`")
        job, saw = made.job, trained_on(self._trained_on[made.out])
        meta = {"method": job.method, "config": job.config, "seed": job.seed,
                "fingerprint": job.fingerprint, "trained_on": saw}
        return Checkpoint(made.out, meta), made

    def _checks(self, step: Step, request: Request, reads: ImageSet, checkpoint: Checkpoint, *,
                there: bool) -> Callable[[], None]:
        """That the checkpoint will fit these images and this method. Raises UserError for what the
        table shows by itself; what is returned also looks at the weights of one that is `there`,
        and for what the method needs on this machine (the purifier's `check`)."""
        module = request.module

        def check() -> None:
            try:
                if there:
                    checkpoint.verify()
                if hasattr(module, "check"):
                    with self.fetching():
                        module.check(request.config, checkpoint, reads.image_shape)
            except UserError as error:
                raise UserError(f"{step.origin}: {error}") from None

        checkpoint.check_fits(reads, request.trained_as, classes=fact(module, "NEEDS_LABELS"),
                              any_size=takes_any_size(module, request.config))
        key = repr((request.method, request.config, checkpoint.meta["config"], reads.image_shape,
                    there and checkpoint.path))
        return self._looked.setdefault(key, check)      # one for all seeds and rows

    def _request(self, step: Step, state: "State") -> Request:
        """The request that the step's line will be parsed to."""
        settings = {key: value for key, value in self.table.settings.items() if key in DEVICE_KEYS}
        clean = {key: value for key, value in self.table.settings.items() if key in DATA_KEYS}
        if COMMANDS[step.command].takes_clean or state.folder is None:
            settings |= clean
        else:
            settings |= {key: value for key, value in clean.items()
                         if key in ("root", "test", "like")}
            settings["data"] = state.folder
        if step.command not in ("poison", "purify"):
            settings["seed"] = str(state.seed)
        settings |= step.settings
        state.arguments = (*step.yamls, *(f"{key}={value}" for key, value in settings.items()))
        try:
            request = self._parse(step, settings, state)
        except UserError as error:
            message = str(error).removeprefix(f"{config.TYPED}: ")      # it is the table's
            raise UserError(f"{step.origin}: {message}") from None
        if request.fit and request.fit not in self._noted:
            self._noted.add(request.fit)
            note(request.fit)
        return request

    def _parse(self, step: Step, settings: dict[str, str], state: "State") -> Request:
        """The step's line is read once for all cells: they differ in the folder before it and in
        the seed, on which nothing else of a request depends (but for one that is made of parts)."""
        own = {"data": state.folder, "seed": str(state.seed)}
        own = {key: value for key, value in own.items() if value and settings.get(key) == value}
        same = tuple(item for item in settings.items() if item[0] not in own)
        data_set = state.data_set(settings)
        key = (step.command, step.yamls, same, tuple(own), data_set)
        request = self._requests.get(key)
        if request is None or request.parts:
            request = parse(list(state.arguments), "", step.command, data_set)
            self._requests[key] = request
        settings, data = request.settings, request.data
        if "seed" in own:
            settings = dataclasses.replace(settings, seed=state.seed)
        if "data" in own:
            data = dataclasses.replace(data, data=state.folder)
        return dataclasses.replace(request, settings=settings, data=data, words=state.arguments)

    def _reads(self, request: Request, state: "State") -> ImageSet:
        """The set that a step reads: the one before, or what its `data` names."""
        if state.images is not None and request.data.data == state.folder:
            return self._seen(request.cut(split_of(state.images, request.data.split)))
        key = json.dumps(config.plain(request.data))
        if key not in self._loaded:
            self._loaded[key] = self._seen(load(request.data))
            request.note_missing_classes(request.cut(self._loaded[key]))
        return request.cut(self._loaded[key])

    def _seen(self, images: ImageSet) -> ImageSet:
        """The set, after a look at whether its fingerprint is one."""
        if images.meta.get("unknown"):
            self._unknown.add(images.fingerprint)
        return images

    def _test(self, train: ImageSet, request: Request) -> ImageSet:
        key = json.dumps([train.meta["test"], request.data.test, request.data.root])
        if key not in self._loaded:
            self._loaded[key] = self._seen(load_test(train, request.data))
        return self._loaded[key]

    def _clean(self, train: ImageSet, test: ImageSet, request: Request) -> ImageSet | None:
        """What a learner has beside the set; read once for each set and choice."""
        key = json.dumps([train.meta["root"], len(train), test.fingerprint, request.method,
                          request.settings.clean, request.settings.clean_split])
        if key not in self._loaded:
            clean = request.load_clean(train, test)
            self._loaded[key] = clean if clean is None else self._seen(clean)
        return self._loaded[key]

    def _artefact(self, step: Step, job: Job, request: Request, reads: ImageSet,
                  needs: list[Artefact], state: "State", check: Callable[[], None]) -> Artefact:
        out = Path(request.settings.out) if request.settings.out else job.default_out
        known = self._unknown.isdisjoint(job.inputs.values())
        if not known:
            self._unknown.add(job.fingerprint)
            number = self._numbers.setdefault(job.fingerprint, len(self._numbers) + 1)
            out = out if request.settings.out else job.out_as(f"step{number}")
        if out not in self.artefacts:
            arguments = list(state.arguments)
            if step.command == "purify" and request.trained_as and not request.settings.checkpoint:
                arguments.append(f"checkpoint={state.checkpoint.out}")
            unique = tuple(dict.fromkeys(need for need in needs if need is not None))
            brief = step.command == "purify" and not (
                request.trained_as or request.parts or fact(request.module, "SEES_SET"))
            self.artefacts[out] = Artefact(step, job, (*arguments, f"out={out}"), out, unique,
                                           len(reads), check, request.device, brief, known,
                                           reads.image_shape)
        return self.artefacts[out]


@dataclass
class State:
    """Where a cell stands after some of its steps."""

    seed: int
    images: ImageSet | None = None          # the current set; its pixels are the clean set's
    set_by: Artefact | None = None          # what makes it; None: it is the clean set
    checkpoint: Artefact | None = None      # what a train step makes
    arguments: tuple[str, ...] = ()         # of the step being planned

    def data_set(self, settings: dict[str, str]) -> str | None:
        """Where the images of the current set come from, for a step that reads it."""
        reads = self.folder is not None and settings.get("data") == self.folder
        return self.images.meta["root"].get("data") if reads else None

    @property
    def folder(self) -> str | None:
        """Of the current set."""
        return str(self.set_by.out) if self.set_by else None

    def variables(self, line: Line) -> dict[str, str]:
        """What a step of the line may write in braces."""
        made = {"set": self.set_by, "checkpoint": self.checkpoint}
        current = {name: str(artefact.out) for name, artefact in made.items() if artefact}
        return {"seed": str(self.seed), **current, **line.words, **line.variables}


def cells_of(tables: Iterable[Table], *, fetch: bool = False) -> list[Cell]:
    """The cells of one table or of one on several data sets, which share artefacts. A data set that
    is not here is planned by its outline (core.outlines), with a note where that has no digest;
    with `fetch` it is downloaded. Raises UserError if it is neither here nor known."""
    first, *rest = tables
    planner = Planner(first, fetch)
    with planner.fetching():
        cells = [cell for table in (first, *rest)
                 for cell in dataclasses.replace(planner, table=table).cells()]
        if not cells:
            raise UserError(f"{first.path}: by its `only:`, none of these rows has one of these "
                            "columns")
        refuse_equal_seeds(cells)
        if missing := outlines.unknown():
            note(f"{' and '.join(missing)} not in '{first.settings.get('root', 'data')}': the plan "
                 "knows only how many images there are, so its folders have made-up names, and "
                 "finished records are not recognised")
        return cells


def refuse_unread(cell: Cell, steps: list[Artefact]) -> None:
    """Raise UserError for a step of a cell whose folder no later one reads, nor a file in it: its
    work would be lost, and the cell would be another one's by its name."""
    for number, made in enumerate(steps, 1):
        later = (*steps[number:], cell.record)
        if not any(made.job.fingerprint in other.job.inputs.values()
                   or any(str(made.out) in word for word in other.arguments) for other in later):
            raise UserError(f"{made.step.origin}: {cell.row.name} x {cell.column.name}: no step "
                            f"after this {made.step.command} reads what it makes ("
                            + ("a purify step does" if COMMANDS[made.step.command].trains else
                               "poison starts from the clean set, and `data:` names another")
                            + "); leave one of them out")


def refuse_equal_seeds(cells: list[Cell]) -> None:
    """Raise UserError for two seeds of a cell that would be one run, counted twice."""
    seen: dict[tuple, Cell] = {}
    for cell in cells:
        other = seen.setdefault((id(cell.table), cell.row.name, cell.column.name,
                                 cell.record.out), cell)
        if other is not cell:
            raise UserError(f"{cell.record.step.origin}: {cell.row.name} x {cell.column.name}: "
                            f"seeds {other.seed} and {cell.seed} are one run here, of a `seed:` "
                            'that is the same for both; leave it out, or write seed: "{seed}"')


def nothing() -> None:
    """The check of a step whose command refuses at once, if at all."""


def wanted(cells: list[Cell], committed: dict[str, Path], *, sets: bool = False
           ) -> list[Artefact]:
    """Artefacts still to be made, each after what it needs: records that are neither here nor
    committed, and whatever these stand on. With `sets`, also what the other records stand on."""
    found: dict[Path, bool] = {}            # artefact -> whether it is there
    order: list[Artefact] = []

    def visit(artefact: Artefact) -> None:
        if artefact.out in found:
            return
        there = artefact.job.fingerprint in committed or artefact.done
        found[artefact.out] = there
        if not there or sets:
            for need in artefact.needs:
                visit(need)
        if not there:
            order.append(artefact)

    for cell in cells:
        visit(cell.record)
    return order


def behind(artefacts: Iterable[Artefact]) -> list[Artefact]:
    """These and all that they stand on, each after what it needs."""
    found: dict[str, Artefact] = {}         # by fingerprint

    def visit(artefact: Artefact) -> None:
        if artefact.job.fingerprint not in found:
            for need in artefact.needs:
                visit(need)
            found[artefact.job.fingerprint] = artefact

    for artefact in artefacts:
        visit(artefact)
    return list(found.values())


def place_of(record: Artefact, committed: dict[str, Path]) -> Path | None:
    """The folder of a finished record, committed or made here."""
    if record.job.fingerprint in committed:
        return committed[record.job.fingerprint]
    return record.out if record.done else None
