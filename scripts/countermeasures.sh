#!/usr/bin/env bash
# Countermeasures of both papers against six poisons on CIFAR-10.
#   bash scripts/countermeasures.sh [--quick | --small] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" countermeasures "$@"
