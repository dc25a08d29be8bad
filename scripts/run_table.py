"""Make every missing artefact of a table."""

from start import start

if __name__ == "__main__":           # and not again in a process that it spawns
    start("scripts.tables.run_table")
