#!/usr/bin/env bash
# Opens exports in the tools that they are for, which are Python's: torchvision and timm strictly, Detectron2's and
# MMDetection's files against the lists of what those expect, their configurations as YAML and in mmengine; our forward
# pass against torchvision's on the exported weights. Tests examples/torchvision, and compares the other examples'
# configurations with the exported ones. Imports what torch wrote. Reads a run's event files with
# TensorBoard's own reader, and its metrics with the parser of Prometheus' client. Prints tables; fails on any difference.
# Apart from `make test`, which needs no Python. [INTEROP_VENV=folder] keeps the Python packages elsewhere than in
# .interop/venv.
set -euo pipefail
cd "$(dirname "$0")/.."
work="$PWD/.interop"
say() { printf 'interop: %s\n' "$*"; }
python="$(bash scripts/python.sh)"
venv="$(dirname "$(dirname "$python")")"

say "building mcl and a checkpoint of random weights at full size"
cargo build --quiet --bins -p mcl-cli -p mcl-rank
rm -rf "$work/checkpoints" "$work/exports" "$work/pictures"
mkdir -p "$work/exports"
cargo run --quiet -p mcl-export --example random_checkpoint -- crates/export/tests/data/names_r50.txt "$work/checkpoints"

mcl="${CARGO_TARGET_DIR:-target}/debug/mcl"
"$mcl" data generate scenes --count 1 --size 200 --out "$work/pictures" >/dev/null
picture="$(find "$work/pictures/images" -type f | head -1)"
for encoder in momentum online; do
  for pair in safetensors:safetensors torchvision:pth torchvision-fpn:pth detectron2:pkl mmdet:pth timm:pth timm:safetensors; do
    format="${pair%%:*}"
    "$mcl" checkpoint export "$work/checkpoints" --format "$format" --encoder "$encoder" \
      --out "$work/exports/$format-$encoder.${pair##*:}" >/dev/null
  done
  "$mcl" eval features "$work/checkpoints" --job configs/r50-imagenet.toml --encoder "$encoder" \
    --picture "$picture" --out "$work/exports/features-$encoder.safetensors" >/dev/null
done

say "opening them"
export PYTHONDONTWRITEBYTECODE=1
"$python" tests/interop/check.py --mcl "$mcl" --checkpoints "$work/checkpoints" --exports "$work/exports" \
  --numpy-1 "$venv/numpy-1"

say "fine-tuning torchvision's detectors, also from these"
"$python" -m pip install --quiet -r examples/torchvision/requirements.txt
MCL_EXPORTS="$work/exports" OMP_NUM_THREADS=1 "$python" -m unittest discover -s examples/torchvision

say "a run that is killed, goes back to its checkpoint and is continued, for TensorBoard"
rm -rf "$work/run" "$work/objects"
"$mcl" data generate objects --count 160 --out "$work/objects" >/dev/null
# Killed between the checkpoint after 10 steps and that after 20: nobody is left who holds the newest state.
# No function, so that what is killed is the program and not a shell around it.
job=("$mcl" run tests/interop/run.toml --set "data.source=$work/objects" --devices cpu --workers 2 --json)
"${job[@]}" --run-dir "$work/run" >"$work/first.log" 2>&1 &
first=$!
steps() { if [ -f "$work/$1/metrics.jsonl" ]; then wc -l <"$work/$1/metrics.jsonl"; else echo 0; fi; }
until_steps() {
  for _ in $(seq 1200); do
    if [ "$(steps "$1")" -ge "$2" ] || ! kill -0 "$3" 2>/dev/null; then break; fi
    sleep 0.05
  done
}
until_steps run 14 "$first"
# Its own end first, so that nothing is drained; what it started leaves when its input closes.
kill -KILL "$first" 2>/dev/null || true
wait "$first" 2>/dev/null || true
"${job[@]}" --run-dir "$work/run" >/dev/null
"$python" tests/interop/tensorboard_events.py "$work/run"

say "a run for Prometheus"
rm -rf "$work/scraped"
port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
"${job[@]}" --run-dir "$work/scraped" --page "127.0.0.1:$port" --set train.steps=100000 >"$work/scraped.log" 2>&1 &
scraped=$!
until_steps scraped 5 "$scraped"
code=0
"$python" tests/interop/metrics.py "http://127.0.0.1:$port/metrics" "$work/scraped" || code=$?
kill -KILL "$scraped" 2>/dev/null || true
wait "$scraped" 2>/dev/null || true
exit "$code"
