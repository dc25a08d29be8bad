"""Each command's job, from its request and the sets it reads.

The commands build their runs from these, and tables address artefacts with them before they exist.
"""

from collections.abc import Callable

from core import config
from core.errors import UserError
from core.imageset import ImageSet
from core.job import Job, digests_at, fingerprint_at
from core.methods import fact
from core.request import Request

Resolve = Callable[[str], str]      # path of an artefact -> its fingerprint


def poison(request: Request, clean: ImageSet, resolve: Resolve = fingerprint_at) -> Job:
    """The attack on all of `clean`, or on `fraction` of it."""
    settings, extra = request.settings, {}
    if settings.fraction < 1:
        extra = {"fraction": settings.fraction, "craft_on": settings.craft_on}
    return make(request, clean, {"data": clean.fingerprint}, request.config, resolve=resolve,
                extra=extra)


def train(request: Request, images: ImageSet, resolve: Resolve = fingerprint_at) -> Job:
    """Training a purifier on a set."""
    return make(request, images, {"data": images.fingerprint}, request.train_config,
                resolve=resolve)


def purify(request: Request, poisoned: ImageSet, checkpoint: tuple[str, int] | None,
           resolve: Resolve = fingerprint_at) -> Job:
    """`checkpoint`: fingerprint and seed of what a trained purifier applies."""
    inputs, seed = {"data": poisoned.fingerprint}, request.settings.seed
    digests = {"data": poisoned.digests}
    if checkpoint is not None:
        inputs["checkpoint"] = checkpoint[0]
        seed = checkpoint[1] if seed is None else seed
        if request.settings.checkpoint:
            digests["checkpoint"] = digests_at(request.settings.checkpoint)
    return make(request, poisoned, inputs, request.config, seed, resolve, digests=digests)


def record(request: Request, train: ImageSet, test: ImageSet,
           resolve: Resolve = fingerprint_at, clean: ImageSet | None = None) -> Job:
    """Training on a set, perhaps with the help of clean images, and scoring on another."""
    sets = {"train": train, "test": test, **({"clean": clean} if clean is not None else {})}
    extra = {"keep_network": True} if request.settings.keep_network else {}
    return make(request, train, {role: images.fingerprint for role, images in sets.items()},
                request.config, resolve=resolve, extra=extra,
                digests={role: images.digests for role, images in sets.items()})


def make(request: Request, images: ImageSet, inputs: dict[str, str], method_config,
         seed: int | None = None, resolve: Resolve = fingerprint_at, extra: dict | None = None,
         digests: dict | None = None) -> Job:
    """A method's PATHS are keys that name artefacts: they count by content, not by place. Where
    null is allowed, it names none. `digests`: of each input's files, by role."""
    counted, paths = what_counts(request, method_config)
    digests = {"data": images.digests} if digests is None else digests
    section = request.method + ".train" * request.command.trains
    for key, path in paths.items():
        if path == "":
            raise UserError(f"{section}.{key}: name a folder, or a file: `python scripts/list.py "
                            f"{request.method}` says of what")
        if path:
            try:
                inputs[key] = resolve(path)
            except UserError as error:
                raise UserError(f"{section}.{key}: {error}") from None
            digests[key] = digests_at(path)
    settings = {"smoke": True} if request.smoke else {}
    if request.limit is not None and request.limit <= len(images):      # else it left all rows
        settings["limit"] = request.limit
    if seed is None:
        seed = request.settings.seed or 0
    steps = [step["method"] for step in images.meta["lineage"]]
    name = "-".join([images.meta["name"], *steps, request.preset])
    return Job(request.command.kind, name, request.method, request.module.VERSION, counted, seed,
               inputs, request.preset, {**settings, **(extra or {})}, digests,
               tuple(request.steps) if request.parts else ())


def what_counts(request: Request, method_config) -> tuple[dict, dict[str, str | None]]:
    """What of a config counts as it stands, and the paths in it by key. Of a method that is made of
    others, each of these counts by its own config and version, and not by the name of its YAML."""
    counted = config.plain(method_config, identity=True)
    paths = {key: counted.pop(key, None) for key in fact(request.module, "PATHS")}
    for key in request.parts:
        counted.pop(key.partition(".")[0], None)
    for key, part in request.parts.items():
        inner, its_paths = what_counts(part, part.config)
        seed = part.settings.seed
        if not part.trained_as:         # then none is 0; else it is the checkpoint's
            seed = seed or None
        counted[key] = {"method": part.method, "version": part.module.VERSION, "config": inner,
                        "seed": seed}
        its_paths["checkpoint"] = part.settings.checkpoint
        paths |= {f"{key}.{name}": path for name, path in its_paths.items()}
    return counted, paths
