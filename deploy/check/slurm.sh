#!/usr/bin/env bash
# deploy/slurm/mcl.sbatch under a real SLURM of one node on loopback: two workers train, one loses its step to a SIGKILL, the
# batch script is told that its time is up, the job comes back out of the queue and finishes. [MCL=program]
set -euo pipefail
cd "$(dirname "$0")/../.."
for program in slurmctld slurmd sbatch munged; do
  command -v "$program" >/dev/null || {
    echo "slurm: $program is missing: apt-get install slurmctld slurmd slurm-client munge" >&2
    exit 1
  }
done
mcl="$(realpath "${MCL:-target/debug/mcl}")"
lab="$(mktemp -d)"
mkdir -p "$lab"/{state,spool,munge}
chmod 700 "$lab/munge"
stop() {
  scancel --full --signal=KILL --user="$(id -un)" 2>/dev/null || true
  for pid in slurmd slurmctld munge/pid; do
    local file="$lab/$pid"
    [ -f "$file" ] || file="$file.pid"
    [ ! -f "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
  done
}
trap stop EXIT
fail() {
  echo "slurm: $1" >&2
  tail -n 30 "$lab"/*.log >&2 || true
  exit 1
}

# munged and SLURM refuse keys that others can read.
(umask 077 && head -c 1024 /dev/urandom >"$lab/munge/key")
munged --force --key-file="$lab/munge/key" --socket="$lab/munge/socket" --pid-file="$lab/munge/pid" \
  --log-file="$lab/munge/log" --seed-file="$lab/munge/seed"
cat >"$lab/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$lab/munge/socket
CredType=cred/munge
StateSaveLocation=$lab/state
SlurmdSpoolDir=$lab/spool
SlurmctldPidFile=$lab/slurmctld.pid
SlurmdPidFile=$lab/slurmd.pid
SlurmctldLogFile=$lab/slurmctld.log
SlurmdLogFile=$lab/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SchedulerParameters=sched_interval=1
KillWait=5
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$lab/slurm.conf"
slurmctld
slurmd

"$mcl" data generate objects --out "$lab/objects" --count 400 --seed 1 >/dev/null
export MCL="$mcl" MCL_ADDRESS=127.0.0.1 MCL_PORT="${MCL_PORT:-7170}" MCL_DEVICES=cpu
url="https://127.0.0.1:$MCL_PORT"
export MCL_TLS="$lab/run.certs/operator"
job=$(sbatch --parsable --ntasks=2 --cpus-per-task=1 --output="$lab/job.log" deploy/slurm/mcl.sbatch "$PWD/configs/demo.toml" \
  "$lab/run" --set "data.source=$lab/objects" --set train.steps=60 --set train.schedule_steps=60 --set train.threads_per_rank=1 \
  --set checkpoint.every_steps=20)
echo "slurm: job $job"

committed() { "$mcl" status --coordinator "$url" --json 2>/dev/null | python3 -c 'import json, sys
try: print(json.load(sys.stdin).get("committed_steps", 0))
except ValueError: print(0)'; }
state() { scontrol show job "$job" --oneliner | grep -o 'JobState=[A-Z]*'; }
until_step() {
  for ((i = 0; i < 1200; i++)); do
    [ "$(committed)" -lt "$1" ] || return 0
    [ "$(state)" != JobState=FAILED ] || fail "the job failed"
    sleep 0.1
  done
  fail "step $1 was not reached in two minutes"
}

until_step 8
step=$(squeue --steps --job="$job" --noheader --format=%i | grep -v -e batch -e extern | tail -n 1)
echo "slurm: killing step $step of job $job after step $(committed)"
scancel --signal=KILL "$step"
until_step 20
echo "slurm: the batch script is told that its time is up"
scancel --batch --signal=TERM "$job"
# SLURM lets a job that was requeued wait two minutes: until its old credential has ended.
for ((i = 0; i < 4200; i++)); do
  [ "$(state)" != JobState=COMPLETED ] || break
  [ "$(state)" != JobState=FAILED ] || fail "the job failed"
  sleep 0.1
done
[ "$(state)" = JobState=COMPLETED ] || fail "the job is $(state)"
restarts=$(scontrol show job "$job" --oneliner | grep -o 'Restarts=[0-9]*')
"$mcl" ledger verify "$lab/run"
generations=$(python3 -c 'import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
assert [r["step"] for r in rows] == list(range(len(rows))), "steps are missing or doubled"
print(len({r["generation"] for r in rows}), len(rows))' "$lab/run/metrics.jsonl")
echo "slurm: job $job COMPLETED, $restarts, generations and steps: $generations"
[ "${generations% *}" -ge 3 ] || fail "fewer generations than faults"
[ "$restarts" = Restarts=1 ] || fail "the job was not requeued once"
