#!/usr/bin/env bash
# Every attack, undefended, on CIFAR-10, CIFAR-100 and SVHN (data=svhn: on one of them).
#   bash scripts/attacks.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" attacks "$@"
