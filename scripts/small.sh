#!/usr/bin/env bash
# The papers' claims on 10,000 photographs, for two CPU cores: each table with --small, cheapest first. Repeating the line resumes.
#   bash scripts/small.sh [--jobs N] [--dry-run | --status] [key=value ...]
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
failed=0
settings=()                                 # the key=value among what was typed: figures take no --jobs
for word in "$@"; do case $word in -*) ;; *=*) settings+=("$word") ;; esac; done
# what is wrong with the line is said here, and not by every table
said=$(python scripts/run_table.py configs/tables/dvae_cifar10.yaml --small "$@" --dry-run 2>&1 >/dev/null) ||
    { status=$?; printf '%s\n' "$said" >&2; exit $status; }

run() {     # a program: after one that fails the rest is done, but not after a wrong line or Ctrl-C
    python "$@" || failed=$?
    [ $failed -lt 2 ] || exit $failed
}
make() { run scripts/run_table.py "configs/tables/$1.yaml" --small "${@:2}"; }      # a table's name and a part of it
# one seed: D-VAE's main table without the diffusion columns, and noise that is no poison
make dvae_cifar10 --seeds 0 --columns none,bdr,gray,jpeg,dvae --rows clean,em,lsp,tap,ar "$@"
make attacks --seeds 0 --rows random_signs --columns none "$@"
# three seeds of the main rows
make dvae_cifar10 --columns none,gray,jpeg,dvae --rows clean,em,lsp "$@"
# the rest of the poisons, and what D-VAE's figures show
make dvae_cifar10 --seeds 0 --columns none,gray,jpeg,dvae "$@"
for figure in fig4 fig3 fig2b fig2a; do make $figure --sets "$@"; done
# JCDP: LE's tables, the first with the prior that is here
make le_table3 --rows clean,em,lsp "$@"
make le_table6 --seeds 0 "$@"
make le_table5 --seeds 0 "$@"

case " $* " in *" --dry-run "* | *" --status "*) exit $failed ;; esac
for table in dvae_cifar10 le_table3 le_table6 le_table5; do run scripts/table.py configs/tables/$table.yaml --small "$@"; done
for figure in fig4 fig3 fig2b fig2a; do run scripts/figures.py $figure --small ${settings[@]+"${settings[@]}"}; done
exit $failed
