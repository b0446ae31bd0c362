#!/usr/bin/env bash
# Builds the documentation site into build/site. Every warning is an error.
#
#   bash scripts/build_docs.sh
#   bash scripts/build_docs.sh --site-dir FOLDER     arguments go to mkdocs build
#
# Open build/site/index.html; no network is needed. The search needs a server:
# python -m http.server --directory build/site
#
# Takes half a minute, after the packages of the extra "docs" are installed. PYTHON=python uses another
# environment than .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${PYTHON:-}" ]; then
  bash scripts/setup_venv.sh docs
  PYTHON=.venv/bin/python
fi
# The command reference is what commands print: no accelerator is needed for that. The second setting
# leaves out an advertisement of the theme.
export JAX_PLATFORMS=cpu NO_MKDOCS_2_WARNING=1
exec "$PYTHON" -m mkdocs build --strict --clean "$@"
