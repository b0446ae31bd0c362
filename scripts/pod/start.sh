#!/usr/bin/env bash
# Starts one command on every host, in the background, and returns. A second start ends nothing that
# runs: it is refused.
#
#   POD=pod.env bash scripts/pod/start.sh jaxspec train --config qwen3_8b --workdir gs://BUCKET/run ...
#
# On each host the output goes to ~/run.log, and the exit status to ~/run.status when it ends.
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=common.sh
source "$here/common.sh"
[ $# -gt 0 ] || die "say what to start: bash scripts/pod/start.sh jaxspec train --config ..."

on all "if [ -e run.pid ] && kill -0 \"\$(cat run.pid)\" 2>/dev/null; then
    echo 'a run is in progress here (see ~/run.log)' >&2; exit 2
  fi
  rm -f run.status
  export PATH=\"\$HOME/jaxspec/.venv/bin:\$PATH\"
  setsid nohup bash -c $(quoted "trap : TERM; $(quoted "$@"); echo \$? > run.status") > run.log 2>&1 < /dev/null &
  echo \$! > run.pid"
say "started; to watch it: bash scripts/pod/watch.sh"
