#!/usr/bin/env bash
# CIFAR-10 in small, for two CPU cores in about two hours.
#   bash scripts/cifar10_small.sh [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" cifar10_small "$@"
