#!/usr/bin/env bash
# Every command end to end with --smoke, each on what the one before made: bash scripts/smoke.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
INSTALL=no source scripts/setup.sh
export out=${1:-$(mktemp -d)}

# each LINE NAME[:PRESET] ...: the line for each name, two at once; it reads $name, $preset and `$as`, the folder that is made.
each() {
  printf '%s\n' "${@:2}" | xargs -P 2 -I WORD bash -c 'name=${0%:*} preset=${0#*:} as=$out/$0; '"$1" WORD
}
named() { (cd "configs/$1"; ls) | sed 's/[.]yaml$//' | grep -vxE "$2"; }     # the YAMLs of a folder, but for some

# dc and reuse must be given a file or a set to read: below
each 'python -m poisons configs/poisons/$name.yaml --smoke data=digits size=32 threads=1 out="$as"' $(named poisons 'dc|reuse')
each 'python -m poisons configs/poisons/$name.yaml --smoke preset=$preset data=digits size=32 threads=1 out="$as"' \
  em:eps16 hypo:apbench lsp:radius1 lsp:radius2 rem:eps16 rem:lite sep:eps16 sep:fa sep:fa_vr tap:eps16
python - "$out/generator.pth" <<'END'
import sys, torch
from models.noise_unet import NoiseUNet
weights = NoiseUNet().state_dict()
weights["conv_last.1.weight"] *= 50         # of a fresh one too little is left in eval mode to change a pixel
torch.save(weights, sys.argv[1])
END
each 'python -m poisons configs/poisons/$name.yaml --smoke data=digits size=32 threads=1 dc.weights="$out/generator.pth" out="$as"' dc

# those that are trained are below
each 'python purify.py configs/purifiers/$name.yaml --smoke threads=1 data="$out/lsp" out="$as"' $(named purifiers 'dvae|vae|ae|ddpm|jcdp')
each 'python purify.py configs/purifiers/$name.yaml --smoke preset=$preset threads=1 data="$out/lsp" out="$as"' \
  blur:sigma05 blur:sigma1 blur:binomial blur:mean noise:gaussian sharpen_lowpass:ssk
each 'python train_vae.py configs/purifiers/$name.yaml --smoke threads=1 data="$out/lsp" out="$as-trained"' ae dvae vae
each 'python purify.py configs/purifiers/$name.yaml --smoke threads=1 data="$out/lsp" checkpoint="$as-trained" out="$as"' ae vae
python purify.py configs/purifiers/dvae.yaml --smoke data="$out/lsp" checkpoint="$out/dvae-trained" out="$out/dvae" \
  dvae.save_perturbation=true
python -m poisons configs/poisons/reuse.yaml --smoke data=digits size=32 reuse.source="$out/dvae" out="$out/reuse"
each 'python train_ddpm.py configs/purifiers/$name.yaml --smoke split=test threads=1 out="$as-trained"' ddpm
each 'python train_ddpm.py configs/purifiers/$name.yaml --smoke preset=$preset split=test threads=1 out="$as-trained"' \
  ddpm:cpu ddpm:fast ddpm:ho ddpm:released
python train_ddpm.py configs/purifiers/ddpm.yaml --smoke preset=finetune split=test threads=1 ddpm.train.init_from="$out/ddpm-trained" \
  out="$out/ddpm-finetuned"
each 'python purify.py configs/purifiers/$name.yaml --smoke threads=1 data="$out/lsp" checkpoint="$out/ddpm-trained" out="$as"' ddpm jcdp
each 'python purify.py configs/purifiers/$name.yaml --smoke preset=$preset threads=1 data="$out/lsp" checkpoint="$out/ddpm-trained" out="$as"' \
  ddpm:avatar_released jcdp:released

each 'python evaluate.py configs/learners/$name.yaml --smoke threads=1 data="$out/dvae" out="$out/record-$name"' $(named learners '-')
python scripts/figures.py grid "$out/lsp" "$out/dvae" --out "$out/grid.png"
python scripts/bench.py --smoke --json "$out/bench.json"
echo "smoke: all commands passed"
