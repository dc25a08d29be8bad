"""List what there is: methods, tables, work on the disk, where a number is from."""

from start import start

start("scripts.finding.listing")
