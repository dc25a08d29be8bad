"""Write an ImageSet in another project's format."""

from start import start

start("scripts.exchange.export")
