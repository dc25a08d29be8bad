#!/usr/bin/env bash
# Every attack, CIFAR-10: undefended accuracy of every attack.
#   bash scripts/attacks.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" attacks "$@"
