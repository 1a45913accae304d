#!/usr/bin/env bash
# Builds llama-bench of an ik_llama.cpp checkout (https://github.com/ikawrakow/ik_llama.cpp) for run.py.
#
# usage: [JOBS=n] build_ik_llama_cpp.sh CHECKOUT DIR
#   CHECKOUT   the source tree
#   DIR        gets build/bin/llama-bench; about 20 core minutes
set -euo pipefail

if [ $# -ne 2 ] || [ ! -f "$1/CMakeLists.txt" ]; then
  echo "usage: $0 CHECKOUT DIR" >&2
  exit 2
fi
mkdir -p "$2"
source_dir=$(cd "$1" && pwd) dir=$(cd "$2" && pwd)
# Native code for this machine: a peer is measured at its best.
cmake -S "$source_dir" -B "$dir/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
  -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF >"$dir/cmake.log" 2>&1 || { tail -20 "$dir/cmake.log" >&2; exit 1; }
ninja -C "$dir/build" -j "${JOBS:-$(nproc)}" llama-bench
echo "$dir/build/bin/llama-bench"
