#!/usr/bin/env bash
# D-VAE, transfer: the same sets under other architectures.
#   bash scripts/dvae_transfer.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" dvae_transfer "$@"
