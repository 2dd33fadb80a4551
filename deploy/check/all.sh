#!/usr/bin/env bash
# What deploy/ describes, tried as far as one machine allows. As root it installs what is missing with apt-get.
set -euo pipefail
cd "$(dirname "$0")/../.."
need() {
  command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] && return
  shift
  [ "$(id -u)" = 0 ] || { echo "deploy-check: apt-get install $*" >&2; exit 1; }
  echo "deploy-check: installing $*"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
need slurmctld slurmctld slurmd slurm-client munge
need sshd openssh-server openssh-client
need systemd-analyze systemd
need docker-compose docker-compose
# Unpacked, not installed: nothing of it is to run.
mkdir -p .interop
promtool=.interop/prometheus/usr/bin/promtool
if [ ! -x "$promtool" ]; then
  deb="$(mktemp -d)"
  (cd "$deb" && apt-get download -qq prometheus)
  dpkg -x "$deb"/prometheus_*.deb .interop/prometheus
fi
venv=.interop/deploy
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet kubernetes-validate jsonpatch PyYAML

"$venv/bin/python" deploy/check/manifests.py deploy/kubernetes
(cd deploy/container && docker-compose --profile operator config --quiet) && echo "compose: fits"
units="$(mktemp -d)"
for unit in deploy/systemd/*.service; do
  # The program need not be installed here: any other stands in for it.
  sed -e 's#/usr/local/bin/mcl#/bin/true#' "$unit" >"$units/$(basename "$unit")"
done
systemd-analyze verify "$units"/*.service && echo "systemd: units fit"
bash -n deploy/ssh/mcl-ssh deploy/slurm/mcl.sbatch
PROMTOOL="$promtool" deploy/check/prometheus.sh
deploy/check/ssh.sh
deploy/check/slurm.sh
