#!/usr/bin/env bash
# The tables of diffusion decoding in docs/results.md: draft graphs are calibrated on training
# prompts, then passes are counted on other prompts, for every rule, length and number of drafts.
#
#   bash scripts/llada_tables.sh runs/real
#
# Needs runs/real/target (configs/tiny_real_target.py); trains runs/real/mdlm and runs/real/llada if
# they are not there. Files that are there are not made again. PARTS="cold warm others" leaves parts
# out. About an hour on two cores, training aside.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -lt 1 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
fi
runs="$1"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
python="${PYTHON:-.venv/bin/python}"
# shellcheck source=scripts/host_memory.env
source scripts/host_memory.env
out="$runs/llada"
config=(--config configs/tiny_real_llada.py --target.path "$out/export" --evaluation.timing_prompts 0)

for name in mdlm llada; do
  if [ ! -f "$runs/$name/export/config.json" ]; then
    "$python" train.py --config "configs/tiny_real_$name.py" --workdir "$runs/$name"
  fi
done

rule() { # scheduled or a threshold -> settings
  if [ "$1" != scheduled ]; then
    printf '%s\n' --diffusion.unmasking threshold --diffusion.threshold "$1"
  fi
}

measure() { # file, then settings
  local file="$out/$1.json"
  shift
  if [ -f "$file" ]; then return; fi
  "$python" eval.py "${config[@]}" --output "$file" "$@"
}

rules=(scheduled 0.9 0.8 0.7)
for name in "${rules[@]}"; do
  readarray -t settings < <(rule "$name")
  if [ ! -f "$out/graph-$name.json" ]; then
    "$python" -c 'from jaxspec.cli.main import main; main()' calibrate "${config[@]}" \
      "${settings[@]}" --evaluation.max_new_tokens 256 --source gsm8k \
      --output "$out/graph-$name.json"
  fi
done

for part in ${PARTS:-cold warm others}; do
  for name in "${rules[@]}"; do
    readarray -t settings < <(rule "$name")
    settings+=(--diffusion.graph "$out/graph-$name.json")
    case $part in
      cold)
        for length in 128 256; do
          measure "$name-$length" "${settings[@]}" --evaluation.max_new_tokens "$length"
        done
        ;;
      warm) # the same random numbers for every decoder
        measure "$name-warm" "${settings[@]}" --evaluation.temperature 1 --diffusion.drafts \
          --diffusion.num_drafts 1 3 5 8 10 --evaluation.prompts 4
        ;;
      others) # other caches; block-causal attention of the same weights
        few=("${settings[@]}" --diffusion.drafts --evaluation.prompts 4)
        # The graph is not for block-causal passes: drafts that need no calibration.
        measure "$name-block-causal" "${settings[@]}" --diffusion.graph '' --evaluation.prompts 4 \
          --diffusion.block_causal True --diffusion.drafts ssd star
        for caching in none prefix; do
          for layout in mask batch; do
            measure "$name-$caching-$layout" "${few[@]}" --diffusion.caching $caching \
              --diffusion.layout $layout --diffusion.num_drafts 3 10
          done
        done
        ;;
    esac
  done
done
