#!/usr/bin/env bash
# CIFAR-10 at full size on one GPU: undefended, D-VAE and JCDP; some forty minutes on an H100 with nothing beside it.
#   bash scripts/cifar10_gpu.sh [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" cifar10_gpu "$@"
