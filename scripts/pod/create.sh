#!/usr/bin/env bash
# Asks for the slice and waits until it is there. A request that failed, or whose slice was taken
# away, is deleted and made again.
#
#   POD=pod.env bash scripts/pod/create.sh
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=common.sh
source "$here/common.sh"

options=(--node-id="$name" --accelerator-type="$type" --runtime-version="$runtime")
[ "$spot" = yes ] && options+=(--spot)
before=""
unknown=0
refused=0

# Runs a command of gcloud, which may fail for a moment: up to 10 times in a row, each after a look at
# the state.
request() {
  if gcloud compute tpus queued-resources "$@"; then
    refused=0
    return
  fi
  refused=$((refused + 1))
  [ "$refused" -lt 10 ] || die "gcloud has refused to $1 the request, 10 times in a row."
  say "gcloud did not $1 the request ($refused of 10 times in a row)"
}

while true; do
  now=$(state)
  [ "$now" = UNKNOWN ] && unknown=$((unknown + 1)) || unknown=0
  [ "$unknown" -lt 20 ] || die "gcloud did not report the state of the slice, 20 times in a row."
  [ "$now" = "$before" ] || say "$name ($type): $now"
  before="$now"
  case "$now" in
    ACTIVE) exit 0 ;;
    ABSENT) request create "$name" "${place[@]}" "${options[@]}" ;;
    FAILED | SUSPENDED) request delete "$name" "${place[@]}" --force --quiet ;;
  esac
  sleep "${POD_POLL_SECONDS:-30}"
done
