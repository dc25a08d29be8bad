"""Turn another project's DDPM into a checkpoint."""

from start import start

start("scripts.exchange.import_ddpm")
