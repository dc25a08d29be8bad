#!/usr/bin/env bash
# LE, Table 2's form: plain augmentations and JCDP, on CIFAR-10, CIFAR-100 and SVHN (data=svhn: on one of them).
#   bash scripts/le_table2.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" le_table2 "$@"
