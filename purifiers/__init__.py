"""One module per purifier, found by name. `python purify.py CONFIG` applies one."""
