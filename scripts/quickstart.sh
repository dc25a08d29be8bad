#!/usr/bin/env bash
# From a fresh clone to a table and a picture, on a CPU, without a download:
#
#     bash scripts/quickstart.sh [--seeds N] [--out FOLDER]
#
# Makes .venv (unless a virtual environment is active), installs, then on the embedded digits: poisons them
# with LSP, purifies them with gray, jpeg and D-VAE, trains a ResNet-18 on each and prints its accuracy on
# clean digits. Repeating the line resumes; what is done is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
seeds=1 out=runs/quickstart
while [ $# -gt 0 ]; do
  case $1=${2:-} in
    --seeds=[1-9] | --seeds=[1-9][0-9]) seeds=$2 ;;
    --out=?*) out=$2 ;;
    -h=* | --help=*) break ;;                # setup.sh says it
    *) echo "usage: bash scripts/quickstart.sh [--seeds N] [--out FOLDER]" >&2; exit 2 ;;
  esac
  shift 2
done
source scripts/setup.sh

for ((seed = 1; seed <= seeds; seed++)); do
  dir=$out/seed$seed
  evaluate() {
    python evaluate.py configs/learners/em60.yaml data="$2" out="$dir/records/$1" seed=$seed compile=false >/dev/null
  }
  echo "== seed $seed of $seeds" >&2
  python -m poisons configs/poisons/lsp.yaml data=digits out="$dir/lsp" seed=$seed >/dev/null
  python train_vae.py configs/purifiers/dvae.yaml data="$dir/lsp" out="$dir/dvae-checkpoint" seed=$seed \
    compile=false >/dev/null
  for purifier in gray jpeg; do
    python purify.py configs/purifiers/$purifier.yaml data="$dir/lsp" out="$dir/$purifier" >/dev/null
  done
  python purify.py configs/purifiers/dvae.yaml data="$dir/lsp" checkpoint="$dir/dvae-checkpoint" out="$dir/dvae" >/dev/null
  evaluate clean digits
  for set in lsp gray jpeg dvae; do evaluate $set "$dir/$set"; done
done
python scripts/figures.py quickstart "$out"
