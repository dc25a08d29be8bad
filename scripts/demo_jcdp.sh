#!/usr/bin/env bash
# JCDP on poisoned digits of 32x32, with a small DDPM of digits that nobody protects.
#   bash scripts/demo_jcdp.sh [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" demo_jcdp "$@"
