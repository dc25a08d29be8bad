"""Records: what a run measured, where its data came from, and on which machine."""

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path

from core import files, shapes
from core.artefact import again, check_shape, read_meta, verify
from core.errors import UserError
from core.imageset import ImageSet, title
from core.run import Run
from core.training import Result
from core.workfolder import versions

COMMITTED = Path("results")     # records kept in git; they count as done


def write(run: Run, result: Result, train: ImageSet, test: ImageSet) -> dict:
    """Finish a run with its record.json. Accuracies in [0, 1]."""
    record = {
        "accuracy_last": result.last, "accuracy_best": result.best,
        "best_epoch": result.best_epoch, "best_is_oracle": True,
        **{key: value for key, value in dataclasses.asdict(result).items()
           if key not in ("last", "best", "best_epoch")},
        "learner": run.job.method, "protocol": run.job.preset, "config": run.job.config,
        "seed": run.seed, "fingerprint": run.job.fingerprint, "settings": run.job.settings,
        "train": {"name": train.meta["name"], "fingerprint": train.fingerprint,
                  "rows": len(train), "root": train.meta["root"],
                  "lineage": train.meta["lineage"]},
        "test": {"root": test.meta["root"], "rows": len(test), "fingerprint": test.fingerprint},
        "purifier_trained_on": [step["trained_on"] for step in train.meta["lineage"]
                                if step.get("trained_on")],
        "versions": versions(), "device": run.device.as_record(),
    }
    files.write_json(run.work / "record.json", record)
    run.finish({"kind": "record"})
    return record


def load(path: str | Path) -> dict:
    """A finished record. Raises UserError if it is missing, damaged or edited."""
    path = Path(path)
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


def find(folder: str | Path) -> Iterator[tuple[Path, dict]]:
    """Every finished record below a folder, in path order. Raises UserError if one is damaged."""
    for path in sorted(Path(folder).rglob("record.json")):
        if not any(part.endswith(".partial") for part in path.relative_to(folder).parts):
            yield path.parent, load(path.parent)


def committed() -> dict[str, Path]:
    """Fingerprint -> folder of the records kept in git. An edited or damaged one does not count."""
    found = {}
    for path in sorted(COMMITTED.rglob("record.json")):
        with contextlib.suppress(UserError, KeyError):
            found[load(path.parent)["fingerprint"]] = path.parent
    return found


def lineage_text(record: dict) -> str:
    """'digits > lsp > dvae'"""
    return " > ".join([record["train"]["root"]["data"].rsplit("/", 1)[-1],
                       *(title(step) for step in record["train"]["lineage"])])


def spread(values: list[float]) -> str:
    """'95.1 ± 0.4 (3)', '95.1' for a single run, '-' where there is none yet."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)})"
