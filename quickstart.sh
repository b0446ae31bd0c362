#!/usr/bin/env bash
# From nothing to a measured result: sets up .venv, trains two drafters for the small target that
# ships in the package (same seed, same steps; they differ only in the loss), decodes held-out
# prompts with both, prints the table and draws the plots. Needs Python 3.11+ and nothing else, and
# downloads nothing but packages.
#
#   bash quickstart.sh
#   bash quickstart.sh --training.steps 3000     both trainings get the arguments
#
# All output goes to runs/quickstart. An interrupted run continues from where it stopped; remove
# runs/quickstart to start from scratch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

runs="runs/quickstart"
config="configs/quickstart.py"

say() {
  printf '\n[%d:%02d] %s\n' "$((SECONDS / 60))" "$((SECONDS % 60))" "$*"
}

say "1/4  Python packages"
bash scripts/setup_venv.sh
python=".venv/bin/python"
setup_seconds=$SECONDS
mkdir -p "$runs"

# Images for containers often set it. Each program would then compile its imports anew: 4 seconds.
unset PYTHONDONTWRITEBYTECODE
# shellcheck source=scripts/host_memory.env
source scripts/host_memory.env
# Both trainings run the same compiled step (the loss weights are its arguments).
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}"

# Both run at the same time, each on half of the cores: programs this small gain little from more
# threads, and two programs that share threads would wait for each other.
cores="$(nproc 2>/dev/null || echo 1)"
on_half() { # half command...
  local half="$1"
  shift
  if [ "$cores" -ge 2 ] && command -v taskset >/dev/null 2>&1; then
    taskset -c "$((half * (cores / 2)))-$((half * (cores / 2) + cores / 2 - 1))" "$@"
  else
    "$@"
  fi
}

say "2/4  In the background: drafter with position-uniform cross-entropy (the baseline)"
uniform_log="$runs/uniform.log"
printf 'Its progress: %s\n' "$uniform_log"
on_half 0 "$python" train.py --config "$config" --workdir "$runs/uniform" "$@" \
  --loss.decay None --loss.focal 0 --loss.chain 0 >"$uniform_log" 2>&1 &
uniform=$!
trap 'pkill -P "$uniform" 2>/dev/null || kill "$uniform" 2>/dev/null || true' EXIT

say "3/4  Drafter with the full recipe: decay + first-error focal + chain reward"
on_half 1 "$python" train.py --config "$config" --workdir "$runs/full" "$@"
if ! wait "$uniform"; then
  tail -n 20 "$uniform_log" >&2
  exit 1
fi
trap - EXIT
printf 'The baseline is trained too: %s\n' "$(grep '^step' "$uniform_log" | tail -n 1)"

say "4/4  Exact speculative decoding of held-out prompts with both"
"$python" eval.py --config "$config" --workdir "$runs/uniform" "$runs/full" \
  --output "$runs/results.json"

study="docs/results/study_quickstart.json"
if [ -f "$study" ] && [ "$#" -eq 0 ]; then
  printf '\nThat was one seed. The mean of three seeds, lowest to highest (%s):\n\n' "$study"
  .venv/bin/jaxspec study show "$study" --losses uniform full
fi

say "Done: $((SECONDS - setup_seconds)) s after the packages were installed."
printf 'Results  %s\n' "$runs/results.json"
printf 'Table    %s\n' "$runs/results.md"
for plot in "$runs"/*.png; do
  if [ -e "$plot" ]; then printf 'Plot     %s\n' "$plot"; fi
done
