#!/usr/bin/env bash
# Sets up, builds and runs every test: the release build with all tests (the default model's too),
# then the unit tests under the address and undefined-behaviour sanitizers.
# usage: scripts/test.sh [--quick]      --quick leaves the sanitizers out
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --tests
export TRIMPOT_MODEL=${TRIMPOT_CACHE:-$HOME/.cache/trimpot}/SmolLM2-135M-Instruct.Q4_1.gguf
cmake --preset release >/dev/null
cmake --build --preset release
if [ "${1:-}" != --quick ]; then
  cmake --preset asan >/dev/null
  cmake --build --preset asan
  # The reference's own tests run no code of the product; the scalar kernels have tests of their own,
  # and take minutes for whole models.
  ctest --preset asan --label-exclude model \
    --exclude-regex '^Reference\.|/(ModelGradient|Production|SessionBits)\..*/scalar'
fi
ctest --preset release
