"""Turn another project's DDPM into a checkpoint."""

from start import start

if __name__ == "__main__":           # and not again in a process that it spawns
    start("scripts.exchange.import_ddpm")
