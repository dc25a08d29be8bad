"""What the tests of figures share: a figure of the table at hand, and what was drawn of it."""

import pytest
from conftest import Outcome, run_command

from scripts.pictures import figures, style


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Fewer dots to save: what stands where is the same."""
    monkeypatch.setattr(style, "DOTS", 40)


def figure(name: str, *words: object) -> Outcome:
    """A figure of table.yaml, saved as figure.png."""
    return run_command(figures.main, name, "--table", "table.yaml", "--out", "figure.png", *words)


def drawn(monkeypatch) -> list:
    """The figures that are saved from here on, instead of their files."""
    found = []
    monkeypatch.setattr(figures, "save", lambda figure, path: found.append(figure))
    return found
