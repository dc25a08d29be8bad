#!/usr/bin/env bash
# Every attack, SVHN: undefended accuracy of every attack.
#   bash scripts/attacks_svhn.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" attacks_svhn "$@"
