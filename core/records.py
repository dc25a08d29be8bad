"""Records: what a run measured, where its data came from, and on which machine."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

from core import files, shapes
from core.artefact import again, check_shape, is_partial, read_meta, verify
from core.checkpoint import learned_from, save_weights
from core.errors import UserError
from core.imageset import ImageSet, title
from core.manual import typed
from core.methods import fact, find_method, is_method
from core.names import name_at
from core.run import Run
from core.training import Result
from core.workfolder import versions

COMMITTED = Path("results")     # records kept in git; they count as done


def write(run: Run, result: Result, train: ImageSet, test: ImageSet, *, code: dict,
          overrides: dict | None) -> None:
    """Finish a run with its record.json. Accuracies in [0, 1]. `code`: core.commit's; `overrides`:
    keys of the learner that are not as its protocol says, None where nobody can tell."""
    told = [] if run.clean is None else [
        learned_from(run.clean, **{key: run.clean.meta[key] for key in ("rows", "originals")})]
    record = {
        "accuracy_last": result.last, "accuracy_best": result.best,
        "best_epoch": result.best_epoch, "best_is_oracle": True,
        **{field.name: getattr(result, field.name) for field in dataclasses.fields(result)
           if field.name not in ("last", "best", "best_epoch", "saw", "network")},
        "learner": run.job.method, "protocol": run.job.preset, "config": run.job.config,
        "overrides": overrides, "seed": run.seed, "fingerprint": run.job.fingerprint,
        "settings": run.job.settings,
        "train": {"name": train.meta["name"], "fingerprint": train.fingerprint,
                  "rows": len(train), "shape": list(train.images.shape),
                  "num_classes": train.num_classes, "root": train.meta["root"],
                  "root_digest": train.meta.get("root_digest"),
                  # two processors make two sets of one fingerprint
                  "images_sha256": train.digests.get("images.npy"),
                  "lineage": train.meta["lineage"]},
        "test": {"root": test.meta["root"], "root_digest": test.meta.get("root_digest"),
                 "rows": len(test), "fingerprint": test.fingerprint},
        "purifier_trained_on": [step["trained_on"] for step in train.meta["lineage"]
                                if step.get("trained_on")],
        "learner_saw": [*told, *result.saw],
        "versions": versions(), "device": run.device.as_record(), **code,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if run.world.leads:
        files.write_json(run.work / "record.json", record)
    if run.job.settings.get("keep_network"):
        save_weights(result.network, run, "network")
    run.finish({"kind": "record"})


def load(path: str | Path) -> dict:
    """A finished record, by its folder or its file. Raises UserError if it is missing, damaged or
    edited."""
    path = Path(path)
    path = path.parent if path.name == "record.json" else path
    meta = read_meta(path, "record")
    verify(path / "record.json", meta)
    try:
        record = files.read_json(path / "record.json")
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path / 'record.json'} is damaged; {again(path)}")
    check_shape(record, shapes.RECORD, path / "record.json")
    return record


def folders(below: str | Path) -> list[Path]:
    """Those of finished records, whole or damaged, in path order."""
    return [path.parent for path in sorted(Path(below).rglob("record.json"))
            if not is_partial(path.relative_to(below))]


def whole(*below: str | Path) -> Iterator[tuple[Path, dict]]:
    """Folder and record of each one below these folders that is whole, in path order."""
    for folder in itertools.chain.from_iterable(map(folders, below)):
        with contextlib.suppress(UserError, OSError):
            yield folder, load(folder)


def committed() -> dict[str, Path]:
    """Fingerprint -> folder of the records kept in git. An edited or damaged one does not count."""
    return {record["fingerprint"]: folder for folder, record in whole(COMMITTED)}


def lineage_text(record: dict) -> str:
    """'digits > lsp (fraction=0.5) > dvae', and the learner where its numbers need a label:
    'digits > lsp > adversarial_eps4 (epsilon=4/255, norm=linf)'"""
    texts = [name_at(record["train"]["root"]["data"]),
             *(labelled(title(step), ", ".join(parts_of(step)))
               for step in record["train"]["lineage"])]
    beside = label(record["learner"], record["config"])
    return " > ".join([*texts, *([labelled(record["protocol"], beside)] if beside else [])])


def parts_of(step: dict) -> list[str]:
    """'fraction=0.5', 'limit=500': that a step of a lineage made only a part of its set."""
    return [f"{key}={typed(value)}" for key, value in step.get("settings", {}).items()
            if (key, value) != ("craft_on", "all")]


def label(learner: str, values: dict) -> str:
    """'epsilon=4/255, norm=linf': the values, of a record's or job's config, of the keys that the
    learner's LABEL names; '' for most."""
    if not is_method("learners", learner):          # of a record made before it was renamed
        return ""
    module = find_method("learners", learner)
    return ", ".join(f"{key}={typed(values.get(key, getattr(module.Config, key)))}"
                     for key in fact(module, "LABEL"))


def labelled(name: str, beside: str) -> str:
    """'adversarial (epsilon=4/255, norm=linf)'; a name alone where nothing stands beside it."""
    return f"{name} ({beside})" if beside else name
