#!/usr/bin/env bash
# The main job on one machine: generated pictures (or DATA=folder of your own), a coordinator, a checkpoint
# service and two workers, MCL pre-training of a small ResNet-18 + FPN, and what came of it.
set -euo pipefail
cd "$(dirname "$0")/.."
mcl=target/debug/mcl
seed=${SEED:-1}
work=.demo
run="$work/run-seed$seed"
started=$SECONDS
say() { printf '\n== %s\n' "$*"; }
mkdir -p "$work"
overrides=(--set "train.seed=$seed")

if [ -n "${DATA:-}" ]; then
  run="$work/run-own-seed$seed"
  data=$(cd "$DATA" && pwd)
  say "pictures of your own: $data"
  $mcl data inspect "$data" | sed -n 1,12p
  overrides+=(--set "data.source=$data")
else
  say "generating pictures: objects to train on, objects and scenes to judge by"
  [ -f "$work/objects/annotations.json" ] || $mcl data generate objects --out "$work/objects" --count 6000 --seed 1
  [ -f "$work/held-out/annotations.json" ] || $mcl data generate objects --out "$work/held-out" --count 1000 --seed 2
  [ -f "$work/scenes/annotations.json" ] || $mcl data generate scenes --out "$work/scenes" --count 300 --seed 3
fi

rm -rf "$run"
say "pre-training with two workers (seed $seed)"
$mcl run configs/demo.toml --workers 2 --devices cpu --run-dir "$run" "${overrides[@]}" | tee "$work/summary.txt"

say "the ledger against the plan"
$mcl ledger verify "$run"

weights="$run/encoder.safetensors"
sheet="$run/montages.png"
$mcl checkpoint export "$run" --out "$weights" >/dev/null
$mcl data preview "$run/job.toml" --out "$sheet" --step 0 >/dev/null

if [ -z "${DATA:-}" ]; then
  say "did it learn? frozen features on held-out pictures"
  $mcl eval knn "$run" --train "$work/objects" --test "$work/held-out" --scenes "$work/scenes" | tee "$work/knn.txt"
fi

say "summary ($((SECONDS - started)) s)"
cat "$work/summary.txt"
[ -n "${DATA:-}" ] || cat "$work/knn.txt"
echo "  weights     $weights"
echo "  montages    $sheet"
