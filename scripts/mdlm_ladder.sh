#!/usr/bin/env bash
# Masked-diffusion drafters for one target: trained on random masks, then on blocks to draft with each
# loss, and a drafter to compare them with; then their accepted lengths are measured.
#
#   bash scripts/mdlm_ladder.sh runs/real
#
# Needs runs/real/target (configs/tiny_real_target.py). Finished runs are not repeated, and interrupted
# ones continue. ROWS="uniform full" trains only these; TRAIN_ONLY=1 skips the measurement. Two hours
# on one core.
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

train() { # name config settings...
  local workdir="$runs/$1" config="$2"
  shift 2
  if [ -f "$workdir/export/config.json" ]; then return; fi
  mkdir -p "$workdir"
  "$python" train.py --config "$config" --workdir "$workdir" --target.path "$runs/target/export" \
    "$@" >"$workdir/train.log" 2>&1 || { tail -n 5 "$workdir/train.log" >&2; return 1; }
  printf '%s: %s\n' "$workdir" "$(tail -n 2 "$workdir/train.log" | head -n 1)"
}

answers() { # text that the target itself wrote
  for source in gsm8k math code_instructions; do
    if [ -d "$runs/answers/$source" ]; then continue; fi
    "$python" -c 'from jaxspec.cli.main import main; main()' regenerate --source "$source" \
      --target.path "$runs/target/export" --output "$runs/answers/$source" --temperature 1 --top_p 1 \
      --max_new_tokens 192 --limit 640 --unfinished keep --batch_size 64 --shard_prompts 128
  done
}

declare -A ladder=(
  [uniform]=""
  [bidirectional]="--denoiser.context bidirectional --data.anchors 1 --data.batch_size 32"
  [decay]="--loss.decay 10"
  [focal]="--loss.decay 10 --loss.focal 0.3"
  [full]="--loss.decay 10 --loss.focal 0.3 --loss.chain 40"
  [lora]="--denoiser.lora_rank 16"
)
declare -A second=( # continue from uniform, as SpecDiff-2 continues from a drafter that can draft
  [more]=""
  [streak]="--loss.objective streak"
  [detached_streak]="--loss.objective detached_streak"
  [mixed_streak]="--loss.chain 40"
  [own_text]="--data.sources $runs/answers/gsm8k $runs/answers/math $runs/answers/code_instructions"
)

if [ ! -f "$runs/autoregressive/export/config.json" ]; then
  train autoregressive configs/tiny_real_autoregressive.py --target.path "" \
    --data.tokenizer "$runs/target/export"
fi
train mdlm configs/tiny_real_mdlm.py --denoiser.path "$runs/target/export"
config=configs/tiny_real_mdlm_draft.py
folders=("$runs/mdlm")
for name in ${ROWS:-uniform full bidirectional decay focal more streak detached_streak mixed_streak \
  own_text lora}; do
  folders+=("$runs/draft/$name")
  if [ "$name" = own_text ]; then answers; fi
  # shellcheck disable=SC2086  # the entries are lists of words
  if [ -n "${second[$name]+set}" ]; then
    train "draft/$name" $config --denoiser.path "$runs/draft/uniform" --training.steps 300 ${second[$name]}
  else
    train "draft/$name" $config --denoiser.path "$runs/mdlm" ${ladder[$name]}
  fi
done

if [ "${TRAIN_ONLY:-}" ]; then exit; fi
exec "$python" benchmarks/denoising.py --config $config --workdir "${folders[@]}" --drafts 8 \
  --temperatures 0 1 --prompts 10 --output "$runs/draft/results.json"
