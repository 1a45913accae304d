#!/usr/bin/env bash
# Does llama.cpp read a model file of ours, and do both programs find the same perplexity?
#
# usage: check_llama_cpp.sh MODEL.gguf TEXT LLAMA_BIN_DIR TRIMPOT
#   LLAMA_BIN_DIR   build/bin of build_llama_cpp.sh (llama-perplexity, llama-completion)
#   TRIMPOT         the trimpot program
# Perplexity: windows of 512 tokens, 64 of them (CHUNKS=n changes it), 2 threads (THREADS=n). Both programs round
# activations to 8 bits in their own way, so equality is asked to 0.5 %. Exit 0: agreed, 1: not, 2: usage.
set -euo pipefail

if [ $# -ne 4 ]; then
  echo "usage: $0 MODEL.gguf TEXT LLAMA_BIN_DIR TRIMPOT" >&2
  exit 2
fi
model=$1 text=$2 bin=$3 trimpot=$4
chunks=${CHUNKS:-64} threads=${THREADS:-2} limit_percent=0.5

fail() {
  echo "FAIL: $*" >&2
  exit 1
}
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT

# --check-tensors makes llama.cpp refuse NaN and Inf in scales.
"$bin/llama-perplexity" -m "$model" -f "$text" -c 512 --chunks "$chunks" -t "$threads" --check-tensors \
  >"$log/ppl" 2>&1 || { tail -5 "$log/ppl" >&2; fail "llama-perplexity ended with an error or was stopped on $model"; }
theirs=$(sed -n 's/.*Final estimate: PPL = *\([0-9.]*\).*/\1/p' "$log/ppl" | tail -n 1)
[ -n "$theirs" ] || fail "llama-perplexity printed no final estimate for $model"

"$trimpot" eval ppl -m "$model" -f "$text" -c 512 --chunks "$chunks" -t "$threads" --json >"$log/ours" ||
  fail "trimpot eval ppl ended with an error or was stopped on $model"
ours=$(sed -n 's/.*"perplexity" *: *\([0-9.eE+-]*\).*/\1/p' "$log/ours" | tail -n 1)
[ -n "$ours" ] || fail "trimpot eval ppl printed no field \"perplexity\""

"$bin/llama-completion" -m "$model" -p "The capital of France is" -n 16 -t "$threads" --temp 0 -no-cnv --no-display-prompt \
  >"$log/text" 2>"$log/text.err" </dev/null || { tail -5 "$log/text.err" >&2; fail "llama-completion ended with an error or was stopped on $model"; }
generated=$(tr -s '\n' ' ' <"$log/text")
[ -n "${generated// /}" ] || fail "llama-completion generated nothing from $model"

difference=$(awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%.4f", 100 * (a - b) / b }')
echo "model       $model"
echo "perplexity  llama.cpp $theirs  trimpot $ours  difference $difference %  ($chunks windows of 512)"
echo "llama.cpp continues \"The capital of France is\":$generated"
awk -v d="$difference" -v l="$limit_percent" 'BEGIN { exit !(d <= l && -d <= l) }' ||
  fail "the perplexities differ by $difference %, more than $limit_percent %"
