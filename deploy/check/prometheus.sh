#!/usr/bin/env bash
# What a coordinator answers to Prometheus, alerts and scrape configuration, as Prometheus' own promtool sees them.
# [MCL=program PROMTOOL=program]
set -euo pipefail
cd "$(dirname "$0")/../.."
mcl="$(realpath "${MCL:-target/debug/mcl}")"
promtool="${PROMTOOL:-promtool}"
lab="$(mktemp -d)"
page="127.0.0.1:${MCL_PAGE_PORT:-7280}"
"$promtool" check rules deploy/prometheus/alerts.yml
"$promtool" check config deploy/prometheus/prometheus.yml
"$mcl" data generate objects --out "$lab/objects" --count 200 --seed 1 >/dev/null
sed -e "s#^source = .*#source = \"$lab/objects\"#" -e 's/^steps = .*/steps = 2000/' -e 's/^schedule_steps = .*/schedule_steps = 2000/' \
  configs/demo.toml >"$lab/job.toml"
"$mcl" run "$lab/job.toml" --workers 2 --devices cpu --run-dir "$lab/run" --page "$page" >"$lab/job.log" 2>&1 &
job=$!
trap "kill -INT $job 2>/dev/null || true" EXIT
for _ in $(seq 600); do
  [ "$(wc -l 2>/dev/null <"$lab/run/metrics.jsonl" || echo 0)" -ge 5 ] && break
  kill -0 $job 2>/dev/null || { cat "$lab/job.log" >&2; exit 1; }
  sleep 0.2
done
curl --silent --fail "http://$page/metrics" >"$lab/metrics"
grep -q '^mcl_committed_steps' "$lab/metrics" || { head -n 20 "$lab/metrics" >&2; exit 1; }
"$promtool" check metrics <"$lab/metrics"
echo "prometheus: promtool takes $(grep -c '^# TYPE' "$lab/metrics") families, alerts and configuration"
