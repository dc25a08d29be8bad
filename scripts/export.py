"""Write an ImageSet in another project's format."""

from start import start

if __name__ == "__main__":           # and not again in a process that it spawns
    start("scripts.exchange.export")
