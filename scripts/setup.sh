#!/usr/bin/env bash
# Fetches what the project needs and cargo cannot: libtorch 2.11.0 (CPU half of the PyPI wheel) and the
# two small CUDA runtime libraries that libtorch_cpu.so links; cmake (for libjpeg-turbo) where missing.
# Idempotent: a finished step leaves a stamp and is not done again. Hashes are pinned.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=.libtorch
stamp="$dir/.complete-2.11.0-1"
say() { printf 'setup: %s\n' "$*"; }
need() { say "$1 is missing: install it ($2) and run make setup again"; exit 2; }

command -v cargo >/dev/null || need cargo "rustup, from rustup.rs"
command -v g++ >/dev/null || need g++ "apt-get install g++"
command -v python3 >/dev/null || need python3 "apt-get install python3 python3-pip"
python3 -m pip --version >/dev/null 2>&1 || need pip "apt-get install python3-pip"
case "$(uname -sm)" in
  "Linux x86_64") ;;
  *) say "libtorch is fetched for Linux x86_64 only, this is $(uname -sm): put a libtorch 2.11.0 at $dir/torch by hand"; exit 2 ;;
esac

# A bar where somebody looks, nothing in a log.
bar=--quiet
if [ -t 1 ]; then bar=--progress-bar=on; fi

if [ ! -f "$stamp" ]; then
  say "fetching libtorch 2.11.0 (531 MB) with pip, once"
  mkdir -p "$dir/wheels"
  platforms=""
  for n in 17 24 25 27 28; do platforms="$platforms --platform manylinux_2_${n}_x86_64"; done
  # shellcheck disable=SC2086
  python3 -m pip download "$bar" --no-deps --only-binary=:all: --require-hashes \
    --python-version 3.11 --implementation cp --abi cp311 --abi none $platforms --platform manylinux2014_x86_64 \
    -d "$dir/wheels" -r scripts/libtorch-requirements.txt
  say "unpacking it to $dir (650 MB)"
  rm -rf "$dir/torch" "$dir/nvidia"
  python3 scripts/unpack_libtorch.py "$dir/wheels" "$dir"
  rm -rf "$dir/wheels"
  touch "$stamp"
fi

tools="$dir/tools"
if [ ! -x "$tools/cmake/data/bin/cmake" ]; then
  say "fetching cmake (28 MB) with pip, once"
  python3 -m pip install "$bar" --root-user-action=ignore --upgrade --target "$tools" cmake==3.31.6
fi
if ! command -v nasm >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  say "installing nasm (libjpeg-turbo's SIMD kernels)"
  apt-get install -y -qq nasm >/dev/null 2>&1 || { apt-get update -qq >/dev/null 2>&1 && apt-get install -y -qq nasm >/dev/null 2>&1; } || true
fi
command -v nasm >/dev/null || say "nasm is missing: JPEG decoding will be about half as fast; apt-get install nasm, then cargo clean -p turbojpeg-sys"
say "ready: libtorch in $dir/torch"
