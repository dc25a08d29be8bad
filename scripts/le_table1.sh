#!/usr/bin/env bash
# LE, Table 1 (CIFAR-10): every attack undefended, squeezed (ISS), AVATAR and JCDP.
#   bash scripts/le_table1.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" le_table1 "$@"
