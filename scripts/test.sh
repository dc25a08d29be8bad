#!/usr/bin/env bash
# Set up an environment and run the test suite: bash scripts/test.sh [pytest arguments]
# The longer checks: bash scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
DEV=1 source scripts/setup.sh
ruff check .
exec python -m pytest "$@"
