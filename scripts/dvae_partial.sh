#!/usr/bin/env bash
# D-VAE, partial poisoning from 0.2 to 1.0.
#   bash scripts/dvae_partial.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" dvae_partial "$@"
