#!/usr/bin/env bash
# D-VAE, CIFAR-100.
#   bash scripts/dvae_cifar100.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" dvae_cifar100 "$@"
