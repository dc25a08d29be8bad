"""Measure what a poison changed, and draw it."""

from start import start

start("scripts.pictures.inspect_poison")
