#!/usr/bin/env bash
# Measures draft graphs on the LLaDA of configs/real_text_llada.py: calibrates three graphs on training
# questions of GSM8K (two ways of unmasking, two of weighting), then counts passes on other prompts.
#
#   bash scripts/draft_graphs.sh runs/real_text/llada
#
# The folder holds the trained model (train.py --config configs/real_text_llada.py --workdir FOLDER).
# Results go to FOLDER/graphs. Existing files are kept: after a stop, run the same command again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -lt 1 ]; then
  sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
fi
folder="$1"
graphs="$folder/graphs"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
# shellcheck source=scripts/host_memory.env
source scripts/host_memory.env
mkdir -p "$graphs"
common=(--config configs/real_text_llada.py --target.path "$folder/export")

measure() { # name settings...
  local output="$graphs/$1.json"
  shift
  [ -f "$output" ] || .venv/bin/python eval.py "${common[@]}" --evaluation.timing_prompts 0 \
    --diffusion.num_drafts "${sizes[@]}" --output "$output" "$@"
}

calibrate() { # name settings...
  local output="$graphs/$1.graph.json"
  shift
  [ -f "$output" ] || .venv/bin/jaxspec calibrate "${common[@]}" --source gsm8k \
    --output "$output" "$@"
}

sizes=(3 5 8 10)
threshold=(--diffusion.unmasking threshold --diffusion.threshold 0.9)
calibrate one_by_one
calibrate threshold "${threshold[@]}"
calibrate accumulated --weight accumulated

# One token per step, beside the drafts that need no calibration.
measure one_by_one --diffusion.graph "$graphs/one_by_one.graph.json"
# Several tokens per step.
measure threshold "${threshold[@]}" --diffusion.graph "$graphs/threshold.graph.json"
# Nodes chosen by Spiffy's degree-1 accumulation, from the same counts.
measure accumulated --diffusion.graph "$graphs/accumulated.graph.json" --diffusion.drafts
# Sampled.
measure temperature1 --diffusion.graph "$graphs/one_by_one.graph.json" --diffusion.drafts \
  --evaluation.temperature 1
# Other caches; one prompt at a time.
sizes=(3 10)
for caching in none prefix; do
  for layout in mask batch; do
    measure "$caching-$layout" --diffusion.graph "$graphs/one_by_one.graph.json" \
      --diffusion.drafts --diffusion.caching "$caching" --diffusion.layout "$layout" \
      --evaluation.batch_size 1 --evaluation.prompts 8
  done
done
