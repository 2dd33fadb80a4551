#!/usr/bin/env bash
# Everything that needs a GPU: gpu_check.sh GOLDEN_FOLDERS [mcl-rank gpu-check's options]; folders separated by ":".
# Works from carried target/release/{mcl,mcl-rank,libmcl_nccl.so} on a machine without Rust or network; libtorch is
# MCL_LIBTORCH, or that of the machine's Python (torch 2.11), or .libtorch. Skips politely without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
goldens=${1:-tests/goldens}
[ $# -gt 0 ] && shift
if [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ]; then
  echo "gpu-check skipped: no NVIDIA device on this machine"
  echo '{"skipped": "no NVIDIA device on this machine", "devices": 0, "checks": []}' > gpu-check.json
  exit 0
fi
binaries=target/release
if [ ! -x "$binaries/mcl-rank" ] || [ ! -x "$binaries/mcl" ]; then
  if ! command -v cargo >/dev/null; then
    echo "gpu-check: no $binaries/mcl and mcl-rank and no cargo to build them: carry them here (make release nccl elsewhere)"
    exit 2
  fi
  bash scripts/setup.sh
  cargo build --release --bins -p mcl-cli -p mcl-rank
  bash scripts/build_nccl.sh "$binaries"
fi
[ -f "$binaries/libmcl_nccl.so" ] || echo "gpu-check: no $binaries/libmcl_nccl.so: what needs NCCL will fail (make nccl)"
# The Python whose torch is the peer, and whose libtorch will do where no other is named.
if [ -z "${MCL_PYTHON:-}" ]; then
  MCL_PYTHON=python3
  for candidate in python3 python; do
    if "$candidate" -c 'import torch' 2>/dev/null; then
      MCL_PYTHON=$candidate
      break
    fi
  done
fi
if [ -z "${MCL_LIBTORCH:-}" ]; then
  MCL_LIBTORCH=$("$MCL_PYTHON" -c 'import os, torch; print(os.path.dirname(torch.__file__) if torch.__version__.startswith("2.11.") else "")' 2>/dev/null || true)
  [ -n "$MCL_LIBTORCH" ] && [ -f "$MCL_LIBTORCH/lib/libtorch_cpu.so" ] || MCL_LIBTORCH="$PWD/.libtorch/torch"
fi
if [ ! -f "$MCL_LIBTORCH/lib/libtorch_cpu.so" ]; then
  echo "gpu-check: no libtorch in $MCL_LIBTORCH: install torch 2.11 for Python, or point MCL_LIBTORCH at a libtorch 2.11.0"
  exit 2
fi
export MCL_PYTHON MCL_LIBTORCH MCL_GOLDENS="$goldens"
export LD_LIBRARY_PATH="$MCL_LIBTORCH/lib:${LD_LIBRARY_PATH:-}"
exec "$binaries/mcl-rank" gpu-check --out gpu-check.json "$@"
