#!/usr/bin/env bash
# Runs one command on the slice until it is done: creates the slice, installs jaxspec, starts the
# command on every host, and does so again after the slice was taken away or the run was stopped with
# its step saved (exit status 75). It can be ended and started again at any time.
#
#   POD=pod.env bash scripts/pod/run.sh jaxspec train --config qwen3_8b --workdir gs://BUCKET/run ...
#
# The exit status is the command's. A command that fails in another way is not tried again, except
# after a crash of a host or of the connection (3 times in a row without an hour in between).
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=common.sh
source "$here/common.sh"
[ $# -gt 0 ] || die "say what to run: bash scripts/pod/run.sh jaxspec train --config ..."

wait_seconds="${POD_POLL_SECONDS:-30}"
saved=75
crashes=0
while true; do
  bash "$here/create.sh"
  on 0 'test -x jaxspec/.venv/bin/jaxspec' >/dev/null 2>&1 || bash "$here/install.sh"
  # Already in progress when this script was started again: only wait for it.
  # shellcheck disable=SC2016  # the host expands it
  on 0 'test -e run.pid && kill -0 "$(cat run.pid)"' >/dev/null 2>&1 || bash "$here/start.sh" "$@"
  started=$SECONDS
  status=""
  while [ -z "$status" ]; do
    sleep "$wait_seconds"
    # "running" while there is no status; nothing at all when the host does not answer.
    # shellcheck disable=SC2016
    answer=$(on 0 'cat run.status 2>/dev/null || { kill -0 "$(cat run.pid)" && echo running; } ||
      echo killed' 2>/dev/null | tail -n 1 || true)
    case "$answer" in
      running) ;;
      '')
        if [ "$(state)" != ACTIVE ]; then
          say "the slice is gone"
          status=$saved
        fi
        ;;
      *) status="$answer" ;;
    esac
  done
  if [ "$status" = 0 ]; then
    say "done"
    exit 0
  elif [ "$status" = "$saved" ]; then
    say "stopped with its step saved: it continues"
    crashes=0
  elif [ "$status" = killed ] || [ "$status" -gt 75 ]; then
    [ $((SECONDS - started)) -lt 3600 ] || crashes=0
    crashes=$((crashes + 1))
    say "ended without a saved step ($status), $crashes of 3 times in a row"
    if [ "$crashes" -ge 3 ]; then
      on all 'tail -n 20 run.log' || true
      exit 1
    fi
  else
    say "failed with exit status $status; the last lines of every host:"
    on all 'tail -n 20 run.log' || true
    exit "$status"
  fi
  # The other hosts end by themselves when one has ended; what is left would be in the way.
  # shellcheck disable=SC2016
  [ "$(state)" != ACTIVE ] ||
    on all '[ ! -e run.pid ] || kill -- "-$(cat run.pid)" 2>/dev/null || true; rm -f run.pid' || true
done
