#!/usr/bin/env bash
# Runs one training as several processes on this machine.
#
#   launch/local.sh 2 --config=experiments/configs/quickstart.py --workdir=runs/two
#   launch/local.sh gpus --config=experiments/configs/cifar10.py --workdir=runs/gpus
#
# N: N processes, each with all the devices it sees, which is meant for a CPU; gpus: one for each
# NVIDIA GPU. TERM and Ctrl-C go to all of them: they save and stop. When one ends with neither 0
# nor 75, the others get 20 s to end, 20 s more after a TERM, and are killed; its status is then the
# whole's, or 75 if it was aborted (134), killed (137) or terminated (143). NIN_COMMAND takes the
# place of `python -m experiments.main`; the flags and --distributed are put behind it. Needs bash
# 5.1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || {
    echo "error: bash $BASH_VERSION is too old: run it by bash 5.1 or later" >&2
    exit 2
}

complain() {
    echo "error: $1" >&2
    exit 2
}

count=${1:-}
[ $# -eq 0 ] || shift
gpus=no
if [ "$count" = gpus ]; then
    gpus=yes
fi
cards=()
if [ "$gpus" = yes ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    IFS=, read -r -a cards <<<"$CUDA_VISIBLE_DEVICES"
    count=${#cards[@]}
elif [ "$gpus" = yes ]; then
    count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || complain 'nvidia-smi shows no GPU here'
fi
[[ $count =~ ^[1-9][0-9]*$ ]] ||
    complain "say how many processes, such as: launch/local.sh 2 --config=..., not '$count'"
grace=${NIN_GRACE_SECONDS:-20}
read -r -a command <<<"${NIN_COMMAND:-python -m experiments.main}"
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

declare -A index=() # of each process that runs, by its id
tell() { for pid in "${!index[@]}"; do kill -"$1" "$pid" 2>/dev/null || true; done; }
trap 'tell TERM' TERM INT

set -m # a process group each, so that Ctrl-C reaches them once, from here
for ((i = 0; i < count; i++)); do
    [ "$gpus" = no ] || export CUDA_VISIBLE_DEVICES="${cards[i]:-$i}"
    "${command[@]}" "$@" --distributed="127.0.0.1:$port,$count,$i" &
    index[$!]=$i
done

worst=0 killer=
while [ ${#index[@]} -gt 0 ]; do
    status=0
    wait -n -p ended "${!index[@]}" || status=$?
    [ -n "${ended:-}" ] || continue # a signal came in, and was handed on
    i=${index[$ended]}
    unset "index[$ended]"
    if [ "$status" -eq 0 ] || [ "$status" -eq 75 ]; then
        [ "$worst" -ne 0 ] || worst=$status
        continue
    fi
    echo "process $i of $count ended with status $status" >&2
    if [ -z "$killer" ]; then # what the others end with now is its doing
        worst=$status
        case $status in 134 | 137 | 143) worst=75 ;; esac
        # They may be ending too, or wait for the dead one for ever.
        (sleep "$grace" && tell TERM && sleep "$grace" && tell KILL) &
        killer=$!
        disown # so that bash does not tell when it is stopped
    fi
done
[ -z "$killer" ] || kill -- "-$killer" 2>/dev/null || true
exit "$worst"
