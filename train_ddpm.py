"""Train a DDPM, the prior of AVATAR and JCDP, on images that nobody poisoned.

    python train_ddpm.py configs/purifiers/ddpm.yaml data=cifar10 split=test
    torchrun --nproc_per_node 8 train_ddpm.py configs/purifiers/ddpm.yaml data=cifar10 split=test

Which images it saw is in the checkpoint and in every record after it: never train on the clean
originals of the set to purify (split=test, split=reference, or another data set). Several processes
share the same global batch. Prints the checkpoint's folder to stdout.
"""

import sys

from core import checkpoint, datasets, identity
from core.command import command
from core.request import parse


@command
def main(argv: list[str] | None = None) -> None:
    request = parse(argv, __doc__, "train_ddpm")
    method, config = request.module, request.train_config
    images = request.load_data()
    run = request.open(identity.train(request, images), section={"train": config})
    if request.plan(run, {"training images": f"{len(images)} {datasets.describe(images)}"}):
        return
    with run:
        if not run.done:
            run.say(f"training on {checkpoint.describe(checkpoint.trained_on(images))}")
            before = method.train(images, config, run)
            checkpoint.finish(run, images, before=before)
    checkpoint.Checkpoint.load(run.out)
    print(run.out)


if __name__ == "__main__":
    sys.exit(main())
