"""A finished artefact, of whichever kind: its meta.json and the digests of its files, read so that
what is missing, damaged, edited or of another kind is said in one sentence.
"""

import contextlib
from pathlib import Path, PurePath

import numpy as np

from core import files, reading, shapes
from core.errors import UserError

FORMAT = 1
PARTIAL = ".partial"    # OUT.partial: where a command works until OUT is whole (core.workfolder)
KINDS = {"imageset": "an ImageSet", "checkpoint": "a checkpoint", "record": "a record"}


def read_any_meta(path: Path) -> dict:
    """The meta.json of a finished artefact of whatever kind."""
    if not path.exists():
        raise UserError(f"{path}: no such folder{unfinished(path)}")
    kind = "imageset"           # of what cannot be read, so that read_meta says why
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kind = str(files.read_json(path / "meta.json")["kind"])
    return read_meta(path, kind if kind in KINDS else "imageset")


def read_meta(path: Path, kind: str) -> dict:
    """The meta.json of a finished artefact of this kind, every entry of its type (core.shapes);
    UserError names what is missing or damaged."""
    if not path.exists():
        raise UserError(f"{path}: no such folder; it should be {KINDS[kind]}{unfinished(path)}")
    if not (path / "meta.json").exists():
        folder = kind == "imageset" and path.is_dir()
        hint = f"; for a folder per class write folder:{path}" if folder else ""
        raise UserError(f"{path} is not {KINDS[kind]}: it has no meta.json{hint}")
    try:
        meta = files.read_json(path / "meta.json")
        if meta["kind"] != kind:
            raise UserError(f"{path} is {KINDS.get(str(meta['kind']), 'something else')}, not "
                            f"{KINDS[kind]}")
        if meta["format"] != FORMAT:
            raise UserError(f"{path}/meta.json: format {meta['format']}, but this code reads "
                            f"format {FORMAT}")
        check_shape(meta, shapes.META[kind], path / "meta.json")
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}/meta.json is damaged; {again(path)}") from None
    return meta


def is_finished(folder: Path) -> bool:
    """Whether a folder says that it is an artefact, of whichever kind."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return files.read_json(folder / "meta.json")["kind"] in KINDS
    return False


def partial_of(out: Path) -> Path:
    return out.with_name(out.name + PARTIAL)


def is_partial(path: PurePath) -> bool:
    """Whether a path is such a folder, or lies in one."""
    return any(part.endswith(PARTIAL) for part in path.parts)


def unfinished(path: Path) -> str:
    """The end of a sentence about an artefact that is not there: whether it was begun."""
    begun = partial_of(path).exists()
    return "; it is unfinished: repeat the command that makes it" if begun else ""


def check_shape(value: dict, shape: dict, path: Path) -> None:
    """Raise UserError that names the first entry of a JSON file that is missing or no such type."""
    for key in shape:
        if not key.endswith("?") and key not in value:
            raise UserError(f"{path} lacks '{key}'; {again(path.parent)}")
    try:
        fault = shapes.misshapen(value, shape)
    except RecursionError:
        fault = "lineage"
    if fault is not None:
        raise UserError(f"{path}: '{fault}' is not what it must be; {again(path.parent)}")


def again(folder: Path) -> str:
    """What to do about a finished artefact that is not whole: OUT being there means done, so the
    same line alone would leave it."""
    return f"remove {folder} and repeat the command that made it"


def verify(path: Path, meta: dict) -> None:
    """Raise UserError unless the file has the SHA-256 that its meta.json promises."""
    try:
        digest = files.sha256(path)
    except UserError as error:
        raise UserError(f"{error}; {again(path.parent)}") from None
    if digest != meta["digests"].get(path.name):
        raise UserError(f"{path} does not match its SHA-256 in meta.json: it was damaged or "
                        f"edited; {again(path.parent)}")


def read_array(path: Path, meta: dict) -> np.ndarray:
    """Memory-map a `.npy` file of an artefact. Raises UserError if it is damaged or a pickle."""
    verify(path, meta)
    try:
        return reading.npy(path, mapped=True)
    except UserError as error:
        raise UserError(f"{error}; {again(path.parent)}") from None
