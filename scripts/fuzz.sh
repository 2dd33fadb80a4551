#!/usr/bin/env bash
# Fuzzes every decoder of bytes from outside, or one: fuzz.sh SECONDS [TARGET]. Begins with good inputs, keeps what it
# learns in .fuzz/corpus and what fails in .fuzz/artifacts; fails where anything failed.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds="${1:-60}"
tools="$PWD/.libtorch/tools"
export PATH="$tools/bin:$PATH"
if ! command -v cargo-fuzz >/dev/null; then
  echo "fuzz: building cargo-fuzz (once)"
  cargo install --quiet --locked --root "$tools" --version 0.13.1 cargo-fuzz
fi
cargo run --quiet -p mcl-decoder-tests -- .fuzz/corpus
# Instrumentation is behind a switch that the stable compiler takes only so.
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$PWD/.fuzz/target"
targets="${2:-$(sed -n 's/^name = "\(.*\)"$/\1/p' tests/fuzz/Cargo.toml | grep -v '^mcl-fuzz$')}"
failed=()
for target in $targets; do
  mkdir -p ".fuzz/artifacts/$target"
  echo "fuzz: $target, $seconds s"
  cargo fuzz run --fuzz-dir tests/fuzz "$target" ".fuzz/corpus/$target" -- -max_total_time="$seconds" \
    -rss_limit_mb=1024 -malloc_limit_mb=128 -timeout=10 -max_len=16384 -print_final_stats=1 -verbosity=0 \
    -artifact_prefix="$PWD/.fuzz/artifacts/$target/" 2>&1 | tee ".fuzz/$target.log" | tail -n 12 || failed+=("$target")
done
if [ "${#failed[@]}" -gt 0 ]; then
  echo "fuzz: failed: ${failed[*]}; the inputs lie in .fuzz/artifacts"
  exit 1
fi
echo "fuzz: nothing found"
