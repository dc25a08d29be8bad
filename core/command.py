"""What every command shares: its arguments, its method, its errors and its exit status.

    COMMAND [FILE.yaml ...] [key=value ...] [--dry-run] [--smoke] [--limit N] [--force]

Exit status: 0 the artefact is on disk and verified, 1 a mistake explained in one sentence, 2 usage,
130 interrupted (the same line resumes).
"""

import argparse
import dataclasses
import errno
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from core import config
from core.datasets import DataSettings, load
from core.device import DeviceSettings
from core.errors import UserError
from core.imageset import ImageSet
from core.run import Job, Run, this_line

EXPLAINED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
             errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EFBIG}
SMOKE_ROWS = 320
# Keys of one command alone.
OWN_KEYS = {"checkpoint": "purify.py", "fraction": "-m poisons", "craft_on": "-m poisons"}


@dataclass(frozen=True)
class Settings:
    """Keys at the top level that every command takes, beside data and device settings."""

    method: str
    out: str | None = None          # the artefact's folder; null: runs/<kind>/<name>-<hash>
    seed: int | None = None         # null: 0, or the checkpoint's
    checkpoint: str | None = None   # purify.py: a folder made by train_vae.py or train_ddpm.py
    fraction: float = 1.0           # python -m poisons: share of the images that are poisoned
    craft_on: Literal["all", "part"] = "all"    # poison all and take a part, or that part alone

    def __post_init__(self) -> None:
        config.in_range("fraction", self.fraction, above=0, at_most=1)
        if self.seed is not None:
            config.in_range("seed", self.seed, at_least=0, below=2**32)


@dataclass(frozen=True)
class Request:
    """A parsed command line: settings, the method's module and its resolved configs."""

    settings: Settings
    data: DataSettings
    device: DeviceSettings
    module: ModuleType
    config: Any
    train_config: Any               # of a trained purifier; else None
    preset: str
    limit: int | None
    smoke: bool
    dry_run: bool
    force: bool
    wait: bool

    @property
    def method(self) -> str:
        return self.settings.method

    def load_data(self) -> ImageSet:
        """The input set, cut to --limit."""
        images = load(self.data)
        return images if self.limit is None else images.first(self.limit)

    def open(self, job: Job, device: DeviceSettings | None = None, section: Any = None) -> Run:
        """The run of a job. `section` is what config.yaml shows under the method's name."""
        top = {key: value for key, value in config.plain(self.settings).items()
               if key not in OWN_KEYS or value != getattr(Settings, key)}
        shown = {**top, "seed": job.seed, **config.plain(self.data),
                 self.method: section or config.plain(self.config)}
        return Run(job, out=Path(self.settings.out) if self.settings.out else None,
                   settings=shown, device=device or self.device, force=self.force, wait=self.wait)

    def plan(self, run: Run, inputs: dict[str, str]) -> bool:
        """For --dry-run: print the resolved config and the plan. True if that was all."""
        if not self.dry_run:
            return False
        print(config.dump({**run.settings, **config.plain(self.device)}), end="")
        unfinished = "would resume" if run.work.exists() else "would be made"
        state = {"this": "already done", "nothing": unfinished,
                 "other": "holds other work (--force would move it aside)"}[run.occupant()]
        for role, text in inputs.items():
            print(f"# {role}: {text}")
        print(f"# fingerprint {run.job.fingerprint[:16]}")
        print(f"# {run.out}: {state}")
        return True


