"""Print a table from its records."""

from start import start

start("scripts.tables.render")
