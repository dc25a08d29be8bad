#!/usr/bin/env bash
# D-VAE, what each stage does.
#   bash scripts/dvae_stages.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" dvae_stages "$@"
