"""One module per attack, found by name. `python -m poisons CONFIG` makes a poisoned set."""

import core  # noqa: F401 - before what may not be installed: it says so in one sentence
