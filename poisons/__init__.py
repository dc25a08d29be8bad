"""One module per attack, found by name. `python -m poisons CONFIG` makes a poisoned set."""