def parse(argv: list[str] | None, doc: str, room: str, program: str) -> Request:
    """Read a command line. Raises UserError for what is in it, SystemExit(2) for its form."""
    methods = list_methods(room)
    parser = argparse.ArgumentParser(
        prog=f"python {program}", description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"methods in {room}/: {', '.join(methods)}")
    parser.add_argument("config", nargs="*", metavar="FILE.yaml | key=value",
                        help="YAML files, merged left to right, then single keys")
    parser.add_argument("--dry-run", action="store_true",
                        help="print the resolved config and the plan, and stop")
    parser.add_argument("--smoke", action="store_true",
                        help="end to end in seconds: a few rows, a tiny model")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    parser.add_argument("--force", action="store_true",
                        help="move other work in the way aside (finished) or drop it (unfinished)")
    parser.add_argument("--wait", action="store_true",
                        help="wait for another process that is making the same")
    arguments = parser.parse_intermixed_args(argv)

    yamls = [word for word in arguments.config if "=" not in word]
    overrides = [word for word in arguments.config if "=" in word]
    for word in yamls:
        if not word.endswith((".yaml", ".yml")):
            raise UserError(f"'{word}' is neither a YAML file nor key=value")
    tree = config.read(yamls, overrides)
    if "method" not in tree.value:
        raise UserError(f"no method: name a YAML such as configs/{room}/{methods[0]}.yaml, or "
                        f"write method= one of {', '.join(methods)}")
    method = config.build(str, tree.value["method"], "method")
    module = find_method(room, method, methods, tree.value["method"].origin)

    section = tree.value.pop(method, config.Node({}, "defaults"))
    if arguments.smoke:
        section = config.merge(section, smoke_node(module))
        tree.value.setdefault("data", config.Node("digits", "--smoke"))
    method_config, train_config = build_section(module, section, method)
    settings, data, device = build_settings(tree, method, module)
    for key, owner in OWN_KEYS.items():
        if key in tree.value and owner != program:
            raise UserError(f"{tree.value[key].origin}: {key}: python {program} takes none; it is "
                            f"a key of python {owner}")
    limit = arguments.limit
    if limit is None and arguments.smoke:
        limit = SMOKE_ROWS
    return Request(settings, data, device, module, method_config, train_config,
                   Path(yamls[-1]).stem if yamls else method, limit, arguments.smoke,
                   arguments.dry_run, arguments.force, arguments.wait)


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
    inner = [f"{method}.{field.name}" for field in dataclasses.fields(module.Config)]
    for key, node in tree.value.items():
        if key not in fields:
            leaf = {name.rsplit(".", 1)[-1]: name for name in inner}
            near = config.suggest(key, [*fields, *leaf, method])
            for short, full in leaf.items():
                near = near.replace(f"'{short}'", f"'{full}'")
            raise UserError(f"{node.origin}: unknown key '{key}'{near}")
    built = []
    for group in groups:
        part = {key: node for key, node in tree.value.items() if fields[key] is group}
        built.append(config.build(group, config.Node(part, tree.origin), ""))
    return tuple(built)


def list_methods(room: str) -> list[str]:
    """Modules of a room that are methods: those that define a Config."""
    folder = Path(__file__).resolve().parent.parent / room
    return sorted(found.name for found in pkgutil.iter_modules([str(folder)])
                  if "class Config" in (folder / f"{found.name}.py").read_text())


def find_method(room: str, method: str, methods: list[str], origin: str = "") -> ModuleType:
    if method not in methods:
        place = f"{origin}: " if origin else ""
        raise UserError(f"{place}method: there is no {room}/{method}.py"
                        + config.suggest(method, methods).replace("known keys", "methods"))
    return importlib.import_module(f"{room}.{method}")


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
        try:
            main(argv)
        except UserError as error:
            return fail(str(error))
        except KeyboardInterrupt:
            print(f"interrupted; the same line resumes:\n  {this_line()}", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return 1
        except OSError as error:
            if error.errno not in EXPLAINED:
                raise
            return fail(f"{error.filename}: {(error.strerror or '').lower()}; nothing was left "
                        "half-written: mend that and repeat the same line")
        except MemoryError as error:
            return fail(f"out of memory: {error}")
        except RuntimeError as error:
            if "out of memory" not in str(error).lower():
                raise
            return fail(f"out of memory: lower the batch size ({str(error).splitlines()[0]})")
        return 0

    return wrapped


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1
