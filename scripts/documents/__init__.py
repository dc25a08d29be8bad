"""What README and docs take from elsewhere: tables of results, lists of methods."""
