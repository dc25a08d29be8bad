"""Make every missing artefact of a table."""

from start import start

start("scripts.tables.run_table")
