#!/usr/bin/env bash
# Builds llama.cpp's programs, the peer that reads the same GGUF files, for check_llama_cpp.sh and the benchmarks.
#
# usage: [JOBS=n] [PYTHON=python3] build_llama_cpp.sh DIR [TARGET...]
#   DIR      gets the source package, the source tree and build/bin with the programs
#   TARGET   default: llama-bench llama-perplexity llama-completion llama-finetune
#   JOBS     parallel compilers (default: all cores); about 15 core minutes in all
# The source comes from the source package of llama-cpp-python on PyPI, pinned, because that package vendors a
# complete llama.cpp tree. A package that already lies in DIR is used as it is. Needs pip, cmake, ninja, a C++ compiler.
set -euo pipefail

version=0.3.36
if [ $# -lt 1 ]; then
  echo "usage: $0 DIR [TARGET...]" >&2
  exit 2
fi
mkdir -p "$1"
dir=$(cd "$1" && pwd)
shift
if [ $# -eq 0 ]; then set -- llama-bench llama-perplexity llama-completion llama-finetune; fi

package=llama_cpp_python-$version
source_dir=$dir/$package/vendor/llama.cpp
if [ ! -f "$source_dir/CMakeLists.txt" ]; then
  if [ ! -f "$dir/$package.tar.gz" ]; then
    "${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary :all: "llama-cpp-python==$version" --dest "$dir"
  fi
  tar -x -z -f "$dir/$package.tar.gz" -C "$dir" "$package/vendor/llama.cpp"
fi

# Native code for this machine: a peer is measured at its best.
cmake -S "$source_dir" -B "$dir/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
  -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF >"$dir/cmake.log" 2>&1 || { tail -20 "$dir/cmake.log" >&2; exit 1; }
ninja -C "$dir/build" -j "${JOBS:-$(nproc)}" "$@"
for target in "$@"; do echo "$dir/build/bin/$target"; done
