#!/usr/bin/env bash
# BridgePure, Table 1: 40,000 images, 5 seeds, on CIFAR-10 and CIFAR-100 (data=cifar100: on one of them).
#   bash scripts/bridgepure_table1.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" bridgepure_table1 "$@"
