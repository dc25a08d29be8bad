"""Make a poisoned set from a clean one.

    python -m poisons configs/poisons/lsp.yaml data=cifar10 [lsp.radius=1.0 ...]

Prints the verified norm after rounding, how many pixels changed and a linear probe on the
perturbation to stderr, and the set's folder to stdout.
"""

import sys

from core.command import command, parse
from core.imageset import ImageSet
from core.perturbation import check_bound, linear_probe, measure


@command
def main(argv: list[str] | None = None) -> None:
    request = parse(argv, __doc__, "poisons", "python -m poisons")
    attack, config = request.module, request.config
    clean = request.load_data()
    run = request.open("poisons", f"{request.preset}-{clean.meta['name']}",
                       {"data": clean.fingerprint})
    if request.plan(run, {"clean set": f"{clean.meta['name']}, {len(clean)} rows"}):
        return
    with run:
        if not run.done:
            poisoned = attack.poison(clean, config, run)
            found = measure(clean, poisoned)
            height, width = clean.image_shape
            check_bound(attack.bound(config), found, 3 * height * width,
                        getattr(config, "rounding", "round"))
            probe = linear_probe(clean, poisoned, run.rng("probe"))
            run.note("perturbation", **{**vars(found), "psnr": min(found.psnr, 999.0)},
                     linear_probe=probe)
            poisoned.save(run)
            run.say(found.line())
            run.say("linear probe on the perturbation: " + (
                "too few rows" if probe is None else
                f"{probe:.1%} held-out (chance {1 / clean.num_classes:.1%})"))
    ImageSet.load(run.out)
    print(run.out)


if __name__ == "__main__":
    sys.exit(main())
