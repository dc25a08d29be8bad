#!/usr/bin/env bash
# LE, Table 3: image compression against unlearnable CIFAR-10.
#   bash scripts/le_table3.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" le_table3 "$@"
