#!/usr/bin/env bash
# Stands in for gcloud in test_tpu.py. A slice is a folder of $FAKE_CLOUD with the states of its
# queued resource and node in two files and a home folder for each of its two workers; ssh runs the
# command in those.
set -euo pipefail
echo "$*" >>"$FAKE_CLOUD/calls"
words=" $* " name=$5 slice=$FAKE_CLOUD/$5
value() { sed -n "s/.* --$1=\(.*\) --project=.*/\1/p" <<<"$words"; }
missing() {
    echo "ERROR: NOT_FOUND: Resource '$name' was not found" >&2
    exit 1
}

case "$3 $4" in
'queued-resources create')
    mkdir -p "$slice/0" "$slice/1"
    echo WAITING_FOR_RESOURCES >"$slice/queued"
    ;;
'queued-resources describe') cat "$slice/queued" 2>/dev/null || missing ;;
'tpu-vm describe') cat "$slice/node" 2>/dev/null || missing ;;
'queued-resources delete')
    [ ! -e "$FAKE_CLOUD/stuck" ] || exit 0
    rm -r "$slice"
    ;;
'tpu-vm delete') rm -f "$slice/node" ;;
'tpu-vm scp')
    for worker in 0 1; do cp "$5" "$6" "$FAKE_CLOUD/${7%:}/$worker"; done
    ;;
'tpu-vm ssh')
    status=0
    for worker in 0 1; do
        (cd "$slice/$worker" && HOME=$PWD WORKER=$worker bash -c "$(value command)") || status=$?
    done
    exit "$status"
    ;;
*)
    echo "ERROR: unknown command: $*" >&2
    exit 2
    ;;
esac
