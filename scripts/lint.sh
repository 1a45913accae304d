#!/usr/bin/env bash
# Formatting, layering and a short clang-tidy list. Needs clang-format and clang-tidy 14.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --no-model
for tool in clang-format clang-tidy; do
  command -v $tool >/dev/null && continue
  as_root=(); [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq $tool >/dev/null
done
git ls-files '*.h' '*.cc' | xargs clang-format --dry-run --Werror
python3 scripts/check_rules.py
# The preset that compiles every file by itself.
cmake --preset dev >/dev/null
git ls-files 'src/*.cc' | grep -v '/isa_' | xargs -P 2 -n 4 clang-tidy --quiet -p build/dev 2>/dev/null
