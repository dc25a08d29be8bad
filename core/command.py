"""What every command shares: its arguments, its method, its errors and its exit status.

    COMMAND [FILE.yaml ...] [key=value ...] [--dry-run] [--smoke] [--limit N] [--force] [--wait]

Exit status: 0 the artefact is on disk and verified, 1 a mistake explained in one sentence, 2 usage,
130 interrupted (the same line resumes).
"""

import argparse
import contextlib
import contextvars
import dataclasses
import errno
import functools
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from core import config, distributed, manual, outlines, output, processes, variants
from core.commands import COMMANDS, OWNER, Command
from core.config import TYPED, Place
from core.datasets import DataSettings, load, load_clean, note_missing_classes, root_of
from core.device import DeviceSettings
from core.errors import ConfigError, UserError
from core.imageset import ImageSet
from core.job import Job
from core.methods import fact, find_method, is_method, list_methods, trained_as
from core.names import printable
from core.ranges import Count, Keys, Range, Share
from core.run import Run
from core.workfolder import otherwise

# What no disk and no user causes: a mistake in the code, and its traceback is wanted.
UNEXPLAINED = (None, errno.EBADF, errno.EFAULT, errno.ECHILD, errno.ESRCH)
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")      # torch's words on CUDA, on a CPU
SMOKE_ROWS = 320
# Embedded, and large enough for every method: what --smoke reads unless data= is typed.
SMOKE_DATA = {"data": "digits", "size": "32", "split": "train", "test": "null", "classes": "[]",
              "class_fraction": "1.0"}
SHOWN_IF_SET = (*OWNER, "limit", "smoke")
CHOOSING = ("data", "like", "preset", "protocol")   # keys that pick what is read of YAMLs
Seed = Annotated[int, Range(at_least=0, below=2**32)]


@dataclass(frozen=True)
class Settings(Keys):
    """Keys at the top level that every command takes, beside data and device settings."""

    method: str                     # which module of poisons/, purifiers/ or learners/
    # one of the YAML's `presets:`; without those, a name for the work
    preset: str = ""
    out: Place | None = None        # folder to make; null: runs/<kind>/<name>-<fingerprint>
    seed: Seed | None = None        # of every random choice; null: 0, or the checkpoint's
    checkpoint: Place | None = None     # purify.py: a folder made by train_vae.py or train_ddpm.py
    # evaluate.py: another learner's YAML, whose keys go over those that this one shares with it
    protocol: Place | None = None
    # evaluate.py: clean labelled images for a learner that needs some, named as `data` is; null:
    # the data set behind the images
    clean: Place | None = None
    # evaluate.py: which rows of it, as `split`; OP's release: 5,000 training images
    clean_split: str = "last:5000"
    # evaluate.py: keep the trained weights beside the record, as network.safetensors
    keep_network: bool = False
    fraction: Share = 1.0           # python -m poisons: share of the images that are poisoned
    # python -m poisons: poison all and take a part, or that part alone
    craft_on: Literal["all", "part"] = "all"
    limit: Count | None = None      # --limit: only the first so many rows
    smoke: bool = False             # --smoke: end to end in seconds


