#!/usr/bin/env bash
# JCDP with 20 network evaluations a pass and with 5.
#   bash scripts/samplers.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" samplers "$@"
