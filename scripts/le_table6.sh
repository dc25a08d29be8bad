#!/usr/bin/env bash
# LE, Table 6: fine-tuning the prior, and the joint condition, on CIFAR-10 and CIFAR-100 (data=cifar100: on one of them).
#   bash scripts/le_table6.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" le_table6 "$@"
