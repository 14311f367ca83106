#!/usr/bin/env bash
# One TPU slice as plain TPU VMs: each step by hand; nothing is replaced or restarted.
# For spot slices that are replaced and rerun, use SkyPilot: launch/sky/tpu.yaml.
#
#   launch/tpu/tpu.sh [--dry-run] VERB
#
#   create [--spot]      request the slice (a queued resource); returns before it is ready
#   status               print the slice's state, and the command's on each worker
#   setup [DATASET...]   install this commit, Python and jax[tpu]; mount the bucket; prepare data
#   run COMMAND...       start COMMAND on all workers; it survives the connection
#   logs [WORKER]        follow the output of one worker; 0 is the default
#   stop                 TERM to COMMAND, which saves and ends; KILL after five minutes
#   fetch FOLDER         copy FOLDER of the bucket to the same path here
#   delete               copy the log to the bucket; delete the queued resource and its VMs
#
# --dry-run prints the commands and runs none. Environment: NIN_TPU_PROJECT, NIN_TPU_ZONE,
# NIN_TPU_BUCKET; NIN_TPU_NAME (nin); for create NIN_TPU_TYPE (v5litepod-8) and NIN_TPU_VERSION
# (v2-alpha-tpuv5-lite). Exit status: 0 done, 1 a command failed, 2 a mistake, 75 not ready.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

queued=(gcloud compute tpus queued-resources) vm=(gcloud compute tpus tpu-vm)
name=${NIN_TPU_NAME:-nin} dry='' bundle=build/launch/${NIN_TPU_NAME:-nin}.bundle

fail() { # STATUS SENTENCE
    echo "error: $2" >&2
    exit "$1"
}

need() { # VARIABLE EXAMPLE
    [ -n "${!1:-}" ] || fail 2 "$1 is not set: export it, such as $1=$2"
}

call() {
    if [ -n "$dry" ]; then
        printf '%s\n' "$(printf '%q ' "$@")"
    else
        "$@" || fail 1 "'${*:1:6}' ended with status $?"
    fi
}

on_workers() { # WHICH COMMAND...
    call "${vm[@]}" ssh "$name" "--worker=$1" "--command=$(printf '%q ' "${@:2}")" "${place[@]}"
}

run_sh() { on_workers all bash nin_jax/launch/tpu/run.sh "$@"; }

describe() { # FIELD GCLOUD-WORDS...; prints the state, NOT_FOUND if there is none
    local out
    if out=$("${@:2}" describe "$name" "--format=value($1)" "${place[@]}" 2>"$errors"); then
        echo "${out:-UNKNOWN}"
    elif grep -q NOT_FOUND "$errors"; then
        echo NOT_FOUND
    else
        fail 1 "gcloud cannot describe $name: $(tail -n 1 "$errors")"
    fi
}

# The node's own state shows a pre-emption or a repair before the queued resource's does.
look() {
    if [ -n "$dry" ]; then
        call "${queued[@]}" describe "$name" '--format=value(state.state)' "${place[@]}"
        call "${vm[@]}" describe "$name" '--format=value(state)' "${place[@]}"
        slice=ACTIVE node=READY
    else
        slice=$(describe state.state "${queued[@]}")
        node=$(describe state "${vm[@]}")
    fi
}

usable() { [ "$slice $node" = 'ACTIVE READY' ]; }

need_ready() {
    look
    usable || fail 75 "slice $name is not usable (queued resource $slice, node $node): create it, \
wait until status says ACTIVE and READY, or delete it and create it again if it was lost"
}

create() {
    need NIN_TPU_BUCKET my-bucket # a run without it would be lost with the VM
    case "$*" in
    '' | --spot) ;;
    *) fail 2 "create takes --spot or nothing, not '$*'" ;;
    esac
    call "${queued[@]}" create "$name" "--node-id=$name" \
        "--accelerator-type=${NIN_TPU_TYPE:-v5litepod-8}" \
        "--runtime-version=${NIN_TPU_VERSION:-v2-alpha-tpuv5-lite}" "$@" --async "${place[@]}"
}

status() {
    look
    [ -n "$dry" ] || echo "$name: queued resource $slice, node $node"
    ! usable || run_sh status
}

setup() {
    need NIN_TPU_BUCKET my-bucket
    local changed
    changed=$(git status --porcelain --untracked-files=no | head -n 1)
    [ -n "$dry" ] || [ -z "$changed" ] ||
        fail 2 "'${changed:3}' is changed: commit it, the VMs get the source of a commit"
    need_ready
    [ -n "$dry" ] || mkdir -p "$(dirname "$bundle")"
    call git bundle create --quiet "$bundle" HEAD
    call "${vm[@]}" scp "$bundle" launch/tpu/setup.sh "$name:" --worker=all "${place[@]}"
    on_workers all bash setup.sh "$(basename "$bundle")" "${NIN_TPU_BUCKET#gs://}" "$@"
}

run() {
    [ $# -gt 0 ] || fail 2 'run needs a command, such as: run python -m experiments.main ...'
    need_ready
    run_sh start "$@"
}

logs() {
    need_ready
    on_workers "${1:-0}" tail -n 200 -F nin_run/log
}

stop() {
    need_ready
    run_sh stop
}

fetch() {
    need NIN_TPU_BUCKET my-bucket
    [ $# -eq 1 ] || fail 2 'fetch needs one folder of the bucket, such as: fetch runs/cifar10'
    [ -n "$dry" ] || mkdir -p "$1"
    call gcloud storage rsync --recursive "gs://${NIN_TPU_BUCKET#gs://}/$1" "$1"
}

delete() {
    look
    if usable; then
        (run_sh save) || echo 'the last minute of the log could not be copied to the bucket' >&2
    fi
    [ "$slice" = NOT_FOUND ] || call "${queued[@]}" delete "$name" --force "${place[@]}"
    [ -z "$dry" ] || return 0
    look
    [ "$node" = NOT_FOUND ] || call "${vm[@]}" delete "$name" "${place[@]}"
    look
    [ "$slice $node" = 'NOT_FOUND NOT_FOUND' ] ||
        fail 1 "$name is still there and may cost: queued resource $slice, node $node; delete it again"
}

if [ "${1:-}" = --dry-run ]; then
    dry=yes
    shift
fi
verb=${1:-}
case $verb in
create | status | setup | run | logs | stop | fetch | delete) shift ;;
*) fail 2 "'$verb' is no verb: say create, status, setup, run, logs, stop, fetch or delete" ;;
esac
[ -n "$dry" ] || command -v gcloud >/dev/null || fail 2 'gcloud is not installed: see launch/README.md'
if [ "$verb" != fetch ]; then
    need NIN_TPU_PROJECT my-project
    need NIN_TPU_ZONE us-west4-a
fi
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
place=("--project=${NIN_TPU_PROJECT:-}" "--zone=${NIN_TPU_ZONE:-}" --quiet)
"$verb" "$@"
