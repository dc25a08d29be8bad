"""A command line, parsed: its method, its settings and configs, and the run that they ask for.

    COMMAND [FILE.yaml ...] [key=value ...] [--dry-run] [--smoke] [--limit N] [--force] [--wait]
"""

import argparse
import contextlib
import dataclasses
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from core import config, distributed, manual, outlines
from core.command import Parser, positive
from core.commands import COMMANDS, OWNER, Command
from core.config import TYPED
from core.datasets import DataSettings, load, note_missing_classes
from core.device import DeviceSettings
from core.errors import ConfigError, UserError
from core.imageset import ImageSet
from core.job import Job
from core.methods import fact, find_method, list_methods, trained_as
from core.names import printable
from core.origins import load_clean
from core.run import Run
from core.settings import (
    CHOOSING,
    Settings,
    build_section,
    build_settings,
    check_section,
    given_keys,
    read_variant,
    smoke_node,
    smoke_settings,
)
from core.workfolder import otherwise

SHOWN_IF_SET = (*OWNER, "limit", "smoke")


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
        self.refuse_own_input()
        settings = dataclasses.replace(self.settings, protocol=None)    # its values are shown
        top = {key: value for key, value in config.plain(settings).items()
               if key not in SHOWN_IF_SET or value != getattr(Settings, key)}
        shown = {**top, "seed": job.seed, **config.plain(self.data),
                 self.method: section or config.plain(self.config)}
        if self.parts:          # theirs stay their own: read back, what is shown would be typed
            shown |= {"seed": self.settings.seed, "precision": self.device.precision}
        return Run(job, out=Path(self.settings.out) if self.settings.out else None,
                   settings=shown, device=device or self.device, force=self.force, wait=self.wait)

    def refuse_own_input(self) -> None:
        """Raise UserError where --force would move aside what the line reads, so that it could not
        be repeated."""
        own = self.train_config if self.command.trains else self.config
        read = (self.data.data, self.settings.checkpoint,
                *(getattr(own, key, None) for key in fact(self.module, "PATHS")))
        if self.force and self.settings.out and any(
                path and Path(path).resolve() == Path(self.settings.out).resolve()
                for path in read):
            raise UserError(f"out: {self.settings.out} is what this line reads, and --force would "
                            "move it aside; choose another out=")

    def plan(self, run: Run, inputs: dict[str, str], committed: Path | None = None) -> bool:
        """For --dry-run: print the resolved config and the plan. True if that was all. Data sets
        may be absent (core.outlines). `committed` is where it is done already."""
        if not self.dry_run:
            return False
        print(config.dump({**run.settings, **config.plain(self.device)}), end="")
        unfinished = {None: "would be made", run.job.fingerprint: "would resume"}.get(
            run.folder.holder(), "holds other unfinished work (--force would drop it)")
        place = committed or run.out
        done = f"already done{otherwise(place, self.device)}"
        state = done if committed else {
                 "this": done, "nothing": unfinished,
                 "damaged": "is damaged (--force would move it aside)",
                 "other": "holds other work (--force would move it aside)"}[run.folder.occupant()]
        for role, text in inputs.items():
            print(f"# {role}: {printable(text)}")
        if missing := outlines.unknown():
            print(f"# {' and '.join(missing)} is not in '{printable(self.data.root)}': the "
                  "fingerprint, and with it the folder, is known once it is")
            return True
        print(f"# fingerprint {run.job.fingerprint[:16]}")
        print(f"# {printable(place)}: {state}")
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
    parser = parser_of(command, doc)
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

    if stray := [word for word in arguments.config if word.startswith("=")]:
        raise UserError(f"'{printable(stray[0])}' stands alone: write key=value without spaces")
    yamls = [manual.yaml_of(command.room, word, f"'{word}' is neither a YAML file nor key=value")
             for word in arguments.config if not config.is_setting(word)]
    overrides = [word for word in arguments.config if config.is_setting(word)]
    tree, fit, data_set = read_variant(yamls, overrides, arguments.smoke, data_set, command)
    if "method" not in tree.value:
        raise UserError(no_method(command, overrides, doc))
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
        if unused := sorted(own.intersection(given_keys(section, method))):
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
    if command.trains and (trainer := fact(module, "TRAINED_BY")) != command.name:
        raise UserError(f"method: {command.line} does not train {method}"
                        + (f"; {COMMANDS[trainer].line} does" if trainer else ""))
    request = Request(command, settings, data, device, module, method_config, train_config, fit,
                      arguments.dry_run, arguments.force, arguments.wait, data_set,
                      words=(*yamls, *overrides))
    if not hasattr(module, "parts"):
        return request
    parts = module.parts(request)
    fits = dict.fromkeys(filter(None, (one.fit for one in (request, *parts.values()))))
    return dataclasses.replace(request, parts=parts, fit="; ".join(fits))


def no_method(command: Command, overrides: list[str], doc: str) -> str:
    """What to write where no method is named: the one whose key was typed, or that is nearest to
    one; else the example that the command's help gives."""
    methods = [name for name in list_methods(command.room) if not command.trains
               or fact(find_method(command.room, name), "TRAINED_BY") == command.name]
    typed = [word.partition("=")[0].partition(".") for word in overrides]
    near = [close[0] for name, dot, _ in typed if dot
            and (close := difflib.get_close_matches(name, methods, n=1))]
    examples = re.findall(rf"configs/{command.room}/(\w+)\.yaml", doc)
    yamls = [name for method in near for name in manual.yamls_of(command.room, method)] or examples
    named = [name for name in (*near, *examples) if name in yamls] + yamls
    such = f"name a YAML such as configs/{command.room}/{named[0]}.yaml, or " if named else ""
    return f"no method: {such}write method= one of {', '.join(methods)}"


def parser_of(command: Command, doc: str) -> argparse.ArgumentParser:
    parser = Parser(command.line, doc, add_help=False)
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
    return parser


def help_for(word: str, command: Command) -> str:
    """The page of a method, or of a YAML's."""
    if word.endswith((".yaml", ".yml")):
        word = config.build(str, config.read([word]).value.get("method", config.Node("", word)),
                            "method")
    elif word not in list_methods(command.room) and word in manual.yamls(command.room):
        return help_for(manual.yaml_of(command.room, word), command)
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
