"""Train a classifier on a set and report its accuracy on the clean test set.

    python evaluate.py configs/learners/em60.yaml data=runs/purified/NAME [standard.width=16 ...]

A learner that needs clean labelled images takes them from `clean`, by default the last 5,000
training images of the data set behind the set. Prints what was measured to stderr, and accuracy and
record folder to stdout.
"""

import sys

from core import commit, datasets, distributed, identity, origins, records
from core.command import command
from core.methods import returned
from core.request import parse
from core.training import Result
from core.workfolder import otherwise


@command
def main(argv: list[str] | None = None) -> None:
    request = parse(argv, __doc__, "evaluate")
    train = request.load_data()
    with distributed.world().leader_first():
        test = origins.load_test(train, request.data)
        clean = request.load_clean(train, test)
    origins.note_doubts(train, test)
    if clean is not None and request.settings.clean is None:
        origins.note_own(train, "name clean ones by clean=")
    run = request.open(identity.record(request, train, test, clean=clean))
    sets = {"train": train, "test": test, **({} if clean is None else {"clean": clean})}
    committed = None if request.settings.out else records.committed().get(run.job.fingerprint)
    if request.plan(run, {role: datasets.describe(images) for role, images in sets.items()},
                    committed):
        return
    if committed is not None:
        run.say(f"{committed} is already done{otherwise(committed, request.device)}")
        return report(records.load(committed), committed)
    with run:
        if not run.done:
            run.clean = clean
            if clean is not None:
                run.say(f"clean images: {len(clean)} of {clean.meta['name']}, rows "
                        f"{clean.meta['rows']}; {clean.meta['originals']} are originals of the set")
            code, overrides = commit.of_code(), request.overrides   # before others edit them
            result = returned(request.module.fit(train, test, request.config, run), Result,
                              request.module)
            records.write(run, result, train, test, code=code, overrides=overrides)
    report(records.load(run.out), run.out)


def report(record: dict, out) -> None:
    """Print a record: its accuracies to stderr, the headline and the folder to stdout."""
    last, best = record["accuracy_last"], record["accuracy_best"]
    kept = record.get("kept_epoch")
    whose = f"epoch {kept}, kept" if kept else "last epoch"
    rate = record["images_per_second"]
    distributed.say(f"{records.lineage_text(record)}: "
                    f"clean test accuracy {last:.2%} ({whose}), "
                    f"{best:.2%} (best, epoch {record['best_epoch']}: an oracle's choice); "
                    f"{record['train_accuracy']:.2%} on the training set; "
                    + (f"{record['seconds']:.0f} s at {rate:.0f} images/s" if rate else
                       "too short to be timed"))
    print(f"{last:.4f} {out}")


if __name__ == "__main__":
    sys.exit(main())
