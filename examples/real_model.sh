#!/usr/bin/env bash
# Speculative decoding with a released 1.5B-parameter model, on a CPU with 24 GB of memory.
#
#   bash examples/real_model.sh                      downloads Qwen2.5-Coder-1.5B-Instruct (3 GB)
#   MODEL=/models/Qwen3-1.7B bash examples/real_model.sh     a model that you have
#
# Nothing is trained: the drafts are looked up in the prompt and in the answer so far, as one block,
# as a tree of several continuations, or as a block whose size follows what is accepted. Every
# output is compared with the model's own, and the speed with that of the model alone. 5 prompts each
# of HumanEval, MBPP and Spec-Bench's summarisation, 64 tokens: an hour and a half on 2 cores. The
# same command continues after an interruption.
#
# DTYPE=bfloat16 halves the memory; outputs may then differ where two tokens are about equally
# likely. Each model and DTYPE has a folder of its own in runs/real_model; RUNS names another one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

model="${MODEL:-models/Qwen2.5-Coder-1.5B-Instruct}"
dtype="${DTYPE:-float32}"
runs="${RUNS:-runs/real_model/$(basename "$model")-$dtype}"
export MODEL="$model"

[ -x .venv/bin/python ] || bash scripts/setup_venv.sh
python=".venv/bin/python"
# shellcheck source=scripts/host_memory.env
source scripts/host_memory.env

if [ ! -f "$model/config.json" ]; then
  .venv/bin/hf download "Qwen/$(basename "$model")" --local-dir "$model"
fi
mkdir -p "$runs"

measure() { # name settings...
  local output="$runs/$1.json"
  shift
  if [ -f "$output" ]; then
    echo "$output is there already."
    return
  fi
  "$python" eval.py --config examples/real_model.py --target.dtype "$dtype" \
    --drafters ngram --references "$runs/references" --output "$output" "$@"
}

measure block
measure tree --evaluation.tree_nodes 14
measure adaptive --evaluation.adaptive_sizes 1 4 8

for table in "$runs"/*.md; do
  printf '\n%s\n' "$table"
  cat "$table"
done
