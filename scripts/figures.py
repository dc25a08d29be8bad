"""Draw the papers' figures, grids of images and the quickstart's bars."""

from start import start

start("scripts.pictures.figures")
