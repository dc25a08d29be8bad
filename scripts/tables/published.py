"""What others published, and which of it belongs beside a cell."""

import csv

from core import ROOT, methods

# docs/reported.md says what its columns are
REPORTED = ROOT / "results/reported.csv"


def read() -> list[dict]:
    """All of them: a dict each, without what its row leaves empty."""
    with open(REPORTED, newline="", encoding="utf-8") as file:
        facts = [{key: text for key, text in row.items() if text} for row in csv.DictReader(file)]
    return [{**fact, "accuracy": float(fact["accuracy"])} for fact in facts]


def beside(known: list[dict], dataset: str, attacks: tuple[str, ...], defences: tuple[str, ...], *,
           network: str = "resnet18", evaluated: str = "", source: str = ""
           ) -> tuple[dict | None, list[dict]]:
    """Of the `known` numbers, those of a cell, for such a network and way of measuring: the one
    beside it (from `source`, 'LE' or 'LE T3', if that has one, then from the attack's own paper,
    then from another) and all others. Those of further names than the first come last, and say
    theirs (`named`)."""
    found = [{**fact, **other_names(fact, attacks, defences)} for fact in known
             if fact["dataset"] == dataset and fact["attack"] in attacks
             and filed_under(fact) in defences and fact.get("eval", "") == evaluated
             and plainly(fact["arch"]) == plainly(network)]
    whose = source.partition(" ")[0]
    found.sort(key=lambda fact: ("named" in fact, fact["source"] != whose, not is_of(fact, source),
                                 fact["kind"] != "paper", fact["source"].lower() != attacks[0]))
    if found and "named" not in found[0] and (found[0]["source"] == whose
                                              or found[0]["kind"] == "paper"):
        return found[0], found[1:]
    return None, found


def is_of(fact: dict, source: str) -> bool:
    """Whether a number is of this source, or of this table of it."""
    return source in (fact["source"], f"{fact['source']} {fact['table']}")


def other_names(fact: dict, attacks: tuple[str, ...], defences: tuple[str, ...]
                ) -> dict[str, str]:
    """`named`: what a published number is filed under beside the cell's own names, if anything."""
    names = [name for name, own in ((fact["attack"], attacks), (filed_under(fact), defences))
             if name != own[0]]
    return {"named": ", ".join(names)} if names else {}


def conditions(learner: str, config: dict) -> dict[str, str]:
    """`network` and `evaluated` of `beside` for a learner with these values: what a published
    number has as its `arch` and its `eval`, '' for supervised training. Published probes saw clean
    images: one of released ones is beside none."""
    evaluated = ""
    if methods.is_method("learners", learner):
        evaluated = methods.fact(methods.find_method("learners", learner), "EVAL")
    if config.get("probe", {}).get("data") == "released":
        evaluated += ", probe on released images"
    return {"network": config.get("architecture", "resnet18"), "evaluated": evaluated}


def plainly(network: str) -> str:
    """'mobilenet_v2' and 'mobilenetv2' as one."""
    return network.replace("_", "").replace("-", "")


def filed_under(fact: dict) -> str:
    """The defence, with its diffusion model's training where that is part of the experiment."""
    return ", ".join(fact[key] for key in ("defence", "prior") if key in fact)


def in_words(fact: dict | None) -> str:
    """'93.1 LE T3', with its own spread and what is special about it."""
    if fact is None:
        return ""
    sd = f" ± {fact['sd']}" if "sd" in fact else ""
    marks = [*(["oracle"] if fact.get("oracle") else []), *([fact["variant"]] if "variant" in fact
             else []), *(["leaderboard"] if fact["kind"] == "leaderboard" else []),
             *([f"as {fact['named']}"] if "named" in fact else [])]
    mark = f" ({', '.join(marks)})" if marks else ""
    return f"{fact['accuracy']}{sd}{mark} {fact['source']} {fact['table']}"
