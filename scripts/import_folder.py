"""Decode a folder of pictures into an ImageSet, once."""

from start import start

start("scripts.exchange.import_folder")
