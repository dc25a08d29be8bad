"""Decode a folder of pictures into an ImageSet, once."""

from start import start

if __name__ == "__main__":           # and not again in a process that it spawns
    start("scripts.exchange.import_folder")
