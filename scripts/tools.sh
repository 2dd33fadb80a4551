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
# The page is tested in a real browser (tests/tests/page.rs), which says what to install where this could not.
if ! command -v chromedriver >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "tools: installing chromium and chromium-driver (half a minute)"
  browser=(--no-install-recommends chromium chromium-driver)
  apt-get install -y -qq "${browser[@]}" >/dev/null 2>&1 \
    || { apt-get update -qq >/dev/null 2>&1 && apt-get install -y -qq "${browser[@]}" >/dev/null 2>&1; } || true
fi
command -v chromedriver >/dev/null || echo "tools: chromium and chromedriver are missing: tests of the page will fail; apt-get install chromium chromium-driver"
