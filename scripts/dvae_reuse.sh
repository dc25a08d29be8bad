#!/usr/bin/env bash
# D-VAE's perturbation re-used as an attack.
#   bash scripts/dvae_reuse.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" dvae_reuse "$@"
