"""Train a VAE or auto-encoder to purify, on the poisoned set: nothing else, no clean image.

    python train_vae.py configs/purifiers/dvae.yaml data=runs/poisons/NAME [dvae.train.epochs=20]

Each stage trains a fresh network on the images as the stage before left them: two for D-VAE, one
for the others. Prints the checkpoint's folder to stdout.
"""

import sys

from core import checkpoint, datasets, files, identity
from core.command import command
from core.request import parse


@command
def main(argv: list[str] | None = None) -> None:
    request = parse(argv, __doc__, "train_vae")
    method, config = request.module, request.train_config
    poisoned = request.load_data()
    run = request.open(identity.train(request, poisoned), section={"train": config})
    if request.plan(run, {"poisoned set": f"{len(poisoned)} {datasets.describe(poisoned)}"}):
        return
    with run:
        if not run.done:
            images, stage_sets = poisoned, []
            for number, stage in enumerate(config.stages, 1):
                run.say(f"stage {number} of {len(config.stages)}: {stage}")
                model = method.train_stage(images, number, stage, config, run)
                if number < len(config.stages):
                    images = method.apply_stage(images, model, number, stage.output, config, run)
                    stage_sets.append(files.sha256(run.work / f"state/stage{number}-set.npy"))
            checkpoint.finish(run, poisoned, stage_sets=stage_sets)
    checkpoint.Checkpoint.load(run.out)
    print(run.out)


if __name__ == "__main__":
    sys.exit(main())
