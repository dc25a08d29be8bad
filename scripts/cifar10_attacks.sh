#!/usr/bin/env bash
# Every attack on the first 5,000 images of CIFAR-10, small enough for two CPU cores in a night.
#   bash scripts/cifar10_attacks.sh [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" cifar10_attacks "$@"
