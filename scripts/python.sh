#!/usr/bin/env bash
# Makes the Python that interop and bench use (torch, torchvision and what else exports are opened with; some GB, once)
# and prints its path. [INTEROP_VENV=folder] keeps it elsewhere than in .interop/venv.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${INTEROP_VENV:-$PWD/.interop/venv}"
python="$venv/bin/python"
if [ ! -f "$venv/.complete-3" ]; then
  echo "python: fetching torch, torchvision, timm and what they need with pip (some GB, once)" >&2
  python3 -m venv "$venv" >&2
  "$python" -m pip install --quiet -r tests/interop/requirements.txt >&2
  # Files of arrays must open in the numpy before 2 too.
  "$python" -m pip install --quiet --no-deps --target "$venv/numpy-1" numpy==1.26.4 >&2
  touch "$venv/.complete-3"
fi
echo "$python"
