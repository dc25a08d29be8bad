"""How an artefact remembers the images behind it: where they were, as seen from where it lies.

meta.json's `root` and `test` name data as `data=` does, paths relative to the working folder of
the command that wrote it; `working_folder` leads there from the artefact. So both are found from
any other folder, and after a checkout was moved whole. That what is found there is still the same,
`root_digest` and `test_digest` say (`core.imageset.content_digest`).
"""

import os
from pathlib import Path

# data sets that are no paths
NAMED = ("cifar10", "cifar100", "svhn", "pets", "imagenet100", "digits", "photos", "photographs")


def place(path: Path) -> str:
    """A path to remember: relative where it was named below the working folder, through links too,
    so that a checkout can be moved whole; absolute elsewhere."""
    named = path.resolve() if ".." in path.parts else Path(os.path.abspath(path))
    for found in (named, path.resolve()):
        if found.is_relative_to(Path.cwd()):
            text = str(found.relative_to(Path.cwd()))
            return f"./{text}" if text in NAMED else text       # alone it is a data set's name
    return str(named)


def way_back(artefact: Path) -> str:
    """From an artefact's folder to the working folder, for its meta.json."""
    return os.path.relpath(Path.cwd(), artefact)


def from_here(spec: dict | None, artefact: Path, working_folder: str | None) -> dict | None:
    """What an artefact remembers as `root` or `test`, its path as seen from here. Left as it is
    where nothing lies at the end of the way: the artefact was moved alone, or is an older one."""
    if not working_folder or spec is None or "data" not in spec or spec["data"] in NAMED:
        return spec
    prefix = "folder:" if spec["data"].startswith("folder:") else ""
    path = spec["data"].removeprefix(prefix)
    for start in (os.path.abspath(artefact), os.path.realpath(artefact)):
        found = Path(os.path.normpath(os.path.join(start, working_folder, path)))
        if found.exists():
            return {**spec, "data": prefix + place(found)}
    return spec
