"""OUT.partial: the folder beside OUT in which a command works until OUT is whole
(`core.workfolder`)."""

from pathlib import Path, PurePath

PARTIAL = ".partial"


def partial_of(out: Path) -> Path:
    return out.with_name(out.name + PARTIAL)


def is_partial(path: PurePath) -> bool:
    """Whether a path is such a folder, or lies in one."""
    return any(part.endswith(PARTIAL) for part in path.parts)
