"""Make a poisoned set from a clean one.

    python -m poisons configs/poisons/lsp.yaml data=cifar10 [lsp.radius=1.0 ...]
    python -m poisons configs/poisons/em.yaml fraction=0.2 [craft_on=part]

Prints the verified norm after rounding, how many pixels changed and a linear probe on the
perturbation to stderr, and the set's folder to stdout. With `fraction`, a seeded part of the images
is poisoned and the rest stays clean; the attack itself is an artefact of its own under runs/, which
every fraction of it shares (craft_on=all) or which saw that part alone (craft_on=part).
"""

import dataclasses
import hashlib
import sys

if not __package__:             # `python poisons`: its modules would hide those that torch loads
    sys.exit("error: write python -m poisons")

import numpy as np
import torch

from core import files, identity
from core.command import command
from core.distributed import note
from core.errors import UserError
from core.imageset import ImageSet
from core.methods import returned
from core.origins import note_other_test, remember_test
from core.perturbation import check_bound, linear_probe, measure
from core.request import Request, parse
from core.run import Run
from core.splits import rows_split


@command
def main(argv: list[str] | None = None) -> None:
    request = parse(argv, __doc__, "poison")
    clean = request.load_data()
    if int(len(clean) * request.settings.fraction) == 0:
        raise UserError(f"fraction: {request.settings.fraction:g} of {len(clean)} rows is none")
    run = request.open(identity.poison(request, clean))
    if request.plan(run, {"clean set": f"{clean.meta['name']}, {len(clean)} rows"}):
        return
    if clean.meta["lineage"]:
        note(f"{clean.meta['name']} is not clean (lineage: {' + '.join(clean.made_by)}): the noise "
             "goes on top of what that did")
    with run:
        if not run.done:
            clean = remember_test(clean, request.data)
            make = poison_part if request.settings.fraction < 1 else poison_all
            make(request, clean, run).save(run)
    note_other_test(ImageSet.load(run.out), request.data)
    print(run.out)


def poison_all(request: Request, clean: ImageSet, run: Run) -> ImageSet:
    poisoned = returned(request.module.poison(clean, request.config, run), ImageSet,
                        request.module)
    inspect(request, clean, poisoned, run)
    return poisoned


def poison_part(request: Request, clean: ImageSet, run: Run) -> ImageSet:
    """Clean images with `fraction` of the rows poisoned; poisoned_rows.npy has their numbers."""
    chosen = chosen_rows(len(clean), request.settings.fraction, run.seed)
    source, row_of = clean, np.arange(len(clean))
    if request.settings.craft_on == "part":
        digest = hashlib.sha256(chosen.tobytes()).hexdigest()
        source = clean.subset(chosen, f"rows:{digest}", root=root_of_part(clean, chosen, request))
        row_of[chosen] = np.arange(len(chosen))
    settings = dataclasses.replace(request.settings, fraction=1.0, craft_on="all", out=None)
    whole = dataclasses.replace(request, settings=settings, wait=True)
    with whole.open(identity.poison(whole, source)) as attack:
        if not attack.done:
            poison_all(whole, source, attack).save(attack)
    attack.stop_if_interrupted()                # it is whole; the outer run heard nothing
    crafted = ImageSet.load(attack.out).images

    poisoned = np.zeros(len(clean), bool)
    poisoned[chosen] = True

    def pixels(images: torch.Tensor, rows: slice) -> torch.Tensor:
        here = poisoned[rows]
        images[torch.from_numpy(here)] = torch.from_numpy(crafted[row_of[rows][here]])
        return images

    mixed = clean.map_pixels(pixels, run)
    if run.world.leads:
        files.write_array(run.work / "poisoned_rows.npy", chosen)
    inspect(request, clean, mixed, run)
    return mixed


def root_of_part(clean: ImageSet, chosen: np.ndarray, request: Request) -> dict:
    """How to find these rows of the clean set again: one split, so not of what is a part already
    (there the labels will tell)."""
    root = clean.meta["root"]
    if request.limit is not None or root.get("split", "train") != "train":
        return root
    return {**root, "split": rows_split(chosen, len(clean))}


def chosen_rows(rows: int, fraction: float, seed: int) -> np.ndarray:
    """The poisoned rows, ascending, int64: drawn as D-VAE's dataset.py does."""
    return np.sort(np.random.RandomState(seed).choice(rows, int(rows * fraction), replace=False))


def inspect(request: Request, clean: ImageSet, poisoned: ImageSet, run: Run) -> None:
    """Check the poison against its budget after rounding; log and print what it did."""
    found = measure(clean, poisoned)
    height, width = clean.image_shape
    if found.changed_rows == 0:
        raise UserError(f"{run.out}: no pixel changed: the budget is below a grey level, or the "
                        "loss has no gradient here")
    check_bound(request.module.bound(request.config), found, 3 * height * width,
                getattr(request.config, "rounding", "round"))
    probe = linear_probe(clean, poisoned, run.rng("probe"))
    run.log_once("perturbation", **found.as_record(), linear_probe=probe)
    run.say(found.in_words())
    run.say("linear probe on the perturbation: " + (
        "nothing to tell apart" if probe is None else
        f"{probe:.1%} held-out (chance {1 / clean.num_classes:.1%})"))


if __name__ == "__main__":
    sys.exit(main())
