#!/usr/bin/env bash
# Make what tables lack, then print them; scripts/NAME.sh is this with a name.
#
#     bash scripts/table.sh NAME... [--quick | --small] [--rows A,B] [--columns A,B] [--seeds 0,1] [--jobs N] [--worker]
#                                   [--dry-run | --status] [key=value ...]
#
# `python scripts/run_table.py --help` says what each does, `python scripts/list.py NAME` what is in the table. Packages that are
# missing are installed first, but not for --dry-run, --status and --help; INSTALL=no in front of a line takes what is there.
set -uo pipefail
cd "$(dirname "$0")/.."

tables=()
while [ $# -gt 0 ] && [[ $1 != -* && $1 != *=* ]]; do
  tables+=("$1")
  shift
done
before=
for word in "$@"; do
  case $before:$word in
    --rows:* | --columns:* | --seeds:* | --jobs:* | *:-* | *:*=*) ;;
    *) [ ${#tables[@]} = 0 ] || { echo "error: '$word': name all tables first, then options and key=value" >&2; exit 1; } ;;
  esac
  before=$word
done
if [ ${#tables[@]} = 0 ] && [[ " $* " != *" -h "* && " $* " != *" --help "* ]]; then
  echo "error: name a table first: bash scripts/table.sh NAME [--quick] [key=value ...]" >&2
  exit 1
fi
source scripts/setup.sh

python scripts/run_table.py ${tables[@]+"${tables[@]}"} "$@"
status=$?
case " $* " in *" --dry-run "* | *" --status "*) exit $status ;; esac
[ $status -lt 2 ] || exit $status
exec 3>&2
[ $status = 0 ] || exec 3>/dev/null         # what is wrong with the line was said; the cells that are there are printed
for table in ${tables[@]+"${tables[@]}"}; do
  [ ${#tables[@]} = 1 ] || printf '\n%s\n\n' "$(basename "$table" .yaml)"
  python scripts/table.py "$table" "$@" 2>&3 || [ $status != 0 ] || status=1
done
exit $status
