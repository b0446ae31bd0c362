#!/usr/bin/env bash
# Installs this checkout, as committed, on every host of the slice: Python 3.12 and
# jaxspec-decoding[tpu,gcs] in ~/jaxspec/.venv. The images of Cloud TPU have an older Python, so uv
# brings one.
#
#   POD=pod.env bash scripts/pod/install.sh
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=common.sh
source "$here/common.sh"

root="$(cd "$here/../.." && pwd)"
archive="$(mktemp --suffix=.tar.gz)"
trap 'rm -f "$archive"' EXIT
git -C "$root" archive --format=tar.gz --output="$archive" HEAD
say "copying $(git -C "$root" rev-parse --short HEAD) to every host"
gcloud compute tpus tpu-vm scp "$archive" "$name:jaxspec.tar.gz" "${place[@]}" --worker=all
say "installing"
on all 'set -e
  rm -rf jaxspec
  mkdir jaxspec
  tar -xzf jaxspec.tar.gz -C jaxspec
  cd jaxspec
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --python 3.12 .venv
  python3 -m uv pip install --quiet --python .venv/bin/python --constraint constraints.txt ".[tpu,gcs]"
  .venv/bin/jaxspec --version
  touch .installed'
