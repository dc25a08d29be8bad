#!/usr/bin/env bash
# LE, Table 5: JCDP with priors of other data, on CIFAR-10 and CIFAR-100 (data=cifar100: on one of them).
#   bash scripts/le_table5.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" le_table5 "$@"
