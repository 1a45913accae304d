#!/usr/bin/env bash
# The main job on the default model: quality before, tuning, export, the exported file loaded again
# from disk, quality after, one answer before and after side by side. About 5 minutes on 2 cores,
# after a first build of about 3.
# usage: scripts/demo.sh [OUTPUT_FOLDER]      default: runs/demo
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
out=${1:-runs/demo}
model=${TRIMPOT_CACHE:-$HOME/.cache/trimpot}/SmolLM2-135M-Instruct.Q4_1.gguf
[ -f build/release/CMakeCache.txt ] || cmake --preset release >/dev/null
cmake --build --preset release --target trimpot | tail -n 1
trimpot=build/release/src/cli/trimpot
mkdir -p "$out"
python3 scripts/make_demo_data.py --out-dir "$out" >/dev/null

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$@"; }

say "The task: turn a sentence into strict JSON. Names, towns, items and sentence patterns of the"
say "held-out part do not occur in the training part."
head -n 2 "$out/demo-train.jsonl"

say "1. Before: the model as it is ($(du -h "$model" | cut -f 1)), 100 held-out sentences"
$trimpot eval match -m "$model" --data "$out/demo-heldout.jsonl" --limit 100 -n 48 --show 100 \
  --json >"$out/before.json"
echo "exact match: $(field "$out/before.json" exact_match) %"

say "2. Tuning the scales of the quantized file"
$trimpot tune -m "$model" --data "$out/demo-train.jsonl" -o "$out/tuned.gguf" --max-steps 250

say "3. What changed in the file"
$trimpot diff "$model" "$out/tuned.gguf" | tail -n 1

say "4. After: the exported file, loaded from disk, the same 100 sentences"
$trimpot eval match -m "$out/tuned.gguf" --data "$out/demo-heldout.jsonl" --limit 100 -n 48 \
  --show 100 --json >"$out/after.json"
echo "exact match: $(field "$out/before.json" exact_match) % before, $(field "$out/after.json" exact_match) % after"

say "5. One answer, before and after"
python3 scripts/demo_picture.py "$out/before.json" "$out/after.json" "$out/before-after.svg"
echo
echo "Files in $out: tuned.gguf (loads in llama.cpp and Ollama), tuned.run/loss.svg, before-after.svg"
echo "Talk to it:  $trimpot chat -m $out/tuned.gguf"
