#!/usr/bin/env bash
# Creates .venv-third-party in the repository root: other people's programs that load what jaxspec
# exports. The tests in tests/third_party run them there, apart from jaxspec's own packages.
#
#   bash scripts/setup_third_party.sh
#
# The two libraries are installed without their pins, which contradict each other. What .venv holds
# already (torch, transformers) is used from there; jaxspec itself is not found that way. A second call
# returns at once unless this file or constraints.txt changed. Only Linux with Python 3.11 has a CPU
# build of torch: elsewhere this says so, does nothing, and the tests are skipped.
# PYTHON=/path/to/python3.11 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

libraries=(speculators==0.9.0 hs-connectors==0.9.0 dflash==0.1.0)
needed=(torch transformers safetensors pydantic loguru==0.7.3 openai==3.57.0 datasets==5.2.0)
folder=".venv-third-party"
stamp="$folder/installed"

is_311() {
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1
}

python=""
for candidate in "${PYTHON:-}" .venv/bin/python python3.11; do
  if [ -n "$candidate" ] && is_311 "$candidate"; then
    python="$candidate"
    break
  fi
done
if [ "$(uname -s)" != Linux ] || [ -z "$python" ]; then
  printf 'setup: no Linux with Python 3.11: tests of third-party programs will be skipped.\n'
  exit 0
fi

wanted="$(cat scripts/setup_third_party.sh constraints.txt | cksum)"
shared="$PWD/.venv/lib/python3.11/site-packages"
finds_torch=(-c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)')
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] &&
  "$folder/bin/python" "${finds_torch[@]}"; then
  exit 0
fi

started=$SECONDS
printf 'setup: creating %s (%s) ...\n' "$folder" "${libraries[*]}"
"$python" -m venv --clear "$folder"
printf '%s\n' "$shared" >"$folder/lib/python3.11/site-packages/shared.pth"
# Python compiles a module when it is imported; most modules never are.
install=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile)
if ! "${install[@]}" --constraint constraints.txt "${needed[@]}" ||
  ! "${install[@]}" --no-deps "${libraries[@]}"; then
  printf 'setup: pip failed; its message is above. Tests of third-party programs will be skipped.\n'
  exit 0
fi
printf '%s' "$wanted" >"$stamp"
printf 'setup: %s ready after %d s\n' "$folder" "$((SECONDS - started))"
