"""The types that an artefact's JSON must have, so that all who read it can rely on them.

A shape is a type (`float` takes whole numbers too), a set of allowed values, None, a tuple of
alternatives, `[shape]` for a list of any length or `[shape, shape]` of that one, `{str: shape}` for
any keys, or a dict of keys: `"key?"` may be missing, and keys that it does not name may be there,
but in an `Only`.
"""

import math
from typing import Any


class Only(dict):
    """Keys, and no others."""


WHICH = {"split?": str, "size?": (int, None), "classes?": [str], "class_fraction?": float}
ROOT = Only({"data?": str, **WHICH})            # as in DataSettings
NAMED_ROOT = Only({"data": str, **WHICH})
TRAINED_ON = {"name": str, "fingerprint?": str, "shape": [int, int, int, int],
              "num_classes": (int, None), "root": ROOT, "lineage": [str], "seconds?": float,
              "seed?": int, "config?": dict}
TRAINED_ON["after?"] = (TRAINED_ON, None)       # what it was fine-tuned from
# What a learner learned from beside the set: images, or what weights from elsewhere had seen.
SEEN = ({**TRAINED_ON, "labelled?": bool, "rows?": str, "originals?": int}, Only({"name": str}))
STEP = {"method": str, "preset?": str, "version?": int, "seed?": int, "config?": dict,
        "settings?": dict, "fingerprint?": str, "inputs?": {str: str}, "seconds?": float,
        "trained_on?": (TRAINED_ON, None)}
# as a record tells it; the last two are of later versions, and of what is trained
MADE = {"method": str, "preset": str, "version": int, "seed": int, "config": dict,
        "settings": dict, "fingerprint": str, "inputs": {str: str}, "seconds?": float,
        "trained_on?": (TRAINED_ON, None)}
COMMON = {"fingerprint": str, "digests": {str: str}, "log_sha256?": str, "versions?": {str: str}}
META = {
    "imageset": {**COMMON, "name": str, "classes": [str], "root": ROOT, "lineage": [STEP],
                 "test": (NAMED_ROOT, None), "working_folder?": (str, None),
                 "root_digest?": (str, None), "test_digest?": (str, None)},
    "checkpoint": {**COMMON, "method": str, "config": dict, "seed": int, "trained_on": TRAINED_ON,
                   "precision": {"auto", "fp32", "tf32", "bf16"}, "lineage?": [STEP],
                   "device": {"name": str}},
    "record": COMMON,
}
RECORD = {
    "accuracy_last": float, "accuracy_best": float, "best_epoch": int, "curve": [[int, float]],
    "train_accuracy": float, "seconds": float, "images_per_second": float, "fingerprint": str,
    "learner": str, "protocol": str, "config": dict, "settings": dict, "seed": int,
    "epochs": int,
    "train": {"name": str, "root": NAMED_ROOT, "lineage": [MADE], "fingerprint": str, "rows": int,
              "root_digest?": (str, None), "shape?": [int, int, int, int], "num_classes?": int,
              "images_sha256?": (str, None)},
    "test": {"root": NAMED_ROOT, "root_digest?": (str, None), "rows": int},
    "purifier_trained_on": [TRAINED_ON], "learner_saw?": [SEEN],
    "probe?": ({"data": {"clean", "released"}, "knn": [[int, float]]}, None),
    "kept_epoch?": (int, None),
    "overrides?": (dict, None), "commit?": (str, None), "dirty?": (bool, None), "date?": str,
}
MOST = 2**63                    # of a number


def misshapen(value: Any, shape: Any, name: str = "") -> str | None:
    """The dotted name of the first entry that is not of its shape; None if all are."""
    if isinstance(shape, tuple):
        faults = [misshapen(value, one, name) for one in shape]
        return None if None in faults else max(faults, key=len)
    if isinstance(shape, list):
        if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
            return name
        shapes = shape if len(shape) > 1 else shape * len(value)
        return first(misshapen(entry, one, f"{name}[{i}]")
                     for i, (entry, one) in enumerate(zip(value, shapes, strict=True)))
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return name
        if str in shape:
            return first(misshapen(entry, shape[str], f"{name}.{key}")
                         for key, entry in value.items())
        if isinstance(shape, Only):
            unknown = sorted(value.keys() - {key.removesuffix("?") for key in shape})
            if unknown:
                return f"{name}.{unknown[0]}" if name else unknown[0]
        return first(of_key(value, key, one, name) for key, one in shape.items())
    if shape is None:
        return None if value is None else name
    if isinstance(shape, set):
        return None if isinstance(value, str) and value in shape else name
    if shape in (int, float):
        kinds = (int, float) if shape is float else int
        right = isinstance(value, kinds) and not isinstance(value, bool) and \
            abs(value) < MOST and math.isfinite(value)
        return None if right else name
    return None if isinstance(value, shape) else name


def of_key(value: dict, key: str, shape: Any, name: str) -> str | None:
    bare = key.removesuffix("?")
    dotted = f"{name}.{bare}" if name else bare
    if bare not in value:
        return None if key != bare else dotted
    return misshapen(value[bare], shape, dotted)


def first(faults) -> str | None:
    return next((fault for fault in faults if fault is not None), None)
