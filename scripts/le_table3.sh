#!/usr/bin/env bash
# LE, Table 3: image compression beside JCDP, CIFAR-10 and CIFAR-100.
#   bash scripts/le_table3.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" le_table3 "$@"
