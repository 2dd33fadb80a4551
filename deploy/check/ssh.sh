#!/usr/bin/env bash
# deploy/ssh/mcl-ssh against a real sshd on loopback: two workers on "two hosts", one connection is cut, the job finishes.
# [MCL=program]
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || { echo "ssh: sshd is missing: apt-get install openssh-server" >&2; exit 1; }
mcl="$(realpath "${MCL:-target/debug/mcl}")"
lab="$(mktemp -d)"
port="${SSH_PORT:-2222}"
fail() {
  echo "ssh: $1" >&2
  tail -n 30 "$lab/job.log" "$lab/sshd.log" >&2 || true
  exit 1
}
ssh-keygen -q -t ed25519 -N '' -f "$lab/host"
ssh-keygen -q -t ed25519 -N '' -f "$lab/me"
cp "$lab/me.pub" "$lab/authorized"
mkdir -p /run/sshd
/usr/sbin/sshd -D -e -f /dev/null -o Port="$port" -o ListenAddress=127.0.0.1 -o HostKey="$lab/host" -o PidFile=none \
  -o AuthorizedKeysFile="$lab/authorized" -o StrictModes=no -o PermitRootLogin=yes 2>"$lab/sshd.log" &
sshd=$!
trap "kill $sshd 2>/dev/null || true" EXIT

"$mcl" data generate objects --out "$lab/objects" --count 400 --seed 1 >/dev/null
sed -e "s#^source = .*#source = \"$lab/objects\"#" -e 's/^steps = .*/steps = 40/' -e 's/^schedule_steps = .*/schedule_steps = 40/' \
  -e 's/^every_steps = .*/every_steps = 20/' configs/demo.toml >"$lab/job.toml"
export MCL="$mcl" MCL_PORT="${MCL_PORT:-7270}" MCL_DEVICES=cpu
export SSH="ssh -o BatchMode=yes -p $port -i $lab/me -o UserKnownHostsFile=$lab/known -o StrictHostKeyChecking=accept-new"
deploy/ssh/mcl-ssh "$lab/job.toml" "$lab/run" 127.0.0.1 127.0.0.1 localhost >"$lab/job.log" 2>&1 &
job=$!
committed() { [ -f "$lab/run/metrics.jsonl" ] && wc -l <"$lab/run/metrics.jsonl" || echo 0; }
for ((i = 0; i < 1200; i++)); do
  [ "$(committed)" -lt 8 ] || break
  kill -0 $job 2>/dev/null || fail "it ended early"
  sleep 0.1
done
echo "ssh: cutting one connection after step $(committed)"
pkill -KILL -f "^ssh .* localhost .*--name" || fail "no connection to cut"
wait $job || fail "mcl-ssh ended with $?"
"$mcl" ledger verify "$lab/run"
[ "$(committed)" = 40 ] || fail "$(committed) steps"
generations=$(python3 -c 'import json, sys
print(len({json.loads(line)["generation"] for line in open(sys.argv[1])}))' "$lab/run/metrics.jsonl")
[ "$generations" -ge 2 ] || fail "the cut was not noticed"
pgrep -f "$lab/run|--coordinator https://127.0.0.1:$MCL_PORT" >/dev/null && fail "something was left behind"
echo "ssh: 40 steps in $generations generations"
