#!/usr/bin/env bash
# Stops the run: every host saves the same step, and the exit status of the command is 75.
#
#   POD=pod.env bash scripts/pod/stop.sh
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=common.sh
source "$here/common.sh"
# shellcheck disable=SC2016  # the host expands it
on all 'kill -TERM -- "-$(cat run.pid)"'
