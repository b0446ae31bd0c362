#!/usr/bin/env bash
# Deletes the slice: from then on it costs nothing. What lies in the bucket stays.
#
#   POD=pod.env bash scripts/pod/delete.sh
set -euo pipefail
here="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=common.sh
source "$here/common.sh"
gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
say "$name is deleted"
