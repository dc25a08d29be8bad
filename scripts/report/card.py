"""A record's card: its curve, its lineage, the line that made it."""

import shlex
from collections.abc import Callable
from pathlib import Path

from core.checkpoint import describe
from core.config import plain
from core.device import DeviceSettings
from core.imageset import title
from core.manual import typed
from core.methods import find_method, is_method
from scripts.report.curves import CARD, curve
from scripts.report.elements import Markup, join, link, tag
from scripts.report.gather import Kept, methods_of
from scripts.tables import published, wording
from scripts.tables.wording import NAMES

FILES = ("record.json", "config.yaml", "log.jsonl")     # meta.json beside them has their digests
SAID = {"dataset", "attack", "defence", "accuracy", "sd", "source", "table", "named"}
SHOWN = ("date", "seed", "protocol", "epochs", "best_epoch", "kept_epoch")


def card(kept: Kept, name: str, back: str, known: list[dict],
         path_to: Callable[[Path], str]) -> Markup:
    """All of one record; shown once its number was clicked. `name` and `back` are ids: its own, and
    where it closes to; `known` are published numbers of its cell."""
    record, place = kept.record, kept.place
    attack, _ = methods_of(record)
    steps = [] if attack else ["clean"]
    steps += [NAMES.get(title(step), NAMES.get(step["method"], title(step)))
             for step in record["train"]["lineage"]]
    return tag(
        "article", link(f"#{back}", "close", class_="close"),
        tag("h3", f"{' > '.join(steps)}: {100 * record['accuracy_last']:.1f} %"),
        tag("p", f"Clean test accuracy after {wording.after(record)}; best "
            f"{100 * record['accuracy_best']:.1f} % (an oracle), on its own training set "
            f"{100 * record['train_accuracy']:.1f} %."),
        tag("p", "Published: ", sourced(known)) if known else None,
        curve(*points(kept), *CARD, labels=True),
        tag("h4", "Lineage"), lineage(record),
        tag("h4", "Command line"), tag("pre", kept.line),
        tag("h4", "Record"), tag("pre", f"python scripts/list.py cite {shlex.quote(str(place))}"),
        facts(record),
        tag("p", join((link(path_to(place / file), file) for file in FILES
                       if (place / file).exists()), " · ")), id=name)


def lineage(record: dict) -> Markup:
    """From the clean images to the network, a step each."""
    train = record["train"]
    root = train["root"]
    split = f", {root['split']}" if "split" in root else ""
    items = [tag("li", f"{train['rows']:,} images of {root['data']}{split}",
                 digest(train.get("root_digest")))]
    for step in train["lineage"]:
        seen = f"; its network learned from {describe(step['trained_on'])}" \
            if step.get("trained_on") else ""
        seconds = f"; {step['seconds']:,.0f} s" if "seconds" in step else ""
        items.append(tag(
            "li", tag("b", NAMES.get(step["method"], step["method"])),
            f", seed {step['seed']}, version {step['version']}{seconds}{seen}",
            settings({**step["config"], **step["settings"]}), digest(step["fingerprint"])))
    learner = record["learner"]
    items.append(tag("li", tag("b", NAMES.get(learner, learner)),
                     f" training, {record['protocol']}, seed {record['seed']}; "
                     f"{record['seconds']:,.0f} s; the defence saw {wording.saw(record)}; apart "
                     "from the defaults", settings({**unusual(record), **record["settings"]})))
    return tag("ol", *items)


def unusual(record: dict) -> dict:
    """What of a record's config is not the learner's default; all, of a learner that is no more."""
    learner, config = record["learner"], record["config"]
    if not is_method("learners", learner):
        return config
    usual = plain(find_method("learners", learner).Config())
    return {key: value for key, value in config.items() if value != usual.get(key)}


def settings(values: dict) -> Markup | None:
    if not values:
        return None
    return tag("code", " ".join(f"{key}={value_of(value)}" for key, value in values.items()))


def value_of(value: object) -> str:
    return str(value) if isinstance(value, list | dict) else typed(value)


def digest(value: str | None) -> Markup | None:
    return tag("code", value[:16]) if value else None


def facts(record: dict) -> Markup:
    """What else the record says: machine, versions, speed."""
    changed = ", with changes that were not committed" if record.get("dirty") else ""
    found = {
        "commit": record["commit"] + changed if record.get("commit") else None,
        **{key: record.get(key) for key in SHOWN},
        "fingerprint": record["fingerprint"][:16],
        "overrides": settings(record.get("overrides") or {}),
        "images a second": f"{record['images_per_second']:,.0f}",
        "versions": settings(record.get("versions", {})),
        "device": settings({key: value for key, value in record.get("device", {}).items()
                            if value != getattr(DeviceSettings, key, None) and value is not False})}
    return tag("dl", *(join([tag("dt", key.replace("_", " ")), tag("dd", value)])
                       for key, value in found.items() if value is not None))


def points(kept: Kept) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(epoch, accuracy) on the set itself, and on clean test images."""
    trained = [(line["at"] + 1, line["train_accuracy"]) for line in kept.log
               if all(isinstance(line.get(key), int | float) for key in ("at", "train_accuracy"))]
    return trained, [(epoch, accuracy) for epoch, accuracy in kept.record["curve"]]


def sourced(facts: list[dict]) -> Markup:
    return join((tag("span", published.in_words(fact), title=where(fact)) for fact in facts), "; ")


def where(fact: dict) -> str:
    """What results/reported.csv says of a published number, beside its row and `in_words`."""
    return ", ".join(f"{key}: {value}" for key, value in fact.items() if key not in SAID)
