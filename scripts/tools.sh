#!/usr/bin/env bash
# Fetches the development tools that `make test` and `make check` need, where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."
tools="$PWD/.libtorch/tools"
export PATH="$tools/bin:$PATH"
# Checking and listing is all they do: built without optimisation, in a third of the time.
install() {
  CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    CARGO_PROFILE_RELEASE_DEBUG=0 cargo install --quiet --locked --root "$tools" "$@"
}
if ! command -v cargo-nextest >/dev/null; then
  echo "tools: building cargo-nextest (some minutes, once)"
  install --version 0.9.111 cargo-nextest
fi
if ! command -v cargo-deny >/dev/null; then
  echo "tools: building cargo-deny (some minutes, once)"
  install --version 0.19.0 cargo-deny
fi
