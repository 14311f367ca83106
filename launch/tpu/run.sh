#!/usr/bin/env bash
# Runs one command on a TPU VM so that it survives the ssh connection that started it.
#
#   bash run.sh start COMMAND...   in the background, from the project's folder
#   bash run.sh status             running | exit N | lost | absent
#   bash run.sh stop               TERM to the command, which saves; KILL after NIN_STOP_SECONDS
#   bash run.sh save               copy the log to the bucket now
#
# start refuses unless the bucket is mounted: a run on the VM's own disk is lost with the VM. The log
# is ~/nin_run/log, copied to logs/HOST/TIME.log of the bucket each minute and at the end.
# lost: it was started and left no exit status: it was killed, or the VM went down.
set -euo pipefail

folder=${NIN_RUN:-$HOME/nin_run} mount=${NIN_MOUNT:-/mnt/nin}
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

refuse() {
    echo "error: $(hostname): $1" >&2
    exit 2
}

# The supervisor and its command hold the lock and it dies with them; a process id could be reused.
running() {
    [ -e "$folder/lock" ] && ! flock -n "$folder/lock" true
}

check_bucket() {
    mountpoint -q "$mount" || refuse "no bucket is mounted at $mount; nothing was started: run setup again"
    touch "$mount/.writable" 2>/dev/null ||
        refuse "the bucket at $mount cannot be written to; nothing was started: run setup again"
}

start() {
    running && refuse "a command is running: $(cat "$folder/command"); stop it first"
    check_bucket
    mkdir -p "$folder"
    rm -f "$folder/status" "$folder/pid"
    printf '%q ' "$@" >"$folder/command"
    echo "$mount/logs/$(hostname)/$(date -u +%Y%m%dT%H%M%SZ).log" >"$folder/copy"
    setsid nohup bash "${BASH_SOURCE[0]}" supervise "$@" >"$folder/log" 2>&1 </dev/null &
    for _ in $(seq 100); do
        if [ -e "$folder/pid" ]; then
            echo "$(hostname): started as process $(cat "$folder/pid"); log: $(cat "$folder/copy")"
            exit 0
        fi
        sleep 0.1
    done
    refuse "the command did not start within 10 s: see $folder/log"
}

supervise() {
    exec 9>"$folder/lock"
    flock -n 9 || exit 2
    trap : TERM INT # a VM that shuts down sends TERM to all: outlive the command to note its status
    cd "$project"
    export PATH="$HOME/nin_venv/bin:$PATH" PYTHONUNBUFFERED=1
    export JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu} # an error, not a CPU, where the TPU is missing
    (while sleep 60; do save || true; done) 9>&- &
    local saver=$! status=0
    echo "--- $(date -u +%FT%TZ) $(cat "$folder/command")"
    # A process group of its own, so that stop can end all of it.
    # shellcheck disable=SC2016 # the inner shell is to expand these
    setsid bash -c 'echo $$ >"$1.new"; mv "$1.new" "$1"; shift; exec "$@"' _ "$folder/pid" "$@" || status=$?
    echo "--- $(date -u +%FT%TZ) exit status $status"
    kill "$saver" 2>/dev/null || true
    save || echo "the log could not be copied to $(cat "$folder/copy")"
    echo "$status" >"$folder/status.new"
    mv "$folder/status.new" "$folder/status"
}

save() {
    [ -e "$folder/copy" ] || return 0 # nothing was started
    mountpoint -q "$mount" || return 1
    mkdir -p "$(dirname "$(cat "$folder/copy")")"
    cp "$folder/log" "$(cat "$folder/copy")" # a copy is closed, and so complete in the bucket
}

status() {
    local state=absent
    if running; then
        state=running
    elif [ -e "$folder/status" ]; then
        state="exit $(cat "$folder/status")"
    elif [ -e "$folder/command" ]; then
        state=lost
    fi
    echo "$(hostname): $state"
}

ended_within() { # SECONDS
    local end=$((SECONDS + $1))
    while running; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

stop() {
    local pid
    if running; then
        pid=$(cat "$folder/pid")
        kill -TERM "$pid" 2>/dev/null || true
        ended_within "${NIN_STOP_SECONDS:-300}" || kill -KILL -- "-$pid" || true
        ended_within 70 || refuse "process $pid cannot be ended: delete the VM"
    fi
    status
}

case ${1:-} in
start | supervise | status | stop | save) "$@" ;;
*) refuse "say start COMMAND..., status, stop or save, not '${1:-}'" ;;
esac
