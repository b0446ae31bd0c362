#!/usr/bin/env bash
# Builds the wheel, installs it outside of the checkout, and runs its commands in an empty folder.
#
#   PYTHON=python3.12 bash scripts/check_wheel.sh [FOLDER]
#
# FOLDER (default: a new temporary one) takes 1.5 GB; a minute or two of installing, then some of running.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="${1:-$(mktemp -d)}"
python="${PYTHON:-python3}"
mkdir -p "$folder/empty"

run() {
  printf '\n$ %s\n' "$*"
  "$@"
}

"$python" --version
"$python" -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" wheel --no-deps --wheel-dir "$folder" "$root"
"${pip[@]}" install --no-compile --constraint "$root/constraints.txt" "$folder"/jaxspec_decoding-*.whl

cd "$folder/empty"
unset PYTHONPATH
export PATH="$folder/venv/bin:$PATH" JAXSPEC_DATA_DIR="$folder/data"
# shellcheck source=host_memory.env
source "$root/scripts/host_memory.env"
run jaxspec --version
run python -c 'import jaxspec; print(jaxspec.__file__)'
run jaxspec configs
run jaxspec configs --copy quickstart
short=(--data.embedded-examples 300 --training.steps 20)
run jaxspec train --config quickstart --workdir runs/full "${short[@]}"
run jaxspec train --config quickstart.py --workdir runs/copy "${short[@]}" --training.steps 2
run jaxspec eval --config quickstart --workdir runs/full --output results.json \
  --evaluation.benchmarks embedded/math --evaluation.prompts 6 --evaluation.max-new-tokens 16 \
  --evaluation.timing-prompts 0
run jaxspec generate --target.path embedded --drafter runs/full --prompt 'What is 2 plus 3?' --max-new-tokens 24
run jaxspec export --help >/dev/null
run jaxspec doctor
printf '\ncheck_wheel: everything ran with %s\n' "$(python --version)"
