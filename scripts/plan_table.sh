#!/usr/bin/env bash
# What the four full-size configurations take on slices of TPUs and on a host of GPUs, as a table in
# Markdown. It needs no accelerator: libtpu compiles for TPUs that are not there.
#
#   scripts/plan_table.sh > table.md
#   CONFIGS="qwen3_4b" TOPOLOGIES="v6e:2x4,8xH100" scripts/plan_table.sh --utilisation 0.5
#
# Compiling takes a few minutes for each line, and up to 4 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."

configs=${CONFIGS:-qwen3_4b qwen3_8b llama3_8b llama32_3b}
topologies=${TOPOLOGIES:-v5e:4x4,v5p:2x2x2,v5p:4x4x4,v6e:2x4,8xH100}
skip=0
status=0
for config in $configs; do
  # The head of the table is printed once.
  "${PYTHON:-python}" -m jaxspec.cli.main plan --config "configs/$config.py" \
    --topology "$topologies" --table "$@" | tail -n "+$((skip + 1))" || status=1
  skip=2
done
exit "$status"
