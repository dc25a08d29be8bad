"""Everything that is drawn; style is the one look of it, and the one import of matplotlib."""
