"""Make one HTML page of results."""

from start import start

start("scripts.report.report")
