#!/usr/bin/env bash
# Make what tables lack with workers that SLURM runs, in a checkout that every node sees.
#
#     bash scripts/slurm.sh NAME... [--quick | --small] [--rows A,B] [--columns A,B] [--seeds 0,1] [--sets] [--jobs N] [key=value ...]
#         [--array N] [sbatch options]
#     bash scripts/slurm.sh dvae_cifar10 --array 8 --time=12:00:00 --gres=gpu:1
#
# N tasks (4), each a worker (run_table.py --worker). A task that is preempted, or whose node fails, is queued again. Five minutes
# ahead of the time limit SIGINT has it save its state. --array 24%8 is 24 tasks, 8 at once: each takes over from one that ran out
# of time, and what finds nothing left to do ends. Options that are not run_table.py's go to sbatch, behind the ones given here.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "error: $1" >&2; exit 1; }
[[ ${1:-} =~ ^(-h|--help)$ || -n ${1:-} && $1 != -* && $1 != *=* ]] || fail "name a table of configs/tables/: bash scripts/slurm.sh NAME [--array N] [sbatch options]"
source scripts/setup.sh

tables=() words=() options=() array=4 look=
while [ $# -gt 0 ] && [[ $1 != -* && $1 != *=* ]]; do
  tables+=("$1")
  shift
done
while [ $# -gt 0 ]; do
  case $1 in
    --array=*) array=${1#*=} ;;
    -a | --array) [ $# -gt 1 ] || fail "--array: how many tasks?"; array=$2; shift ;;
    --rows | --columns | --seeds | --jobs) words+=("${@:1:2}"); shift $(($# > 1)) ;;
    --rows=* | --columns=* | --seeds=* | --jobs=* | --quick | --small | --sets) words+=("$1") ;;
    --dry-run | --status) look=$1 ;;
    [!-]*=*) words+=("$1") ;;
    *) options+=("$1") ;;
  esac
  shift
done
[[ ! $array =~ ^[0-9]+(%[0-9]+)?$ ]] || array=1-$array

run=(scripts/run_table.py "${tables[@]}" ${words[@]+"${words[@]}"})
[ -z "$look" ] || { python "${run[@]}" "$look"; exit; }
python "${run[@]}" --dry-run >/dev/null     # what is wrong with the line is said here, not in every task's log
command -v sbatch >/dev/null || fail "sbatch is not in PATH: start this where jobs are submitted; one host needs only bash scripts/table.sh $(basename "${tables[0]}" .yaml) --jobs N"
if [[ " ${options[*]-} " != *gpu* ]] && sinfo -h -o %G 2>/dev/null | grep -q gpu; then
  echo "note: there are GPUs and nothing asks for one, so that workers compute on CPUs; --gres=gpu:1 is one a worker" >&2
fi

quoted() { printf '%q ' "$@"; }
mkdir -p runs/logs
line=$(quoted "${run[@]}")
line=${line//\\,/,}
python=$(python -c 'import sys; print(sys.executable)')
# exec: signals to the batch script are the worker's. UNLEARNABLE_STARTER is a process of this host. Threads: not every cluster
# binds a task to its CPUs.
job=$(sbatch --parsable --job-name="$(basename "${tables[0]}" .yaml)" --array="$array" --requeue --signal=B:INT@300 \
  --output=runs/logs/slurm-%A_%a.log --open-mode=append ${options[@]+"${options[@]}"} <<END
#!/usr/bin/env bash
unset UNLEARNABLE_STARTER
export OMP_NUM_THREADS=\${OMP_NUM_THREADS:-\$SLURM_CPUS_ON_NODE}
exec $(quoted "$python")$line--worker
END
)
job=${job%%;*}
echo "job $job; watch: python $line--status   logs: runs/logs/slurm-${job}_*.log   stop: scancel $job"
