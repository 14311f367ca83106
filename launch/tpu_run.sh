#!/usr/bin/env bash
# Runs one command on a TPU VM so that it outlives the ssh that started it.
#
#   bash tpu_run.sh start COMMAND...   in the background, from the project's folder; log in ~/nin_run
#   bash tpu_run.sh status [COMMAND...]  'nin_run: ' and running | busy | exit N | lost | absent
#   bash tpu_run.sh stop               TERM to the command, which saves and ends with status 75
#
# lost: it was started, runs no more, and left no exit status: killed, or the VM went down.
# busy: another command than the one asked about is running.
set -euo pipefail

folder=${NIN_RUN:-$HOME/nin_run}
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The lock is held by the supervisor and its command, and dies with them; a process id could come to
# be another process's.
running() {
    [ -e "$folder/lock" ] && ! flock -n "$folder/lock" true
}

quoted() { printf '%q ' "$@"; }

start() {
    mkdir -p "$folder"
    if running; then
        echo "error: a command is running here: $(cat "$folder/command")" >&2
        exit 2
    fi
    rm -f "$folder/status" "$folder/pid"
    quoted "$@" >"$folder/command"
    setsid nohup bash "${BASH_SOURCE[0]}" supervise "$@" >>"$folder/log" 2>&1 </dev/null &
    for _ in $(seq 100); do
        if [ -e "$folder/pid" ]; then
            echo "started as process $(cat "$folder/pid"); log: $folder/log"
            exit 0
        fi
        sleep 0.1
    done
    echo "error: the command did not start within 10 s: see $folder/log" >&2
    exit 1
}

supervise() {
    exec 9>"$folder/lock"
    flock -n 9 || exit 2
    trap : TERM INT # a VM that shuts down sends TERM to all: outlive the command to note its status
    cd "$project"
    export PATH="$HOME/nin_venv/bin:$PATH" PYTHONUNBUFFERED=1
    export JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu} # an error, and not a CPU, where the TPU is missing
    echo "--- $(date -u +%FT%TZ) $(cat "$folder/command")"
    local status=0
    # shellcheck disable=SC2016 # the inner shell is to expand these
    bash -c 'echo $$ >"$1.new"; mv "$1.new" "$1"; shift; exec "$@"' _ "$folder/pid" "$@" || status=$?
    echo "--- $(date -u +%FT%TZ) exit status $status"
    echo "$status" >"$folder/status.new"
    mv "$folder/status.new" "$folder/status"
}

status() {
    if running && [ $# -gt 0 ] && [ "$(quoted "$@")" != "$(cat "$folder/command")" ]; then
        echo 'nin_run: busy'
    elif running; then
        echo 'nin_run: running'
    elif [ -e "$folder/status" ]; then
        echo "nin_run: exit $(cat "$folder/status")"
    elif [ -e "$folder/command" ]; then
        echo 'nin_run: lost'
    else
        echo 'nin_run: absent'
    fi
}

stop() {
    if running; then
        kill -TERM "$(cat "$folder/pid")"
        echo "TERM sent to process $(cat "$folder/pid")"
    else
        echo 'nothing is running'
    fi
}

case ${1:-} in
start | supervise | status | stop) "$@" ;;
*)
    echo "error: say start COMMAND..., status or stop, not '${1:-}'" >&2
    exit 2
    ;;
esac