@dataclass(frozen=True)
class Request:
    """A parsed command line: settings, the method's module and its resolved configs."""

    command: Command
    settings: Settings
    data: DataSettings
    device: DeviceSettings
    module: ModuleType
    config: Any
    train_config: Any               # of a trained purifier; else None
    fit: str                        # a note where the YAML has no values for this data set
    dry_run: bool
    force: bool
    wait: bool
    data_set: str | None            # which of the YAML's values for a data set were taken
    # of a method that is made of others, their requests by the dotted key that names them
    parts: dict[str, "Request"] = dataclasses.field(default_factory=dict)
    words: tuple[str, ...] = ()     # YAMLs, then key=value

    @property
    def method(self) -> str:
        return self.settings.method

    @property
    def preset(self) -> str:
        return self.settings.preset

    @property
    def limit(self) -> int | None:
        return self.settings.limit

    @property
    def smoke(self) -> bool:
        return self.settings.smoke

    @property
    def trained_as(self) -> str | None:
        """The method whose checkpoint a trained purifier applies: its own, or its CHECKPOINT."""
        return trained_as(self.module)

    @property
    def needs_labels(self) -> bool:
        """Whether the purifier sees the labels: where its definition, or a part's, needs them."""
        return fact(self.module, "NEEDS_LABELS") or any(
            part.needs_labels for part in self.parts.values())

    @property
    def steps(self) -> list[str]:
        """The methods that its output's lineage gains: its parts', or its own."""
        return [step for part in self.parts.values() for step in part.steps] or [self.method]

    @property
    def overrides(self) -> dict[str, Any] | None:
        """Keys of the method that are not as its YAML (and `protocol=`) says, with their values:
        what was typed, a further YAML or --smoke changed. None where the YAML has a `preset:` of
        its own, as a run's config.yaml has, so that its name need not be that of its values, and
        where the first of several YAMLs is none by itself."""
        yamls = [word for word in self.words if not config.is_setting(word)]
        chosen = [word for word in self.words if word.partition("=")[0] in (*CHOOSING, "method")]
        values = config.Node({}, "defaults")
        try:
            if yamls:
                own = config.read(yamls[:1]).value
                if "preset" in own and "presets" not in own:
                    return None
                tree = read_variant(yamls[:1], chosen, self.smoke, self.data_set, self.command)[0]
                values = tree.value.get(self.method, values)
            before, _ = build_section(self.module, values, self.method)
        except UserError:
            return None
        before, now = config.plain(before), config.plain(self.config)
        return {key: now[key] for key in now
                if now[key] != before[key] and key not in fact(self.module, "PATHS")}

    def load_data(self) -> ImageSet:
        """The input set, cut to --limit."""
        with distributed.world().leader_first():
            images = self.cut(load(self.data))
        if self.fit:
            distributed.note(self.fit)
        self.note_missing_classes(images)
        self.check_images(images.image_shape)
        return images

    def check_images(self, shape: tuple[int, int]) -> None:
        """Raise UserError if the method cannot take images of this (height, width): what the
        sections of its configs that have a `check_images` say of it."""
        top = (self.train_config, f"{self.method}.train") if self.command.trains else (
            self.config, self.method)
        for name, section in config.sections(*top):
            try:
                if hasattr(section, "check_images"):
                    section.check_images(shape)
            except ConfigError as error:
                raise UserError(f"{name}.{error.key}: {error}") from None
            except ValueError as error:
                raise UserError(f"{name}: {error}") from None
        for key, part in self.parts.items():
            with blamed(f"{self.method}.{key}", part):
                part.check_images(shape)

    def load_clean(self, train: ImageSet, test: ImageSet) -> ImageSet | None:
        """The clean labelled images of a learner that needs some; None for the others."""
        clean, split = self.settings.clean, self.settings.clean_split
        if fact(self.module, "NEEDS_CLEAN"):
            return load_clean(train, test, clean, split, self.data)
        if clean is not None or split != Settings.clean_split:
            raise UserError(f"clean: {self.method} learns from the set alone and takes no clean "
                            "images")
        return None

    def note_missing_classes(self, images: ImageSet) -> None:
        """Say which classes a set has no image of, of the rows that the command reads."""
        first = self.limit is not None or self.data.split.startswith(("first:", "after:"))
        note_missing_classes(images, self.data.data, hint=first)

    def cut(self, images: ImageSet) -> ImageSet:
        """The rows that --limit leaves."""
        return images if self.limit is None else images.first(self.limit)

    def open(self, job: Job, device: DeviceSettings | None = None, section: Any = None) -> Run:
        """The run of a job. `section` is what config.yaml shows under the method's name."""
        settings = dataclasses.replace(self.settings, protocol=None)    # its values are shown
        top = {key: value for key, value in config.plain(settings).items()
               if key not in SHOWN_IF_SET or value != getattr(Settings, key)}
        shown = {**top, "seed": job.seed, **config.plain(self.data),
                 self.method: section or config.plain(self.config)}
        return Run(job, out=Path(self.settings.out) if self.settings.out else None,
                   settings=shown, device=device or self.device, force=self.force, wait=self.wait)

    def plan(self, run: Run, inputs: dict[str, str]) -> bool:
        """For --dry-run: print the resolved config and the plan. True if that was all. Data sets
        may be absent (core.outlines)."""
        if not self.dry_run:
            return False
        print(config.dump({**run.settings, **config.plain(self.device)}), end="")
        unfinished = {None: "would be made", run.job.fingerprint: "would resume"}.get(
            run.folder.holder(), "holds other unfinished work (--force would drop it)")
        done = f"already done{otherwise(run.out, self.device)}"
        state = {"this": done, "nothing": unfinished,
                 "damaged": "is damaged (--force would move it aside)",
                 "other": "holds other work (--force would move it aside)"}[run.folder.occupant()]
        for role, text in inputs.items():
            print(f"# {role}: {printable(text)}")
        if missing := outlines.unknown():
            print(f"# {' and '.join(missing)} is not in '{printable(self.data.root)}': the "
                  "fingerprint, and with it the folder, is known once it is")
            return True
        print(f"# fingerprint {run.job.fingerprint[:16]}")
        print(f"# {printable(run.out)}: {state}")
        return True


