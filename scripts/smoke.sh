#!/usr/bin/env bash
# Every command end to end with --smoke, each on what the one before made: bash scripts/smoke.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-$(mktemp -d)}

# dc and reuse must be given a file or a set to read: below
(cd configs/poisons; ls | grep -vE '^(dc|reuse)[.]') | sed 's/.yaml$//' | xargs -P 2 -I NAME \
  python -m poisons configs/poisons/NAME.yaml --smoke data=digits size=32 threads=1 out="$out/NAME"
for preset in em:eps16 hypo:apbench lsp:radius1 lsp:radius2 rem:eps16 rem:lite sep:eps16 sep:fa sep:fa_vr tap:eps16; do
  python -m poisons configs/poisons/${preset%:*}.yaml preset=${preset#*:} --smoke data=digits size=32 threads=1 out="$out/$preset"
done
python train_vae.py configs/purifiers/dvae.yaml --smoke data="$out/lsp" out="$out/checkpoint"
for purifier in $(cd configs/purifiers; ls | grep -vE '^(dvae|vae|ae|ddpm|jcdp)[.]' | sed 's/.yaml$//'); do    # these take a checkpoint
  python purify.py configs/purifiers/$purifier.yaml --smoke data="$out/lsp" out="$out/$purifier"
done
for preset in blur:sigma05 blur:sigma1 blur:binomial blur:mean noise:gaussian sharpen_lowpass:ssk; do
  python purify.py configs/purifiers/${preset%:*}.yaml preset=${preset#*:} --smoke data="$out/lsp" out="$out/$preset"
done
python purify.py configs/purifiers/dvae.yaml --smoke data="$out/lsp" checkpoint="$out/checkpoint" out="$out/dvae" \
  dvae.save_perturbation=true
python train_ddpm.py configs/purifiers/ddpm.yaml --smoke split=test out="$out/prior"
for preset in cpu fast finetune ho released; do
  python train_ddpm.py configs/purifiers/ddpm.yaml preset=$preset --smoke split=test out="$out/prior-$preset"
done
for purifier in ddpm jcdp; do
  python purify.py configs/purifiers/$purifier.yaml --smoke data="$out/lsp" checkpoint="$out/prior" out="$out/$purifier"
done
for preset in ddpm:avatar_released jcdp:released; do
  python purify.py configs/purifiers/${preset%:*}.yaml preset=${preset#*:} --smoke data="$out/lsp" checkpoint="$out/prior" out="$out/$preset"
done
python -c "import sys, torch; from models.noise_unet import NoiseUNet; torch.save(NoiseUNet().state_dict(), sys.argv[1])" "$out/generator.pth"
python -m poisons configs/poisons/dc.yaml --smoke data=digits size=32 threads=1 dc.weights="$out/generator.pth" out="$out/dc"
python -m poisons configs/poisons/reuse.yaml --smoke data=digits size=32 reuse.source="$out/dvae" out="$out/reuse"
for learner in $(ls configs/learners); do
  python evaluate.py configs/learners/$learner --smoke data="$out/dvae" out="$out/record-${learner%.yaml}"
done
python scripts/figures.py grid "$out/lsp" "$out/dvae" --out "$out/grid.png"
python scripts/bench.py --smoke --json "$out/bench.json"
echo "smoke: all commands passed"
