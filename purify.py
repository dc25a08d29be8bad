"""Purify a poisoned set.

    python purify.py configs/purifiers/jpeg.yaml data=runs/poisons/NAME
    python purify.py configs/purifiers/dvae.yaml data=SET checkpoint=runs/checkpoints/NAME
    python purify.py configs/purifiers/chain.yaml data=SET

Trained purifiers take their seed and (on the same kind of device) precision from the checkpoint
unless told otherwise; with --smoke too they need one, made by `train_vae.py --smoke` on the same
data or by `train_ddpm.py --smoke`. Under torchrun the processes share the images. Prints what
changed to stderr, and the purified set's folder to stdout.
"""

import sys

from core import config
from core.applying import apply, find_checkpoint, open_run
from core.command import command
from core.distributed import note
from core.imageset import ImageSet
from core.origins import note_other_test, poisoned_here, remember_test
from core.request import Request, parse


@command
def main(argv: list[str] | None = None) -> None:
    request = parse(argv, __doc__, "purify")
    poisoned = request.load_data()
    checkpoint = find_checkpoint(request, poisoned)
    run = open_run(request, poisoned, checkpoint)
    if request.plan(run, {"poisoned set": f"{poisoned.meta['name']}, {len(poisoned)} rows",
                          **{f"{request.method}.{key}": in_words(part)
                             for key, part in request.parts.items()}}):
        return
    warn_if_clean(poisoned)
    with run:
        if not run.done:
            apply(request, remember_test(poisoned, request.data), checkpoint, run)
    note_other_test(ImageSet.load(run.out), request.data)
    print(run.out)


def in_words(part: Request) -> str:
    """A part of a purifier that is made of others: 'jpeg: quality 10', or 'chain: gray > jpeg'."""
    if part.parts:
        inner = " > ".join(in_words(one) for one in part.parts.values())
        return f"{part.preset}: {inner}"
    keys = ", ".join(f"{key} {value}" for key, value in config.plain(part.config).items())
    return part.preset + (f": {keys}" if keys else "")


def warn_if_clean(poisoned: ImageSet) -> None:
    """Purifying a set that nobody poisoned is mostly a mistake in a path."""
    if not poisoned_here(poisoned):
        steps = [step["method"] for step in poisoned.meta["lineage"]]
        note(f"nothing here poisoned {poisoned.meta['name']} "
             f"(lineage: {' + '.join(steps) or 'none'})")


if __name__ == "__main__":
    sys.exit(main())
