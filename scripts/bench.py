"""Measure how fast the hot paths are."""

from start import start

if __name__ == "__main__":           # and not again in a process that it spawns
    start("scripts.bench.bench")
