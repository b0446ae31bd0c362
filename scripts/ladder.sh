#!/usr/bin/env bash
# The ladder of losses on one target: uniform, decay, decay + focal, full, each with every seed; then
# one evaluation of all of them, with a table and plots.
#
#   bash scripts/ladder.sh configs/quickstart.py runs/ladder "0 1 2" [settings for train.py ...]
#
# Finished runs are not repeated, and interrupted ones continue. JOBS=2 trains two at a time, each on
# its own core (faster on a CPU than two threads for one run). ROWS="uniform full" trains only these.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -lt 2 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
fi
config="$1" runs="$2" seeds="${3:-0}"
shift $(($# < 3 ? $# : 3))
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
python="${PYTHON:-.venv/bin/python}"
# shellcheck source=scripts/host_memory.env
source scripts/host_memory.env

declare -A ladder=(
  [uniform]="--loss.decay None --loss.focal 0 --loss.chain 0"
  [decay]="--loss.focal 0 --loss.chain 0"
  [focal]="--loss.chain 0"
  [full]=""
)

job=0
workdirs=()
train() { # name seed core settings...
  local workdir="$runs/$1-seed$2" pin=()
  if [ "${JOBS:-1}" -gt 1 ] && command -v taskset >/dev/null; then pin=(taskset -c "$3"); fi
  if [ -f "$workdir/export/config.json" ]; then return; fi
  mkdir -p "$workdir"
  local name="$1" seed="$2"
  shift 3
  # shellcheck disable=SC2086  # the ladder's entries are lists of words
  "${pin[@]}" "$python" train.py --config "$config" --workdir "$workdir" --training.seed "$seed" \
    --data.seed "$seed" ${ladder[$name]} "$@" >"$workdir/train.log" 2>&1 ||
    { tail -n 5 "$workdir/train.log" >&2; return 1; }
  printf '%s: %s\n' "$workdir" "$(tail -n 2 "$workdir/train.log" | head -n 1)"
}

for seed in $seeds; do
  for name in ${ROWS:-uniform decay focal full}; do
    workdirs+=("$runs/$name-seed$seed")
    train "$name" "$seed" $((job % ${JOBS:-1})) "$@" &
    job=$((job + 1))
    if [ $((job % ${JOBS:-1})) -eq 0 ]; then wait; fi
  done
done
wait

exec "$python" eval.py --config "$config" --workdir "${workdirs[@]}" --output "$runs/results.json"
