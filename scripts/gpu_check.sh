#!/usr/bin/env bash
# Everything that needs a GPU: gpu_check.sh GOLDEN_FOLDERS (separated by ":"). Works from a carried
# target/release/{mcl-rank,libmcl_nccl.so} on a machine without Rust or network; libtorch is MCL_LIBTORCH, or that
# of the machine's Python, or .libtorch. Skips politely without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
goldens=${1:-tests/goldens}
if [ ! -e /dev/nvidiactl ] && [ -z "${CUDA_VISIBLE_DEVICES:-}" ]; then
  echo "gpu-check skipped: no NVIDIA device on this machine"
  echo '{"skipped": "no NVIDIA device on this machine", "checks": []}' > gpu-check.json
  exit 0
fi
binary=target/release/mcl-rank
if [ ! -x "$binary" ]; then
  if ! command -v cargo >/dev/null; then
    echo "gpu-check: no $binary and no cargo to build it: carry it here (make release nccl on another machine)"
    exit 2
  fi
  bash scripts/setup.sh
  cargo build --release --bins -p mcl-rank
fi
if [ -z "${MCL_LIBTORCH:-}" ]; then
  MCL_LIBTORCH=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__))' 2>/dev/null || true)
  [ -n "$MCL_LIBTORCH" ] && [ -f "$MCL_LIBTORCH/lib/libtorch_cpu.so" ] || MCL_LIBTORCH="$PWD/.libtorch/torch"
fi
export LD_LIBRARY_PATH="$MCL_LIBTORCH/lib:${LD_LIBRARY_PATH:-}"
MCL_GOLDENS="$goldens" exec "$binary" gpu-check --out gpu-check.json
