#!/usr/bin/env bash
# D-VAE, CIFAR-10: every poison, undefended, squeezed and purified.
#   bash scripts/dvae_cifar10.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" dvae_cifar10 "$@"
