#!/usr/bin/env bash
# Tests this machine's GPU or TPU against its CPU, in float32:
#
#     bash tests/accelerator/run.sh                # the comparison, a few minutes
#     bash tests/accelerator/run.sh --all          # then everything that computes, on the accelerator
#     JAXSPEC_ACCELERATOR=cpu bash tests/accelerator/run.sh     # the comparison of two CPU devices
#
# Other arguments go to pytest. CI has no accelerator and skips these tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python="${PYTHON:-python}"
# The tests choose the CPU by default. Empty: jax takes the best device, and the CPU next to it.
export JAX_PLATFORMS="${JAX_PLATFORMS-}"
export XLA_PYTHON_CLIENT_PREALLOCATE="${XLA_PYTHON_CLIENT_PREALLOCATE:-false}"

everything=0
if [ "${1:-}" = "--all" ]; then
  everything=1
  shift
fi
"$python" -m pytest -rs -s tests/accelerator "$@"
if [ "$everything" = 1 ]; then
  # Tests compare models outside of decoding too: their float32 has to be float32.
  JAX_DEFAULT_MATMUL_PRECISION=highest "$python" -m pytest -rs \
    tests/ops tests/losses tests/verify tests/models tests/drafters tests/decoding \
    tests/training/test_step.py "$@"
fi
