"""How fast the hot paths are: one file a room."""
