"""Purify a poisoned set.

    python purify.py configs/purifiers/jpeg.yaml data=runs/poisons/NAME
    python purify.py configs/purifiers/dvae.yaml data=SET checkpoint=runs/checkpoints/NAME

Trained purifiers take their seed and (on the same kind of device) precision from the checkpoint
unless told otherwise; with --smoke too they need one, made by `train_vae.py --smoke` on the same
data or by `train_ddpm.py --smoke`. Under torchrun the processes share the images. Prints what
changed to stderr, and the purified set's folder to stdout.
"""

import dataclasses
import sys

from core import identity
from core.checkpoint import Checkpoint, describe, history
from core.command import Request, command, parse
from core.commands import COMMANDS, Command
from core.datasets import remember_test, share_images
from core.device import kind_of
from core.distributed import note
from core.errors import UserError
from core.imageset import ImageSet
from core.methods import fact, find_method, is_method
from core.perturbation import measure


@command
def main(argv: list[str] | None = None) -> None:
    request = parse(argv, __doc__, "purify")
    poisoned = request.load_data()
    checkpoint, trained, device = find_checkpoint(request, poisoned), None, request.device
    if checkpoint is not None:
        trained = checkpoint.fingerprint, checkpoint.meta["seed"]
        same_kind = checkpoint.meta["device"]["name"].startswith(kind_of(device))
        if device.precision == "auto" and same_kind:
            device = dataclasses.replace(device, precision=checkpoint.meta["precision"])
    run = request.open(identity.purify(request, poisoned, trained), device)
    if request.plan(run, {"poisoned set": f"{poisoned.meta['name']}, {len(poisoned)} rows"}):
        return
    warn_if_clean(poisoned)
    with run:
        if not run.done:
            run.checkpoint = checkpoint
            poisoned = remember_test(poisoned, request.data)
            seen = poisoned if needs_labels(request) else poisoned.without_labels()
            purified = request.module.purify(seen, request.config, run)
            found = measure(poisoned, purified)
            run.note("change", **{**vars(found), "psnr": min(found.psnr, 999.0)})
            dataclasses.replace(purified, labels=poisoned.labels).save(run)
            run.say(f"{request.method} changed: {found.in_words()}")
    ImageSet.load(run.out)
    print(run.out)


def needs_labels(request: Request) -> bool:
    return fact(request.module, "NEEDS_LABELS")


def trained_by(request: Request) -> Command:
    """The command that makes a trained purifier's checkpoints."""
    return COMMANDS[fact(find_method("purifiers", request.trained_as), "TRAINED_BY")]


def find_checkpoint(request: Request, poisoned: ImageSet) -> Checkpoint | None:
    """The checkpoint of a trained purifier, checked against the set; None for the others."""
    given, trainer = request.settings.checkpoint, request.trained_as
    if trainer is None:
        if given:
            raise UserError(f"checkpoint: {request.method} is not trained and takes none")
        return None
    if not given:
        raise UserError(f"checkpoint: {request.method} is trained; make one with "
                        f"{trained_by(request).line} and name its folder with checkpoint=")
    checkpoint = Checkpoint.load(given)
    checkpoint.check_fits(poisoned, trainer, classes=needs_labels(request))
    saw = checkpoint.meta["trained_on"]
    training = (checkpoint.meta.get("lineage") or [{}])[-1]
    if training.get("settings", {}).get("smoke") and not request.smoke:
        note(f"{given} was trained with --smoke: it shows that the lines run, and purifies nothing")
    if not trained_by(request).takes_clean:             # learns from the poisoned set itself
        if saw["fingerprint"] != poisoned.fingerprint:
            note(f"{given} was trained on {describe(saw)}, another set than this one")
        return checkpoint
    for one in history(saw):
        roots = [{**meta["root"], "digest": meta.get("root_digest")}
                 for meta in (one, poisoned.meta)]
        if share_images(*roots):
            note(f"{given} was trained on {describe(saw)}: " + (
                "if those are poisoned, it learned the poison too" if one["lineage"] else
                "clean originals of these images, which is fair for AVATAR only"))
    return checkpoint


def warn_if_clean(poisoned: ImageSet) -> None:
    """Purifying a set that nobody poisoned is mostly a mistake in a path."""
    steps = [step["method"] for step in poisoned.meta["lineage"]]
    if all(is_method("purifiers", step) for step in steps):
        note(f"{poisoned.meta['name']} is not poisoned (lineage: {' + '.join(steps) or 'none'})")


if __name__ == "__main__":
    sys.exit(main())
