#!/usr/bin/env bash
# Builds libmcl_nccl.so, the NCCL half of the collective shim, beside mcl-rank: build_nccl.sh OUT_FOLDER
# Needs CUDA 13 headers only (no GPU, no nvcc); fetches them with pip into .libtorch/cuda-headers.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?"usage: build_nccl.sh OUT_FOLDER"}
headers=.libtorch/cuda-headers
if [ ! -f "$headers/.complete" ]; then
  echo "nccl: fetching CUDA 13 headers with pip"
  mkdir -p "$headers/wheels"
  platforms=""
  for n in 17 18 24 25 27 28; do platforms="$platforms --platform manylinux_2_${n}_x86_64"; done
  # shellcheck disable=SC2086
  python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp $platforms \
    --platform manylinux2014_x86_64 -d "$headers/wheels" -r scripts/cuda-header-requirements.txt
  python3 scripts/unpack_headers.py "$headers/wheels" "$headers"
  rm -rf "$headers/wheels"
  touch "$headers/.complete"
fi
includes="-Icrates/collective-sys/shim/gloo_stubs -I.libtorch/torch/include -I.libtorch/torch/include/torch/csrc/api/include"
for folder in "$headers"/nvidia/*/include "$headers"/nvidia/*/include/cccl; do
  [ -d "$folder" ] && includes="$includes -I$folder"
done
mkdir -p "$out"
# shellcheck disable=SC2086
g++ -O2 -fPIC -shared -std=c++17 -w -DGLOG_USE_GLOG_EXPORT $includes crates/collective-sys/shim/nccl.cpp \
  -L.libtorch/torch/lib -ltorch_cpu -lc10 -Wl,-rpath,'$ORIGIN' -o "$out/libmcl_nccl.so"
echo "nccl: $out/libmcl_nccl.so"
