"""Turn another project's poisoned data into an ImageSet."""

from start import start

if __name__ == "__main__":           # and not again in a process that it spawns
    start("scripts.exchange.import_poison")
