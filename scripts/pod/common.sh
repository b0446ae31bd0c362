# shellcheck shell=bash
# Sourced by the scripts of this folder, not run: settings, and how to reach the slice.

settings="${POD:-pod.env}"

die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 2
}

say() {
  printf '%s  %s\n' "$(date '+%H:%M:%S')" "$*"
}

[ -f "$settings" ] || die "there are no settings in $settings: copy scripts/pod/settings.env.example" \
  "there and edit it, or name another file with POD=FILE."
project="" zone="" name="" type="" spot="" runtime=""
# shellcheck source=settings.env.example
source "$settings"
[ -n "$project" ] && [ -n "$zone" ] && [ -n "$name" ] && [ -n "$type" ] ||
  die "$settings must set project, zone, name and type."
command -v gcloud >/dev/null || die "gcloud is not installed: it comes with the Google Cloud CLI."

if [ -z "$runtime" ]; then
  case "$type" in
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) die "no runtime version is known for type=$type: set runtime=... in $settings too." ;;
  esac
fi
place=(--project="$project" --zone="$zone")

# State of the queued resource: ACTIVE, WAITING_FOR_RESOURCES, SUSPENDED, ...; ABSENT: there is none;
# UNKNOWN: gcloud does not say, as when the network is down for a moment.
state() {
  local answer
  if answer=$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format='value(state.state)' 2>&1); then
    printf '%s\n' "$answer"
  elif [[ "$answer" == *NOT_FOUND* || "$answer" == *"not found"* ]]; then
    printf 'ABSENT\n'
  else
    say "gcloud does not report the state of the slice: $answer" >&2
    printf 'UNKNOWN\n'
  fi
}

# on all|0 COMMAND: runs a command on every host, or on the first.
on() {
  gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$1" --command="$2"
}

# Arguments quoted for another shell.
quoted() {
  printf '%q ' "$@"
}
