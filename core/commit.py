"""Which commit of this repository runs, for what is cited later."""

import os
import subprocess
from pathlib import Path

from core import ROOT

NO_CODE = (":!results", ":!docs")       # what no number depends on
CODE = ("*.py", "*.yaml", "*.yml")      # of what git does not know; a picture is none
SECONDS = 20                            # on a slow disk that others share


def of_code(folder: Path = ROOT) -> dict[str, str | bool | None]:
    """`commit` (40 hex digits, or 64 of a SHA-256 repository) and `dirty`: whether a file of code
    differs from it, or is one that git does not know. Both None where the folder is no checkout, or
    git does not say."""
    try:
        top, commit = git(folder, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if Path(top).resolve() != folder.resolve():     # a copy inside another repository
            raise ValueError
        changed = git(folder, "status", "--porcelain", "-uno", "--", ".", *NO_CODE)
        strange = git(folder, "ls-files", "--others", "--exclude-standard", "--", *CODE, *NO_CODE)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changed or strange)}


def git(folder: Path, *words: str) -> str:
    """What git says of a folder, whatever repository a hook that called us works on."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return subprocess.run(["git", "-C", str(folder), "--no-optional-locks", *words], check=True,
                          capture_output=True, text=True, timeout=SECONDS, env=environment).stdout
