#!/usr/bin/env bash
# Shows the output of the run as it is written. Only the first host prints progress; another one
# prints what goes wrong on it. Ctrl-C ends the watching, not the run.
#
#   POD=pod.env bash scripts/pod/watch.sh [HOST]        HOST: 0 (default), 1, ... or all
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=common.sh
source "$here/common.sh"
on "${1:-0}" 'tail -n 50 -F run.log'
