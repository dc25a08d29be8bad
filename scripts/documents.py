"""Write what README and docs take from code and results."""

from start import start

start("scripts.documents.documents")
