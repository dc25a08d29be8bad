#!/usr/bin/env bash
# LE, Table 4: contrastive poisoning of SimCLR, MoCo v2 and BYOL, a table for each learner.
#   bash scripts/le_table4.sh [--quick | --small] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" le_table4 le_table4_moco le_table4_byol "$@"
