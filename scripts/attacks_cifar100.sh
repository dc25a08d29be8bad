#!/usr/bin/env bash
# Every attack, CIFAR-100: undefended accuracy of every attack.
#   bash scripts/attacks_cifar100.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" attacks_cifar100 "$@"
