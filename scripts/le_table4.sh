#!/usr/bin/env bash
# LE, Table 4: contrastive poisoning of SimCLR, MoCo v2 and BYOL, a table for each learner.
#   bash scripts/le_table4.sh [--quick | --small] [--jobs N] [--dry-run] [key=value ...]
cd "$(dirname "$0")/.."
status=0
for table in le_table4 le_table4_moco le_table4_byol; do bash scripts/table.sh $table "$@" || status=$?; done
exit $status