@contextlib.contextmanager
def blamed(key: str, part: Request) -> Iterator[None]:
    """Name the part in a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key} ({part.preset}): {error}") from None


def parse(argv: list[str] | None, doc: str, name: str, data_set: str | None = None) -> Request:
    """Read the command line of COMMANDS[name]. `data_set` is that of images which are still to be
    made, for `for:`.

    Raises UserError for what is in it, SystemExit(2) for its form.
    """
    command = COMMANDS[name]
    if distributed.started() and not command.shared:
        raise UserError(f"{command.line} runs in one process: start it without torchrun")
    parser = argparse.ArgumentParser(prog=command.line, description=doc, add_help=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-h", "--help", nargs="?", const="", metavar="METHOD",
                        help="this, or a method's keys: default, range and what they are")
    parser.add_argument("config", nargs="*", metavar="FILE.yaml | key=value",
                        help="YAML files, merged left to right, then single keys; a file of "
                        f"configs/{command.room}/ also by its name alone")
    parser.add_argument("--dry-run", action="store_true",
                        help="print the resolved config and the plan, and stop")
    parser.add_argument("--smoke", action="store_true",
                        help="end to end in seconds: a few rows of the embedded digits (or of "
                        "data=), a tiny model")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    parser.add_argument("--force", action="store_true",
                        help="move other work in the way aside (finished) or drop it (unfinished)")
    parser.add_argument("--wait", action="store_true",
                        help="wait for another process that is making the same")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.dry_run:
        outlines.allow()
    if arguments.help is not None:
        words = [word for word in (arguments.help, *arguments.config)
                 if word and not config.is_setting(word)]
        parser.epilog = f"methods in {command.room}/: {', '.join(list_methods(command.room))}"
        print(help_for(words[0], command) if words else
              f"{parser.format_help()}\n{top_keys(command)}")
        raise SystemExit(0)

    yamls = [manual.yaml_of(command.room, word, f"'{word}' is neither a YAML file nor key=value")
             for word in arguments.config if not config.is_setting(word)]
    overrides = [word for word in arguments.config if config.is_setting(word)]
    tree, fit, data_set = read_variant(yamls, overrides, arguments.smoke, data_set, command)
    if "method" not in tree.value:
        methods = list_methods(command.room)
        raise UserError(f"no method: name a YAML such as configs/{command.room}/{methods[0]}.yaml, "
                        f"or write method= one of {', '.join(methods)}")
    method = config.build(str, tree.value["method"], "method")
    module = find_method(command.room, method, tree.value["method"].origin)
    if distributed.started() and command.room == "learners" and not fact(module, "SHARED"):
        raise UserError(f"{command.line} runs {method} in one process: start it without torchrun")

    section = tree.value.pop(method, config.Node({}, "defaults"))
    check_section(module, section, method, command)
    tree.value.setdefault("preset", config.Node(method, TYPED))
    if arguments.limit is not None:
        tree.value["limit"] = config.Node(str(arguments.limit), "--limit")
    if arguments.smoke:
        tree.value["smoke"] = config.Node("true", TYPED)
    if "smoke" in tree.value and config.build(bool, tree.value["smoke"], "smoke"):
        own = {f"{method}.{key}" for key in module.SMOKE}
        if unused := sorted(own.intersection(typed(section, method))):
            distributed.note(f"--smoke has its own {', '.join(unused)}: what is typed does not "
                             "count; --limit N takes few rows without it")
        section = config.merge(section, smoke_node(module))
        smoke_settings(tree)
    method_config, train_config = build_section(module, section, method)
    settings, data, device = build_settings(tree, method, module)
    for key, owner in OWNER.items():
        if key in tree.value and owner is not command:
            raise UserError(f"{tree.value[key].origin}: {key}: {command.line} takes none; it is "
                            f"a key of {owner.line}")
    request = Request(command, settings, data, device, module, method_config, train_config, fit,
                      arguments.dry_run, arguments.force, arguments.wait, data_set,
                      words=(*yamls, *overrides))
    if not hasattr(module, "parts"):
        return request
    parts = module.parts(request)
    fits = dict.fromkeys(filter(None, (one.fit for one in (request, *parts.values()))))
    return dataclasses.replace(request, parts=parts, fit="; ".join(fits))


def read_variant(yamls: list[str], overrides: list[str], smoke: bool, data_set: str | None,
                 command: Command) -> tuple[config.Node, str, str | None]:
    """The YAMLs as their `for:` and `presets:` say for this data set, under `protocol` and what is
    typed; a note where they have no values of their own for it; and that data set."""
    try:
        tree = config.read(yamls)
    except UserError as error:
        raise UserError(f"{error}{variants.new_form(yamls)}") from None
    words = [word for word in overrides if word.partition("=")[0] in CHOOSING]
    typed = config.read([], words).value
    named = {key: config.build(Place | None if key == "protocol" else str | None, node, key)
             for key, node in {**tree.value, **typed}.items() if key in CHOOSING}
    if smoke and "data" not in typed:
        data_set = SMOKE_DATA["data"]
    sets = variants.meant_for(tree)
    like = named.get("like")
    if like is not None and sets and like not in sets:
        raise UserError(f"like: {yamls[-1]} has no values for '{like}'"
                        + config.suggest(like, sets, "it has some for"))
    data_set = like or data_set or root_of(named.get("data"))
    preset = named.get("preset")
    picked = preset if "preset" in typed or "presets" in tree.value else None
    note = ""
    if sets and data_set not in sets:
        note = (f"{yamls[-1]} has no values of its own for {data_set or 'these images'}; those for "
                f"{sets[0]} are used (like=NAME takes those for {', '.join(sets)})")
    tree = variants.choose(tree, picked, data_set)
    protocol = named.get("protocol") if "protocol" in command.own_keys else None
    protocol = protocol and manual.yaml_of(command.room, protocol, "protocol")
    stem = yamls and config.as_path(yamls[0]).stem
    if protocol is not None:
        tree, replaced = under_protocol(tree, protocol, data_set, command)
        stem = None if replaced else stem
    for word in overrides:
        config.apply(tree, word)
    if yamls and (picked or not preset or protocol):
        parts = [stem, picked, protocol and Path(protocol).stem]
        tree.value["preset"] = config.Node("_".join(part for part in parts if part), TYPED)
    return tree, note, data_set


def under_protocol(tree: config.Node, path: str, data_set: str | None, command: Command
                   ) -> tuple[config.Node, bool]:
    """A learner's YAML with the protocol of another's, and whether both are of one method, so that
    the other's is all of it: all keys of that method, which the learner's goes on from, whether
    its YAML writes them or leaves them at their defaults. What else that YAML says (`split:
    first:40000`) goes over too."""
    try:
        other = variants.choose(config.read([path]), None, data_set).value
    except UserError as error:
        raise UserError(f"protocol: {error}{variants.new_form([path])}") from None
    names, modules = [], []
    for found, where in ((tree.value, "protocol"), (other, f"protocol: {path}")):
        if "method" not in found:
            raise UserError(f"{where}: a learner's YAML with a `method:` is needed")
        names.append(config.build(str, found["method"], "method"))
        modules.append(find_method(command.room, names[-1], found["method"].origin))
    own, its = modules
    if not issubclass(own.Config, its.Config):
        standard = find_method(command.room, "standard", "protocol")
        raise UserError(f"protocol: {path} is of {names[1]}, which {names[0]} does not go on from; "
                        + ("name one of standard's, such as configs/learners/cpu12.yaml"
                           if issubclass(own.Config, standard.Config) else
                           f"{names[0]} has a schedule of its own: leave protocol= out, and type "
                           f"what is to be changed ({names[0]}.epochs=...)"))
    section = other.pop(names[1], config.Node({}, path))
    values = config.plain(config.build(its.Config, section, names[1]))
    for key in ("method", "data", "preset"):
        other.pop(key, None)
    over = config.parse(config.dump({names[0]: values}), path)
    return config.merge(tree, config.Node(other | over.value, path)), own is its


def help_for(word: str, command: Command) -> str:
    """The page of a method, or of a YAML's."""
    if word.endswith((".yaml", ".yml")):
        word = config.build(str, config.read([word]).value.get("method", config.Node("", word)),
                            "method")
    module = find_method(command.room, word, "--help")
    if command.trains and not hasattr(module, "TrainConfig"):
        raise UserError(f"--help: {word} is not trained; its keys: "
                        f"{COMMANDS['purify'].line} --help {word}")
    return manual.page(module, word, command)


