#!/usr/bin/env bash
# A real SLURM of one node on this machine, and scripts/slurm.sh in it: a worker that meets its time limit, then an array of 3 of which
# one task is requeued, one cancelled and the rest preempted in the middle of an artefact. The table must be that of one process.
#
#     bash scripts/slurm_test.sh        # root, on Debian or Ubuntu
#
# slurmctld, slurmd and munge come from apt-get into a temporary folder: nothing is installed, and nothing goes on running.
set -euo pipefail
cd "$(dirname "$0")/.."
fail() { echo "error: $1" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "slurmd starts jobs as root: run this as root"
command -v apt-get >/dev/null || fail "this needs apt-get, and with it Debian's slurmctld, slurmd and munge"
source scripts/setup.sh
export OMP_NUM_THREADS=1
table=(dvae_cifar10 --quick --seeds 0 --rows clean,lsp --columns none,dvae threads=1)
work=$(mktemp -d)
daemons=()

stop() {    # what runs here ends: jobs first, their programs then have no one to restart them
  if [ ${#daemons[@]} = 3 ]; then
    scancel --user=root || true
    for _ in {1..150}; do [ -n "$(squeue -h 2>/dev/null)" ] || break; sleep 1; done
  fi
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do
    kill "${daemons[i]}" 2>/dev/null || true
    wait "${daemons[i]}" 2>/dev/null || true
  done
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM

wait_for() {    # seconds, what for, a command that succeeds once it is there
  for ((i = 0; i < $1; i++)); do if "${@:3}"; then return; fi; sleep 1; done
  tail -n 20 "$work"/log/* runs/logs/slurm-* >&2 || true
  fail "waited $1 s in vain for $2"
}

# --- SLURM -------------------------------------------------------------------------------------

mkdir -p "$work"/{packages,root,etc,run,log,state,spool,bin}
wanted=(slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins)
needs=$(apt-get -s install --no-install-recommends "${wanted[@]}" | sed -n 's/^Inst \([^ ]*\).*/\1/p') ||
  fail "apt-get does not find ${wanted[*]}: apt-get update may help"
(cd "$work/packages" && apt-get -q -o APT::Sandbox::User=root download $(printf '%s\n' "${wanted[@]}" $needs | sort -u) >"$work/log/apt" 2>&1) ||
  fail "apt-get could not download: $(tail -n 1 "$work/log/apt")"
for package in "$work"/packages/*.deb; do dpkg -x "$package" "$work/root"; done
plugins=$(echo "$work"/root/usr/lib/*/slurm-wlm)
for tool in sbatch scancel scontrol sinfo squeue; do        # what they need is not for the jobs
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$(dirname "$plugins"):$plugins" "$work/root/usr/bin/$tool" >"$work/bin/$tool"
  [ $tool != sbatch ] || sed -i 's/"\$@"/--export=ALL,LD_LIBRARY_PATH= "$@"/' "$work/bin/$tool"
done
chmod +x "$work"/bin/*
export PATH=$work/bin:$PATH SLURM_CONF=$work/etc/slurm.conf

(umask 077 && head -c 1024 /dev/urandom >"$work/etc/munge.key")
host=$(hostname -s)
read -r port1 port2 < <(python -c 'import socket as s; two = [s.create_server(("127.0.0.1", 0)) for _ in "12"]; print(*(x.getsockname()[1] for x in two))')
# cred_expire: a requeued job waits that long, 121 s by default; below 5 the value is ignored.
# config_overrides: three CPUs, however many there are. KillWait: a busy machine may need more than 30 s to save.
cat >"$SLURM_CONF" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthInfo=socket=$work/run/munge,cred_expire=5
SlurmctldPort=$port1
SlurmdPort=$port2
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/run/slurmctld.pid
SlurmdPidFile=$work/run/slurmd.pid
SlurmctldLogFile=$work/log/slurmctld
SlurmdLogFile=$work/log/slurmd
PluginDir=$plugins
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2
KillWait=120
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=3 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=600 State=UP
PartitionName=first Nodes=$host PriorityTier=2 MaxTime=600 State=UP
END
daemon() {
  LD_LIBRARY_PATH=$(dirname "$plugins"):$plugins setsid "$work/root/usr/sbin/$@" >>"$work/log/$1" 2>&1 &
  daemons+=($!)
}
daemon munged --foreground --force --key-file="$work/etc/munge.key" --socket="$work/run/munge" --pid-file="$work/run/munged.pid" \
  --log-file="$work/log/munge" --seed-file="$work/run/seed" --num-threads=2
wait_for 20 "munged's socket" test -S "$work/run/munge"
daemon slurmctld-wlm -D -i -f "$SLURM_CONF"
daemon slurmd-wlm -D -N "$host" -f "$SLURM_CONF" -d "$work/root/usr/sbin/slurmstepd-wlm"
is_idle() { [ "$(sinfo -h -o %T 2>/dev/null)" = idle ]; }
wait_for 30 "an idle node" is_idle
echo "== $(scontrol --version) on $host: one node, three CPUs"

# --- the table by one process, and by the array ------------------------------------------------

for place in alone cluster; do      # without what is committed as done
  mkdir -p "$work/$place/results"
  git ls-files -z -- ':!results' | xargs -0 cp --parents -t "$work/$place"
  cp results/reported.csv "$work/$place/results"
done
cd "$work/alone"
echo "== one process"
python scripts/run_table.py "${table[@]}"

cd "$work/cluster"
task_in_the_middle() {      # sets `task`, not $1, whose command wrote a line of an artefact's log, and `making` and `process`, these two
  local log
  for log in runs/checkpoints/*.partial/log.jsonl; do
    process=$(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' "${log%log.jsonl}lock" 2>/dev/null) || continue
    task=$(tr '\0' '\n' 2>/dev/null <"/proc/$process/environ" | sed -n 's/^SLURM_ARRAY_TASK_ID=//p') || continue
    if [ -s "$log" ] && [ -n "$task" ] && [ "$task" != "$1" ]; then making=${log%.partial/log.jsonl}; return; fi
  done
  return 1
}
is_saved() { [ -n "$(find "$making.partial/state" -newer "$work/before" -name '*.pt' 2>/dev/null)" ]; }
has_stopped() { ! grep -qz . "/proc/$process/environ" 2>/dev/null; }
is_over() { [ -z "$(squeue -h)" ]; }
submit() {          # sets `job`
  local line
  line=$(bash scripts/slurm.sh "${table[@]}" "$@")
  echo "$line"
  job=$(sed 's/^job \([0-9]*\).*/\1/' <<<"$line")
}

echo "== a worker that meets its time limit"
submit --array 1 --signal=B:INT@120 --time=60
wait_for 600 "an artefact in the middle" task_in_the_middle none
touch "$work/before"
scontrol update "jobid=$job" timelimit=2
echo "two minutes left, less what it ran: task 1, making $making"
wait_for 120 "its state" is_saved
wait_for 120 "its end" is_over

echo "== an array of 3: one task requeued, one cancelled, the others preempted"
submit --array 3
wait_for 600 "an artefact in the middle" task_in_the_middle none
requeued=$task
touch "$work/before"
scontrol requeue "${job}_$requeued"
echo "requeued: task $requeued, making $making"
wait_for 120 "its state" is_saved
wait_for 120 "its end" has_stopped
wait_for 600 "another one in the middle" task_in_the_middle "$requeued"
touch "$work/before"
scancel "${job}_$task"
cancelled=$task
echo "cancelled: task $cancelled, making $making"
wait_for 120 "its state" is_saved
wait_for 120 "its end" has_stopped
wait_for 600 "another one in the middle" task_in_the_middle "$cancelled"
touch "$work/before"
sbatch --parsable --partition=first --cpus-per-task=3 --output=/dev/null --wrap true >/dev/null
echo "preempted: the others, task $task making $making"
wait_for 120 "its state" is_saved
wait_for 120 "its end" has_stopped
wait_for 3600 "the end of the array" is_over
tail -n +1 runs/logs/slurm-"$job"_*.log
for number in 1 2 3; do scontrol show job "${job}_$number" | grep -oE "ArrayTaskId=[0-9]|(JobState|Restarts|ExitCode)=[^ ]*" | paste -sd' '; done | tee "$work/ends"
grep -q "ArrayTaskId=$cancelled .*JobState=CANCELLED" "$work/ends" || fail "task $cancelled was not cancelled"
for number in "$requeued" "$task"; do
  grep -q "ArrayTaskId=$number .*JobState=COMPLETED.* Restarts=[1-9]" "$work/ends" || fail "task $number did not start again and end well"
done

# --- the same? ---------------------------------------------------------------------------------

bytes() { (cd "$1" && find runs -name '*.npy' -o -name '*.safetensors' | sort | xargs sha256sum); }
numbers() { (cd "$1" && python scripts/table.py "${table[@]}" --format csv | cut -d, -f1-3); }
diff <(bytes "$work/alone") <(bytes "$work/cluster") || fail "an artefact is not that of one process"
diff <(numbers "$work/alone") <(numbers "$work/cluster") || fail "the table is not that of one process"
twice=$(sed -n 's/^\[[0-9/]*\] \([^:]*\): .*/\1/p' runs/logs/slurm-*.log | sort | uniq -d)
[ -z "$twice" ] || fail "made twice: $twice"
[ -z "$(find runs -name '*.partial')" ] || fail "something was left unfinished"
numbers "$work/cluster"
echo "== $(bytes "$work/cluster" | wc -l) files of bytes and the table: as by one process"
