"""Applying a purifier to a set: its checkpoint, its device, what it sees and what it changed.

purify.py does it once, and a purifier that is made of others once for each of its parts.
"""

import dataclasses

from core import identity
from core.checkpoint import Checkpoint, describe, history
from core.commands import COMMANDS, Command
from core.device import kind_of
from core.distributed import note
from core.errors import UserError
from core.imageset import ImageSet
from core.methods import fact, find_method, returned, takes_any_size
from core.perturbation import measure
from core.request import Request, blamed
from core.run import Run
from core.splits import identified, share_images


def open_run(request: Request, poisoned: ImageSet, checkpoint: Checkpoint | None) -> Run:
    """The run of this purification. Seed and (on the same kind of device) precision are those of
    the checkpoint, unless told otherwise."""
    trained, device = None, request.device
    if checkpoint is not None:
        trained = checkpoint.fingerprint, checkpoint.meta["seed"]
        same_kind = checkpoint.meta["device"]["name"].startswith(kind_of(device))
        if device.precision == "auto" and same_kind:
            device = dataclasses.replace(device, precision=checkpoint.meta["precision"])
    return request.open(identity.purify(request, poisoned, trained), device)


def apply(request: Request, poisoned: ImageSet, checkpoint: Checkpoint | None, run: Run) -> None:
    """Purify inside the run, which it finishes. Labels reach methods that need them alone."""
    run.checkpoint, run.parts = checkpoint, request.parts
    seen = poisoned if request.needs_labels else poisoned.without_labels()
    purified = returned(request.module.purify(seen, request.config, run), ImageSet,
                        request.module)
    found = measure(poisoned, purified)
    run.log_once("change", **found.as_record())
    dataclasses.replace(purified, labels=poisoned.labels).save(run)
    run.say(f"{request.method} changed: {found.in_words()}")


# --- a part of another purifier --------------------------------------------------------------


def apply_part(key: str, poisoned: ImageSet, run: Run) -> ImageSet:
    """What part `key` of the run's purifier makes of a set, as its own line would. It is finished
    work in the run's state folder, resumable by itself."""
    part, folder = run.parts[key], run.work / "state" / key
    part = dataclasses.replace(
        part, settings=dataclasses.replace(part.settings, out=str(folder)),
        device=dataclasses.replace(run.device.as_settings(), precision=part.device.precision))
    with blamed(f"{run.job.method}.{key}", part):
        checkpoint = find_checkpoint(part, poisoned)
        with open_run(part, poisoned, checkpoint) as its_run:
            if not its_run.done:
                apply(part, poisoned, checkpoint, its_run)
        its_run.stop_if_interrupted()           # it is whole; the outer run heard nothing
        done = ImageSet.load(folder)
    meta = {name: done.meta[name] for name in ("fingerprint", "lineage", "digests")}
    return dataclasses.replace(poisoned, images=done.images, meta={**poisoned.meta, **meta})


# --- checkpoints -----------------------------------------------------------------------------


def trained_by(request: Request) -> Command:
    """The command that makes a trained purifier's checkpoints."""
    return COMMANDS[fact(find_method("purifiers", request.trained_as), "TRAINED_BY")]


def require_checkpoints(request: Request) -> None:
    """Raise UserError unless every part that is trained names a checkpoint, and for one that is
    named to what is not trained."""
    refuse_untrained(request)
    for key, part in request.parts.items():
        with blamed(f"{request.method}.{key}", part):
            if part.trained_as and not part.settings.checkpoint:
                raise untrained(part)
            require_checkpoints(part)


def refuse_untrained(request: Request) -> None:
    """Raise UserError for a checkpoint that is named to what is not trained."""
    if request.settings.checkpoint and not request.trained_as:
        raise UserError(f"checkpoint: {request.method} is not trained and takes none")


def untrained(request: Request) -> UserError:
    return UserError(f"checkpoint: {request.method} is trained; make one with "
                     f"{trained_by(request).line} and name its folder with checkpoint=")


def find_checkpoint(request: Request, poisoned: ImageSet) -> Checkpoint | None:
    """The checkpoint of a trained purifier, checked against the set; None for the others. Those of
    its parts are checked too, before any of them begins. Says what the checkpoint learned from, if
    that is not what one would expect."""
    checkpoint = fitting(request, poisoned)
    if checkpoint is None:
        return None
    given, saw = request.settings.checkpoint, checkpoint.meta["trained_on"]
    training = (checkpoint.meta.get("lineage") or [{}])[-1]
    if training.get("settings", {}).get("smoke") and not request.smoke:
        note(f"{given} was trained with --smoke: it shows that the lines run, and purifies nothing")
    if not trained_by(request).takes_clean:             # learns from the poisoned set itself
        if saw["fingerprint"] != poisoned.fingerprint:
            note(f"{given} was trained on {describe(saw)}, another set than this one")
        elif saw["shape"][0] < len(poisoned):
            note(f"{given} was trained on the first {saw['shape'][0]} of these {len(poisoned)} "
                 "images (--limit)")
        return checkpoint
    for one in history(saw):
        if share_images(identified(one), identified(poisoned.meta)):
            note(f"{given} was trained on {describe(saw)}: " + (
                "if those are poisoned, it learned the poison too" if one["lineage"] else
                "clean originals of these images, which is fair for AVATAR only"))
    return checkpoint


def fitting(request: Request, poisoned: ImageSet) -> Checkpoint | None:
    """The checkpoint that a request names. Raises UserError if it, or one of a part, is missing or
    not for this method and such images."""
    given, trainer = request.settings.checkpoint, request.trained_as
    refuse_untrained(request)
    for key, part in request.parts.items():
        with blamed(f"{request.method}.{key}", part):
            checkpoint = fitting(part, poisoned)
            if checkpoint is not None and hasattr(part.module, "check"):
                part.module.check(part.config, checkpoint, poisoned.image_shape)
    if trainer is None:
        return None
    if not given:
        raise untrained(request)
    checkpoint = Checkpoint.load(given)
    checkpoint.check_fits(poisoned, trainer, classes=request.needs_labels,
                          any_size=takes_any_size(request.module, request.config))
    return checkpoint