def top_keys(command: Command) -> str:
    """The keys that a command takes beside its method's; --limit and --smoke are options."""
    hidden = {"limit", "smoke", *(key for key, owner in OWNER.items() if owner is not command)}
    found = [key for group in (Settings, DataSettings, DeviceSettings)
             for key in manual.keys(group) if key.name not in hidden]
    return "\n".join(["keys beside the method's, as key=value or in a YAML:",
                      *(line for key in found for line in key.lines())])


def known_keys(module: ModuleType, method: str) -> list[str]:
    """Dotted names of a method's keys, those of its training last."""
    halves = {method: module.Config, f"{method}.train": getattr(module, "TrainConfig", None)}
    return [f"{prefix}.{field.name}" for prefix, half in halves.items() if half
            for field in dataclasses.fields(half)]


def check_section(module: ModuleType, section: config.Node, method: str, command: Command
                  ) -> None:
    """Raise UserError for an unknown key, and for one that is typed to the wrong command: training
    reads `train:` alone, and applying what was trained reads the rest."""
    trained, trains = hasattr(module, "TrainConfig"), command.trains
    known = known_keys(module, method)
    for key, node in section.value.items() if isinstance(section.value, dict) else ():
        name = f"{method}.{key}"
        if name not in known and not (trained and key == "train"):
            raise UserError(f"{node.origin}: unknown key '{name}'{config.suggest(key, known)}")
        if trained and trains != (key == "train"):
            for given in typed(node, name):
                owner = COMMANDS["purify" if trains else fact(module, "TRAINED_BY")]
                raise UserError(f"{TYPED}: {given}: {command.line} takes none; it is a key of "
                                f"{owner.line}")


