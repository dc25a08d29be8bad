#!/usr/bin/env bash
# Kill every command at each change that it makes on disk, repeat the line, compare the bytes. Minutes.
#     bash scripts/crash_test.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
DEV=1 source scripts/setup.sh
work=${1:-$(mktemp -d)}
for command in poison tap rem sep train_vae purify evaluate train_ddpm jcdp; do python -m tests.crash_driver $command "$work/$command"; done
