#!/usr/bin/env bash
# CIFAR-10 at full size on one GPU: undefended, D-VAE and JCDP; as far as it was run: results/cifar10-gpu.
#   bash scripts/cifar10_gpu.sh [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" cifar10_gpu "$@"
