"""Draw the papers' figures, grids of images and the quickstart's bars."""

from start import start

if __name__ == "__main__":           # and not again in a process that it spawns
    start("scripts.pictures.figures")
