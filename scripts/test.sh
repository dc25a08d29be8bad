#!/usr/bin/env bash
# Set up an environment and run the test suite: bash scripts/test.sh [pytest arguments]
# The longer checks: bash scripts/test.sh -m slow. Offline, with the packages that are there: INSTALL=no bash scripts/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
DEV=1 source scripts/setup.sh
if command -v ruff >/dev/null; then ruff check .; else echo "without ruff: style is not checked" >&2; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ $# -gt 0 ]; then exec python -m pytest "$@"; fi
# Two processes: most tests keep one core busy.
exec python -m pytest -n 2 --dist worksteal
