#!/usr/bin/env bash
# Make what a table lacks, then print it: bash scripts/table.sh NAME [--quick] [--jobs N] [--worker] [--dry-run | --status] [key=value ...]
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh

table=configs/tables/$1.yaml
shift
python scripts/run_table.py "$table" "$@"
status=$?
case " $* " in *" --dry-run "* | *" --status "*) exit $status ;; esac
[ $status -ge 2 ] || python scripts/table.py "$table" "$@"
exit $status
