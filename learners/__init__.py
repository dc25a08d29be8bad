"""One module per way of training on a set, found by name. `python evaluate.py CONFIG` runs one."""
