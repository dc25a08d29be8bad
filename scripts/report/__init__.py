"""One HTML page of results: what is in their folders (gather), how it is written (page)."""
