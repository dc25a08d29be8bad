"""What is said of a method or of a record wherever it is shown: names, protocol, network, what the
defence saw, the spread of numbers."""

import statistics

from core.checkpoint import describe_one, history
from core.manual import typed
from core.methods import fact, find_method, is_method
from core.splits import identified, same_data, share_images

ACCURACY = "accuracy (%)"       # the head of a table's column of them
# How the methods' names are written, everywhere but in commands and YAMLs
NAMES = {
    "em": "EM", "em_classwise": "EM, class-wise", "rem": "REM", "rem_lite": "REM, lite",
    "sem": "SEM", "tap": "TAP", "hypo": "HYPO", "sep": "SEP", "pil": "PIL", "lsp": "LSP",
    "ar": "AR", "ops": "OPS", "cuda": "CUDA", "uc": "UC", "gue": "GUE", "dc": "DC",
    "dune": "DUNE", "aue": "AUE", "aap": "AAP", "mi_ue": "MI-UE",
    "cp": "CP", "tue": "TUE", "cp_c": "CP-C", "cp_s": "CP-S",
    "reuse": "re-used p_hat",
    "random_signs": "random signs",
    "gray": "grey scale", "jpeg": "JPEG", "bdr": "BDR", "dvae": "D-VAE", "vae": "VAE",
    "ae": "AE", "ddpm": "DDPM", "avatar": "AVATAR", "jcdp": "JCDP",
    "ortho": "orthogonal projection", "coin": "COIN", "sharpen_lowpass": "RSK + FF",
    "advcl_reduced": "AdvCL, reduced",
    "ueraser": "UEraser", "ueraser_max": "UEraser, max",
    "iss_best": "best of these (an oracle)",
}


def name_of(label: str) -> str:
    """A row or column of a table, whose first word may be a method: 'jcdp strength=1' -> 'JCDP,
    strength 1'."""
    first, *rest = label.replace(",", "").split() or [label]
    words = [NAMES.get(first, first), *rest]
    return " ".join(words[:1]) + "".join(f", {word.replace('=', ' ')}" if "=" in word
                                         else f" {word}" for word in words[1:])


def saw(record: dict) -> str:
    """What the defence learned from, beside the set that the classifier is trained on: 'nothing',
    'the poisoned set', '10,000 clean test images', 'the clean originals', '5,000 clean labelled
    images', '287 other clean images', 'other data: 416 images of photos', 'ImageNet labels', joined
    by '; ': the purifiers' first. Of any record, also of one made before there were learners that
    see more. A table asks each record of a column, and joins what differs.
    """
    purifiers = [step["method"] for step in record["train"]["lineage"]
                 if is_method("purifiers", step["method"])]
    fitted = any(fact(find_method("purifiers", name), "SEES_SET") for name in purifiers)
    texts = ["the poisoned set"] if fitted else []
    for trained in (*record["purifier_trained_on"], *record.get("learner_saw", [])):
        texts += [seen(one, record) for one in history(trained)]
    return "; ".join(dict.fromkeys(texts)) or "nothing"


def seen(one: dict, record: dict) -> str:
    """The words for one training set (`core.checkpoint.trained_on`), as seen from the set behind
    the record; of weights from elsewhere, the name that they came with."""
    if "shape" not in one:
        return one["name"]
    train, labelled = record["train"], one.get("labelled", False)
    lineage, count = train["lineage"], f"{one['shape'][0]:,}"
    root, own, test = (identified(of) for of in (one, train, record["test"]))
    if one["lineage"]:
        behind = {train["fingerprint"], *(step["fingerprint"] for step in lineage),
                  *(given for step in lineage for given in step["inputs"].values())}
        return "the poisoned set" if one.get("fingerprint") in behind else describe_one(one)
    if share_images(root, test):
        return f"{count} clean test images" + (", with their labels" if labelled else "")
    if not same_data(root, own):
        return f"other data: {describe_one(one)}" + (", with their labels" if labelled else "")
    if "originals" in one:
        return f"{count} clean labelled images" + (
            f" ({one['originals']:,} of them originals of the set)" if one["originals"] else "")
    if share_images(root, own):
        poisoned = any(not is_method("purifiers", step["method"]) for step in lineage)
        text = "the clean originals" if poisoned else "the set itself"
        return f"{text}, with their labels" if labelled else text
    kind = "clean labelled" if labelled else "clean test" if root.get("split") == "test" \
        else "other clean"
    return f"{count} {kind} images"


def protocol_text(record: dict) -> str:
    """'em60 --limit 500, epochs=2': the protocol, and what of it was changed, as far as the record
    knows."""
    changed, settings = record.get("overrides") or {}, record["settings"]
    options = [" --smoke"] if settings.get("smoke") else []
    if settings.get("limit") is not None:
        options.append(f" --limit {settings['limit']}")
    return ", ".join([record["protocol"] + "".join(options),
                      *(f"{key}={typed(value)}" for key, value in changed.items())])


def network_text(values: dict) -> str:
    """'resnet18 of width 8', of a record's or job's config."""
    width = f" of width {values['width']}" if "width" in values else ""
    return values.get("architecture", "resnet18") + width


def after(record: dict) -> str:
    """The epoch that an accuracy is of: 'the last epoch', or 'epoch 7, which was kept'."""
    kept = record.get("kept_epoch")
    return f"epoch {kept}, which was kept" if kept else "the last epoch"


def spread(values: list[float]) -> str:
    """'95.1 ± 0.4 (3)', '95.1' for a single run, '-' where there is none yet."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)})"


def commit_text(found: dict, digits: int = 8) -> str:
    """'commit 1a2b3c4d with changes', of what `core.commit` or a record says."""
    if not found.get("commit"):
        return "an unrecorded commit"
    return f"commit {found['commit'][:digits]}" + " with changes" * bool(found.get("dirty"))
