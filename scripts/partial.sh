#!/usr/bin/env bash
# Partial poisoning, 0.2 to 1.0, under every countermeasure of the main tables.
#   bash scripts/partial.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" partial "$@"
