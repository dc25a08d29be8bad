"""Turn another project's poisoned data into an ImageSet."""

from start import start

start("scripts.exchange.import_poison")
