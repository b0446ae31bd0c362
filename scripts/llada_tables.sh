#!/usr/bin/env bash
# Measures the tables of diffusion decoding in docs/results.md: calibrates draft graphs on training
# prompts, then counts passes on other prompts, for every rule, length and number of drafts.
#
#   bash scripts/llada_tables.sh runs/real
#   python scripts/llada_tables.py runs/real/llada     prints the tables of what has been measured
#
# Needs runs/real/target (configs/tiny_real_target.py). Trains runs/real/mdlm, runs/real/llada and,
# for "blocks", runs/real/sdar if they do not exist. Existing files are kept.
# PARTS chooses the parts; the default is PARTS="cold weights thresholds warm others blocks". Takes
# three hours on one core, plus training.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -lt 1 ]; then
  sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
fi
runs="$1"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
python="${PYTHON:-.venv/bin/python}"
# shellcheck source=scripts/host_memory.env
source scripts/host_memory.env
out="$runs/llada"
config=(--config configs/tiny_real_llada.py --target.path "$out/export")

train() { # folder, the denoiser it starts from, then settings
  local folder="$runs/$1" from="$runs/$2/export"
  shift 2
  if [ -f "$folder/export/config.json" ]; then return; fi
  "$python" train.py --workdir "$folder" --target.path "$runs/target/export" \
    --denoiser.path "$from" "$@"
}

train mdlm target --config configs/tiny_real_mdlm.py
train llada mdlm --config configs/tiny_real_llada.py

rule() { # scheduled, factor or a threshold -> settings
  case $1 in
    scheduled) ;;
    factor) printf '%s\n' --diffusion.unmasking factor ;;
    *) printf '%s\n' --diffusion.unmasking threshold --diffusion.threshold "$1" ;;
  esac
}

measure() { # file, then settings
  local file="$out/$1.json"
  shift
  if [ -f "$file" ]; then return; fi
  "$python" eval.py "${config[@]}" --evaluation.timing_prompts 0 --output "$file" "$@"
}

calibrate() { # file, then settings
  local file="$out/$1.json"
  shift
  if [ -f "$file" ]; then return; fi
  "$python" -c 'from jaxspec.cli.main import main; main()' calibrate "${config[@]}" "$@" \
    --evaluation.max_new_tokens 256 --source gsm8k --output "$file"
}

for part in ${PARTS:-cold weights thresholds warm others blocks}; do
  rules=(scheduled 0.9 0.8 0.7)
  if [ "$part" = thresholds ]; then rules=(0.9 0.8 0.7 factor); fi
  for name in "${rules[@]}"; do
    readarray -t settings < <(rule "$name")
    graph=(--diffusion.graph "$out/graph-$name.json")
    if [ "$part" != blocks ]; then calibrate "graph-$name" "${settings[@]}"; fi
    case $part in
      cold)
        if [ "$name" != scheduled ]; then continue; fi
        measure "$name-256" "${graph[@]}" --evaluation.max_new_tokens 256
        measure "$name-128" "${graph[@]}"
        ;;
      weights) # Spiffy's degree-1 accumulation, from the same counts
        if [ "$name" != scheduled ]; then continue; fi
        calibrate graph-accumulated --weight accumulated
        measure accumulated-256 --diffusion.graph "$out/graph-accumulated.json" \
          --evaluation.max_new_tokens 256 --diffusion.drafts --diffusion.num_drafts 3 5 8 10
        ;;
      thresholds)
        measure "$name-256" "${settings[@]}" "${graph[@]}" --evaluation.max_new_tokens 256 \
          --diffusion.drafts
        measure "$name-256-uncalibrated" "${settings[@]}" --evaluation.max_new_tokens 256 \
          --diffusion.num_drafts 8
        ;;
      warm) # the same random numbers for every decoder
        measure "$name-warm" "${settings[@]}" "${graph[@]}" --evaluation.temperature 1 \
          --diffusion.drafts --evaluation.prompts 4
        ;;
      others) # other caches
        for caching in none prefix; do
          measure "$name-$caching-mask" "${settings[@]}" "${graph[@]}" --diffusion.drafts \
            --diffusion.caching $caching --evaluation.batch_size 1
          if [ "$name" != scheduled ] && [ "$name" != 0.9 ]; then continue; fi
          measure "$name-$caching-batch" "${settings[@]}" "${graph[@]}" --diffusion.drafts \
            --diffusion.caching $caching --evaluation.batch_size 1 --diffusion.layout batch \
            --diffusion.num_drafts 3 10
        done
        ;;
      blocks) # a block-causal model, cold and warm
        train sdar mdlm --config configs/tiny_real_llada.py --denoiser.context block_causal \
          --denoiser.block_size 32 --data.sequence_length 256 --data.batch_size 8 \
          --training.steps 800
        causal=(--target.path "$runs/sdar/export")
        calibrate "graph-blocks-$name" "${causal[@]}" "${settings[@]}"
        for temperature in 0 1; do
          measure "$name-blocks-$temperature" "${causal[@]}" "${settings[@]}" --diffusion.drafts \
            --diffusion.graph "$out/graph-blocks-$name.json" --evaluation.benchmarks gsm8k mbpp \
            --evaluation.temperature $temperature
        done
        ;;
    esac
  done
done
