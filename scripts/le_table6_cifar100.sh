#!/usr/bin/env bash
# LE, Table 6: fine-tuning the prior, and the joint condition, on CIFAR-100.
#   bash scripts/le_table6_cifar100.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" le_table6_cifar100 "$@"
