"""Measure what a poison changed, and draw it."""

from start import start

if __name__ == "__main__":           # and not again in a process that it spawns
    start("scripts.pictures.inspect_poison")
