"""A record as a sentence that cites its number, and the BibTeX of it and of its methods."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from core import ROOT, config, records
from core.imageset import title
from core.manual import typed
from core.methods import find_method, is_method, trained_as
from core.names import name_at, printable
from scripts.tables import wording
from scripts.tables.formats import latex_text
from scripts.tables.wording import NAMES, name_of

SHOWN = 8               # hex digits of a fingerprint, as in the names of folders


def text(folder: Path) -> str:
    """The sentence, then BibTeX: of the record, of this repository's two papers' and the methods'
    entries in docs/references.bib. Raises UserError if there is no whole record."""
    record = records.load(folder)
    return "\n\n".join([printable(sentence(record)), entry(record), *of_methods(record)])


def sentence(record: dict) -> str:
    """'A resnet18 of width 16, trained for 12 epochs (protocol cpu12, seed 0) on 10,000 images of
    cifar10-train poisoned by LSP and purified by D-VAE (latent=mean), classifies 65.6 % of the
    10,000 test images of cifar10-test.npz correctly after its last epoch (one run), where the
    defence saw the poisoned set; measured ...'"""
    train, epochs = record["train"], record["epochs"]
    network = f"A {wording.network_text(record['config'])}"
    way = "" if record["learner"] == "standard" else f" by {labelled(record)}"
    saw = wording.saw(record)
    told = "" if saw == "nothing" else f", where the defence saw {saw}"
    return (f"{network}, trained for {epochs} epoch{'s' * (epochs != 1)}{way} (protocol "
            f"{wording.protocol_text(record)}, seed {record['seed']}) on {train['rows']:,} images "
            f"of {train['name']}{made(record)}, classifies {100 * record['accuracy_last']:.1f} % "
            f"of the {record['test']['rows']:,} test images of {test_of(record)} correctly after "
            f"{wording.after(record)} (one run){told}; {measured(record)}.")


def made(record: dict) -> str:
    """' poisoned by EM and purified by JPEG and D-VAE'; ', clean'."""
    steps = record["train"]["lineage"]
    purifiers = [made_by(step) for step in steps if is_method("purifiers", step["method"])]
    poisons = [made_by(step) for step in steps if not is_method("purifiers", step["method"])]
    parts = [f"{verb} by {', then '.join(names)}" for verb, names in
             (("poisoned", poisons), ("purified", purifiers)) if names]
    return f" {' and '.join(parts)}" if parts else ", clean"


def made_by(step: dict) -> str:
    """'EM (epsilon=16/255)', 'D-VAE (train.epochs=15)': a step of a lineage, with the keys that are
    not at the method's defaults, which are its source's for its first data set, and what part of a
    set it made; of a purifier that was trained with the keys of its training, as far as the record
    has them."""
    room = "purifiers" if is_method("purifiers", step["method"]) else "poisons"
    if not is_method(room, step["method"]):             # an import, or what has another name now
        return name_of(title(step))
    module = find_method(room, step["method"])
    found = [*changes(step["config"], config.plain(module.Config())), *records.parts_of(step)]
    trained = (step.get("trained_on") or {}).get("config")
    if trained is not None:
        usual = find_method(room, trained_as(module)).TrainConfig()
        found += changes(trained, config.plain(usual), "train.")
    return records.labelled(name_of(title(step)), ", ".join(found))


def changes(values: dict, usual: dict, prefix: str = "") -> Iterator[str]:
    """'surrogate.width=16': the values that are not as usual, as they would be typed."""
    for key, value in values.items():
        before = usual.get(key, value)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from changes(value, before, f"{prefix}{key}.")
        elif value != before:
            yield f"{prefix}{key}={typed(value)}"


def test_of(record: dict) -> str:
    """'cifar10', 'cifar10-test.npz'"""
    return name_at(record["test"]["root"]["data"])


def labelled(record: dict) -> str:
    learner = record["learner"]
    return records.labelled(NAMES.get(learner, learner),
                            records.label(learner, record["config"]))


def measured(record: dict) -> str:
    """When, with which code and on what; what an older record does not say is said to be so."""
    date = record.get("date")
    when = f"measured on {date[:10]}" if date else "measured on a day that is not recorded"
    versions, device = record.get("versions", {}), record.get("device", {})
    on = device.get("hardware") or device.get("name")
    return (f"{when} with {wording.commit_text(record)} and torch "
            f"{versions.get('torch', '(unknown)')}" + (f" on {on}" if on else "")
            + f"; record {record['fingerprint'][:SHOWN]}")


# --- BibTeX ----------------------------------------------------------------------------------


def entry(record: dict) -> str:
    """A @misc of this record, with the title and authors of CITATION.cff."""
    software = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    authors = " and ".join(braced(author.get("name") or " ".join(
        (author["given-names"], author["family-names"]))) for author in software["authors"])
    accuracy = f"{100 * record['accuracy_last']:.1f} %"
    name = f"{records.lineage_text(record)}, {wording.protocol_text(record)}: {accuracy}"
    facts = {"title": f"{{{software['title']}}}: {latex_text(name)}", "author": authors,
             "year": record.get("date", "")[:4],
             "note": f"record {record['fingerprint']}, {wording.commit_text(record, 40)}",
             "url": software.get("repository-code", "")}
    lines = [f"  {key:<6} = {{{value}}}" for key, value in facts.items() if value]
    return f"@misc{{record-{record['fingerprint'][:SHOWN]},\n" + ",\n".join(lines) + "\n}"


def braced(name: str) -> str:
    """A name that BibTeX does not take apart."""
    return f"{{{name}}}"


def of_methods(record: dict) -> list[str]:
    """The entries of references.bib whose comment names a method of the record: '% LSP: lsp'."""
    methods = {record["learner"], *(step["method"] for step in record["train"]["lineage"])}
    bib = (ROOT / "docs/references.bib").read_text("utf-8")
    entries = re.finditer(r"^% [^:\n]*: ([^\n]*)\n(@\w+\{.*?\n\})", bib, re.MULTILINE | re.DOTALL)
    return [found[2] for found in entries if methods.intersection(found[1].split(", "))]
