"""What every attack, purifier and learner shares: one idea a file."""
