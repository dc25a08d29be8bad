"""How every program of this folder starts: `python scripts/NAME.py ...` runs a module of a room
here, with the repository in Python's path."""

import importlib
import sys
from pathlib import Path


def start(module: str) -> None:
    """Run a module's `main` and exit with what it returns."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    importlib.import_module("core")     # says in one sentence what is not installed
    sys.exit(importlib.import_module(module).main())