def typed(node: config.Node, name: str) -> Iterator[str]:
    """Dotted names of the values at or below a node that came as key=value."""
    if isinstance(node.value, str) or (node.origin == TYPED and isinstance(node.value, list)):
        if node.origin == TYPED:
            yield name
        return
    items = node.value.items() if isinstance(node.value, dict) else enumerate(node.value)
    for key, item in items:
        yield from typed(item, f"{name}.{key}")


def smoke_settings(tree: config.Node) -> None:
    """A smoke test's top level: few rows, no compiling, and data that need no download (a YAML
    that itself says `smoke: true`, such as a run's config.yaml, keeps its own)."""
    for key, text in (("limit", str(SMOKE_ROWS)), ("compile", "false")):
        tree.value.setdefault(key, config.Node(text, "--smoke"))
    given = {key for key, node in tree.value.items() if node.origin == TYPED}
    if "smoke" in given and "data" not in given:
        tree.value |= {key: config.parse(text, "--smoke") for key, text in SMOKE_DATA.items()
                       if key not in given}


def build_section(module: ModuleType, section: config.Node, method: str) -> tuple[Any, Any]:
    """The method's Config, and the TrainConfig from `train:` inside its section if it has one."""
    train_config = None
    if hasattr(module, "TrainConfig") and isinstance(section.value, dict):
        train = section.value.pop("train", config.Node({}, section.origin))
        train_config = config.build(module.TrainConfig, train, f"{method}.train")
    return config.build(module.Config, section, method), train_config


