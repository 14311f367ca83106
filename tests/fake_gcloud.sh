#!/usr/bin/env bash
# Stands in for gcloud in tests/test_launch.py: a slice is a folder of $FAKE_CLOUD with its state in
# a file and a home folder for each of its two workers; ssh runs the command in that home.
set -euo pipefail
echo "$*" >>"$FAKE_CLOUD/calls"
words=" $* " name=$5 slice=$FAKE_CLOUD/$5
value() { sed -n "s/.* --$1=\(.*\) --project=.*/\1/p" <<<"$words"; }

case "$3 $4" in
'queued-resources create')
    [ ! -e "$slice" ] || { echo 'ERROR: ALREADY_EXISTS' >&2; exit 1; }
    mkdir -p "$slice/0" "$slice/1"
    echo PROVISIONING >"$slice/state"
    ;;
'queued-resources describe')
    [ -e "$slice" ] || { echo "ERROR: NOT_FOUND: Resource '$name' was not found" >&2; exit 1; }
    cat "$slice/state"
    sed -i 's/PROVISIONING/ACTIVE/' "$slice/state" # by the next look it is there
    ;;
'queued-resources delete') rm -r "$slice" ;;
'tpu-vm describe') echo READY ;;
'tpu-vm scp')
    for worker in 0 1; do cp "$5" "$6" "$FAKE_CLOUD/${7%:}/$worker"; done
    ;;
'tpu-vm ssh')
    for worker in 0 1; do
        (cd "$slice/$worker" && HOME=$PWD WORKER=$worker bash -c "$(value command)")
    done
    ;;
*)
    echo "ERROR: unknown command: $*" >&2
    exit 2
    ;;
esac
