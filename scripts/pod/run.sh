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
failures=0

# What a host does: "running", "installed", or "empty"; nothing at all if it does not answer.
doing() {
  # shellcheck disable=SC2016  # the host expands it
  on "$1" 'if [ -e run.pid ] && kill -0 "$(cat run.pid)"; then echo running
    elif [ -e jaxspec/.installed ]; then echo installed; else echo empty; fi' 2>/dev/null || true
}

# Ends what is left of a run: the other hosts end by themselves when one has ended, but not at once.
end_rest() {
  # shellcheck disable=SC2016
  on all '[ ! -e run.pid ] || kill -- "-$(cat run.pid)" 2>/dev/null || true; rm -f run.pid' || true
}

# The slice may be going away, or a host or the network may not be up yet: try again later.
again() {
  failures=$((failures + 1))
  say "$1 ($failures of 10 times in a row)"
  [ "$failures" -lt 10 ] || {
    billed
    exit 1
  }
  sleep "$wait_seconds"
}

billed() {
  say "the slice is left as it is, and is billed: bash scripts/pod/delete.sh deletes it"
}

while true; do
  bash "$here/create.sh"
  # If a run is already in progress (this script was restarted), only wait for it.
  case "$(doing 0 | tail -n 1)" in
    running) ;;
    '')
      again "the first host does not answer"
      continue
      ;;
    *)
      case "$(doing all)" in
        *empty*)
          bash "$here/install.sh" || {
            again "the installation failed"
            continue
          }
          ;;
      esac
      bash "$here/start.sh" "$@" || {
        end_rest
        again "the start failed"
        continue
      }
      ;;
  esac
  failures=0
  started=$SECONDS
  status=""
  gone=""
  while [ -z "$status" ]; do
    sleep "$wait_seconds"
    # "running" while there is no status; nothing at all when the host does not answer.
    # shellcheck disable=SC2016
    answer=$(on 0 'cat run.status 2>/dev/null || { kill -0 "$(cat run.pid)" && echo running; } ||
      echo killed' 2>/dev/null | tail -n 1 || true)
    case "$answer" in
      running) ;;
      '')
        case "$(state)" in
          ABSENT | FAILED | SUSPEND* | DELET*)
            say "the slice is gone"
            status=$saved
            gone=yes
            ;;
        esac
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
      billed
      exit 1
    fi
  else
    say "failed with exit status $status; the last lines of every host:"
    on all 'tail -n 20 run.log' || true
    billed
    exit "$status"
  fi
  [ -n "$gone" ] || end_rest
done