def build_settings(tree: config.Node, method: str, module: ModuleType):
    """Split the top level among the three settings; an unknown key names the nearest of all."""
    groups = (Settings, DataSettings, DeviceSettings)
    fields = {field.name: group for group in groups for field in dataclasses.fields(group)}
    known, room = [*fields, method, *known_keys(module, method)], module.__name__.split(".")[0]
    for key, node in tree.value.items():
        if key not in fields and is_method(room, key):
            raise UserError(f"{node.origin}: unknown key '{key}': that is another method's, and "
                            f"this line runs {method}" + (
                                "; protocol= puts a learner under another's schedule"
                                if room == "learners" else ""))
        if key not in fields:
            raise UserError(f"{node.origin}: unknown key '{key}'{config.suggest(key, known)}")
    built = []
    for group in groups:
        part = {key: node for key, node in tree.value.items() if fields[key] is group}
        built.append(config.build(group, config.Node(part, tree.origin), ""))
    return tuple(built)


def smoke_node(module: ModuleType) -> config.Node:
    """A module's SMOKE overrides as nodes; dotted keys reach into `train`."""
    tree = config.Node({}, "--smoke")
    for key, value in module.SMOKE.items():
        config.apply(tree, f"{key}={value}")
    return tree


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def command(main: Callable[[list[str] | None], None]) -> Callable[[list[str] | None], int]:
    """Turn a main that raises into one that explains and returns an exit status."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        output.prepare()
        try:
            processes.end_with_starter()
            leads = distributed.world().leads           # rank 0 prints the artefact's path
            with contextlib.nullcontext() if leads else contextlib.redirect_stdout(None):
                try:
                    contextvars.copy_context().run(main, argv)
                except SystemExit:                      # --help
                    output.flush()
                    raise
            output.flush()
        except UserError as error:
            return fail(str(error))
        except KeyboardInterrupt:
            print(f"interrupted; the same line resumes:\n  {this_line()}", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return 1
        except OSError as error:
            if error.errno in UNEXPLAINED:
                raise
            return fail(f"{error.filename or 'a file'}: {(error.strerror or '').lower()}; nothing "
                        "was left half-written: mend that and repeat the same line")
        except MemoryError as error:
            return fail(f"out of memory: {error}")
        except RuntimeError as error:
            if not any(text in str(error).lower() for text in OUT_OF_MEMORY):
                raise
            return fail("out of memory: lower the batch size or the width "
                        f"({str(error).splitlines()[0]})")
        return 0

    return wrapped


def this_line() -> str:
    """The command line as typed, for 'the same line resumes'."""
    words = list(sys.orig_argv)
    words[0] = Path(words[0]).name
    return shlex.join(words)


def fail(message: str) -> int:
    """Say what went wrong; of several processes, which one it went wrong in."""
    rank = distributed.rank()
    where = f" (process {rank})" if rank else ""
    with contextlib.suppress(OSError):
        output.flush()                  # now, where a full disk behind it hides nothing
    print(f"error{where}: {printable(message)}", file=sys.stderr)
    return 1
