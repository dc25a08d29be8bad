#!/usr/bin/env bash
# D-VAE on larger bounds: L-inf 16/255 and twice LSP's radius.
#   bash scripts/dvae_bounds.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" dvae_bounds "$@"
