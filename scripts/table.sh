#!/usr/bin/env bash
# Make what tables lack, then print them: bash scripts/table.sh NAME... [--quick] [--jobs N] [--worker] [--dry-run | --status] [key=value ...]
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh

tables=()
while [ $# -gt 0 ] && [[ $1 != -* && $1 != *=* ]]; do
  tables+=("$1")
  shift
done
if [ ${#tables[@]} = 0 ] && [[ " $* " != *" -h "* && " $* " != *" --help "* ]]; then
  echo "error: name a table first: bash scripts/table.sh NAME [--quick] [key=value ...]" >&2
  exit 1
fi
python scripts/run_table.py ${tables[@]+"${tables[@]}"} "$@"
status=$?
case " $* " in *" --dry-run "* | *" --status "*) exit $status ;; esac
[ $status -lt 2 ] || exit $status
exec 3>&2
[ $status = 0 ] || exec 3>/dev/null         # what is wrong with the line was said; the cells that are there are printed
for table in ${tables[@]+"${tables[@]}"}; do
  [ ${#tables[@]} = 1 ] || printf '\n%s\n\n' "$(basename "$table" .yaml)"
  python scripts/table.py "$table" "$@" 2>&3
done
exit $status
