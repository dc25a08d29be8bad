#!/usr/bin/env bash
# D-VAE, figure 3: accuracy per epoch under UEraser, plain training and D-VAE.
#   bash scripts/dvae_augmentation.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" dvae_augmentation "$@"
