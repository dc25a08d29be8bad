"""Programs, and in a package each what only they use: tables, pictures, exchange, bench."""
