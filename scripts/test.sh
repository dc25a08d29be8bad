#!/usr/bin/env bash
# Set up an environment and run the test suite: bash scripts/test.sh [pytest arguments]
# The longer checks: bash scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
DEV=1 source scripts/setup.sh
ruff check .
[ $# -eq 0 ] || exec python -m pytest "$@"

# Two halves at once: most tests keep one core busy.
export OMP_NUM_THREADS=1
half=(tests/test_{bad_input,crash,figures,run,surrogate_attacks,tables}.py)
log=$(mktemp)
python -m pytest -q "${half[@]}" > "$log" 2>&1 &
status=0
python -m pytest -q "${half[@]/#/--ignore=}" || status=$?
wait $! || status=$?
cat "$log"
exit $status
