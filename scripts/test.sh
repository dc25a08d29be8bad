#!/usr/bin/env bash
# Set up an environment and run the test suite: bash scripts/test.sh [pytest arguments]
# The longer checks: bash scripts/test.sh -m slow. Offline, with the packages that are there: INSTALL=no bash scripts/test.sh
set -euo pipefail
cd "$(dirname "$0")/.."
DEV=1 source scripts/setup.sh
if command -v ruff >/dev/null; then ruff check .; else echo "without ruff: style is not checked" >&2; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ $# -gt 0 ]; then python -m pytest "$@"; exit; fi

# Two halves at once: most tests keep one core busy.
half=(tests/test_{bad_input,crash,figures,run,surrogate_attacks,tables}.py)
log=$(mktemp)
trap 'kill $(jobs -p) 2>/dev/null; cat "$log"; rm -f "$log"' EXIT
python -m pytest -q "${half[@]}" > "$log" 2>&1 &
first=$!
python -m pytest -q "${half[@]/#/--ignore=}" &
status=0
wait $! || status=$?
wait $first || status=$?
exit $status
