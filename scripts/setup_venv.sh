#!/usr/bin/env bash
# Makes .venv in the root of the repository and installs jaxspec into it, editable, at pinned versions.
#
#   bash scripts/setup_venv.sh            runtime packages only
#   bash scripts/setup_venv.sh test,dev   these extras as well
#
# A second call returns at once unless pyproject.toml or constraints.txt has changed.
# PYTHON=/path/to/python chooses the interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras="${1:-}"
venv_python=".venv/bin/python"
stamp=".venv/jaxspec-installed"

die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  if [ -n "${PYTHON:-}" ]; then
    new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a working Python 3.11 or newer."
    printf '%s\n' "$PYTHON"
    return
  fi
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    if new_enough "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer found. Install one, or name it: PYTHON=/path/to/python3.12 bash $0"
}

# One line for each set of extras that was installed from exactly these two files.
wanted="$(cat pyproject.toml constraints.txt | cksum | tr ' ' '-') ${extras:-runtime}"
if [ -x "$venv_python" ] && [ -f "$stamp" ] && grep -qxF -- "$wanted" "$stamp"; then
  exit 0
fi

if ! new_enough "$venv_python"; then
  [ ! -e .venv ] || die ".venv exists but has no working Python 3.11+: move it away and run this again."
  python="$(find_python)"
  printf 'setup: making .venv with %s\n' "$("$python" --version)"
  "$python" -m venv .venv ||
    die "could not make .venv (on Debian and Ubuntu: install the package python3-venv)."
fi

started=$SECONDS
printf 'setup: installing packages (%s; about 1.3 GB, a minute or two) ...\n' "${extras:-runtime only}"
# Modules are compiled when they are imported, and most never are.
"$venv_python" -m pip install --quiet --disable-pip-version-check --no-compile \
  --constraint constraints.txt --editable ".${extras:+[$extras]}" ||
  die "pip failed; its message is above."

# A set of extras includes the runtime packages.
hash="${wanted%% *}"
{
  if [ -f "$stamp" ]; then grep -F -- "$hash " "$stamp" || true; fi
  printf '%s runtime\n' "$hash"
  printf '%s\n' "$wanted"
} | sort -u >"$stamp.new"
mv "$stamp.new" "$stamp"
printf 'setup: ready after %d s\n' "$((SECONDS - started))"
