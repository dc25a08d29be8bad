"""Data sets that are not on this disk, as a plan knows them: their size, and their digest where the
repository has it.

A plan needs no pixel. Inside `allowed`, what `core.datasets` cannot read here is an outline: an
ImageSet of black images with the size, the number of classes and the fingerprint of the set, and
nothing is downloaded. Digests come from committed records that read the set, or from `data:` of
results/index.yaml. torchvision's sets are known by their size even where no digest is: what is made
of them then has no fingerprint yet, and the outline's meta says `unknown`.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from core import config, files
from core.errors import UserError
from core.imageset import ImageSet
from core.remembered import place

RESULTS = Path("results")
# name -> where it lies below `root`, rows for training (of imagenet100 the most that they may be),
# rows for testing, classes, usual size
SIZES = {
    "cifar10": ("cifar-10-batches-py", 50_000, 10_000, 10, 32),
    "cifar100": ("cifar-100-python", 50_000, 10_000, 100, 32),
    "svhn": ("{split}_32x32.mat", 73_257, 26_032, 10, 32),
    "pets": ("oxford-iiit-pet", 3_680, 3_669, 37, 224),
    "imagenet100": ("train", 130_000, 5_000, 100, 224),
}
_met: ContextVar[set[str] | None] = ContextVar("unknown sets met; None: not allowed", default=None)


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Inside, sets that are not here may be outlines."""
    token = _met.set(set())
    try:
        yield
    finally:
        _met.reset(token)


def allow() -> None:
    """From here to the end of the command (`core.command.command`)."""
    _met.set(set())


def are_allowed() -> bool:
    return _met.get() is not None


def unknown() -> list[str]:
    """The names of the sets met so far whose digest is not known."""
    return sorted(_met.get() or ())


def outline(source: str, split: str, root: str, digest: str | None, size: int | None = None
            ) -> ImageSet | None:
    """The outline of the train or test split of a set that is not here; None if it is, if outlines
    are not allowed, or if nothing is known of it. `digest`: what an artefact remembers of it."""
    if not are_allowed():
        return None
    if source in SIZES:
        where, *rows, classes, usual = SIZES[source]
        if Path(root, where.format(split=split)).exists():
            return None
        rows, which = rows[split == "test"], {"data": source}
        if usual != 32:         # one that comes in any size
            which["size"] = size or usual
        elif digest is None:
            digest = recorded().get((source, split))
        size = which.get("size", 32)
        spec, test = {**which, "split": split}, {**which, "split": "test"}
    else:
        path = Path(source)
        known = None if path.exists() else indexed().get(place(path))
        if known is None:
            return None
        rows, classes, size = (known[key] for key in ("rows", "classes", "size"))
        spec, test, digest = {"data": place(path)}, None, digest or known["fingerprint"]
    names = [str(number) for number in range(classes)]
    return black(source, np.arange(rows) % classes, names, size, spec, test, digest)


def black(source: str, labels: np.ndarray, classes: list[str], size: int, root: dict,
          test: dict | None, digest: str | None = None) -> ImageSet:
    """An outline, to be made inside `allowed` alone."""
    split = root.get("split", "train")
    meta = {"fingerprint": digest or f"{source}, {split}", "root_digest": digest, "root": root,
            "test": test, "name": Path(source).stem, "lineage": [], "classes": classes}
    if digest is None:
        meta["unknown"] = True
        _met.get().add(source)
    return ImageSet(np.broadcast_to(np.uint8(0), (len(labels), size, size, 3)), labels, meta)


def indexed() -> dict[str, dict]:
    """Path -> size and fingerprint of the sets of results/index.yaml; none where there is no such
    file."""
    try:
        nodes = config.read_file(RESULTS / "index.yaml").value["data"].value
    except (UserError, KeyError):
        return {}
    return {path: {key: config.build(str if key == "fingerprint" else int, node, key)
                   for key, node in of.value.items()} for path, of in nodes.items()}


def recorded() -> dict[tuple[str, str], str]:
    """(name, split) -> digest of torchvision's sets that committed records read."""
    found = {}
    for path in sorted(RESULTS.rglob("record.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = files.read_json(path)
            for one in (record["train"], record["test"], *record["purifier_trained_on"]):
                root, digest = one["root"], one.get("root_digest")
                split = "test" if root.get("split") == "test" else "train"
                if root.get("data") in SIZES and digest:
                    found[root["data"], split] = digest
    return found
