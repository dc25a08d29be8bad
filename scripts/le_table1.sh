#!/usr/bin/env bash
# LE, Table 1: every attack undefended, squeezed (ISS), under AVATAR, JCDP, AT and AA, on CIFAR-10, CIFAR-100 and SVHN (data=svhn: on one of them).
#   bash scripts/le_table1.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" le_table1 "$@"
