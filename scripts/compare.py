"""Say what two records differ in."""

from start import start

start("scripts.finding.compare")
