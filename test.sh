#!/usr/bin/env bash
# Runs everything that CI runs: lint, format, types, tests. Arguments go to pytest:
#
#   bash test.sh                     everything
#   bash test.sh tests/losses -k chain
#   JAXSPEC_TEST_OPTIMIZED=1 bash test.sh    programs optimised as in a user's run
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage() {
  local name="$1" started=$SECONDS
  shift
  printf -- '-- %s: %s\n' "$name" "$*"
  "$@"
  printf -- '-- %s: %d s\n\n' "$name" "$((SECONDS - started))"
}

# Tests start many programs. Without bytecode on disk, each would compile its imports anew: 4 seconds.
unset PYTHONDONTWRITEBYTECODE

stage setup bash scripts/setup_venv.sh test,dev,docs
export PATH="$PWD/.venv/bin:$PATH"
export PYTHONHASHSEED=0

# Compiled programs are kept between runs: the second run is much faster. (tests/conftest.py says
# which programs are worth keeping.)
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"

# Compiling takes most of the time. Without most optimisations, the tests take two thirds of the time.
# XLA's older and quicker kernel emitters, and one piece of machine code per program, halve
# that. JAXSPEC_TEST_OPTIMIZED=1 compiles as a user's run does.
if [ -z "${JAXSPEC_TEST_OPTIMIZED:-}" ]; then
  export JAX_DISABLE_MOST_OPTIMIZATIONS=1
  quick="--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
  # XLA ends the process if it does not know a flag, and different versions know different flags.
  if XLA_FLAGS="$quick" python -c 'import jax; jax.devices()' >/dev/null 2>&1; then
    export XLA_FLAGS="${XLA_FLAGS:-} $quick"
  else
    printf -- '-- This XLA does not know %s: programs take longer to compile.\n\n' "$quick"
  fi
fi

# shellcheck source=scripts/host_memory.env
source scripts/host_memory.env

checks() {
  stage lint ruff check .
  stage format ruff format --check .
  stage shell shellcheck ./*.sh scripts/*.sh examples/*.sh scripts/pod/*.sh scripts/pod/*.sbatch
  stage types mypy
}

# Both keep one core busy for half a minute. What the checks say is printed in one piece.
said="$(mktemp)"
trap 'rm -f "$said"' EXIT
checks >"$said" 2>&1 &
running=$!
stage setup bash scripts/setup_third_party.sh
status=0
wait "$running" || status=$?
cat "$said"
rm -f "$said"
if [ "$status" -ne 0 ]; then
  exit "$status"
fi

if [ -z "${JAXSPEC_RAW_DATA:-}" ]; then
  printf -- '-- JAXSPEC_RAW_DATA is not set: tests on real data sets are skipped.\n\n'
fi
printf -- '-- %d s so far; tests:\n' "$SECONDS"
# The tests of a file share models and compiled functions, so they stay in one process. The order of
# the files is that of tests/conftest.py: the longest first.
exec python -m pytest -n "${JAXSPEC_TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder \
  --durations=10 "$@"
