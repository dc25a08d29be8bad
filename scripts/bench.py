"""Measure how fast the hot paths are."""

from start import start

start("scripts.bench.bench")
