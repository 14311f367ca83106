"""Trains on Cloud TPU VMs: asks for them, sets them up, runs, watches, fetches, deletes.

    python -m launch.tpu VERB --name=nin --project=P --zone=us-west4-a --type=v5litepod-8 \\
        --version=v2-alpha-tpuv5-lite --bucket=B [--spot] [--dry-run] [-- COMMAND...]

Verbs, for one slice or --count of them (NAME-0, NAME-1, ...):

    up      all of it: creates, sets up, runs, and replaces a pre-empted slice until the run is done
    create  asks for the slice (a queued resource)
    setup   brings the source of this commit, Python, jax[tpu], the bucket and --data to all workers
    run     starts COMMAND on all workers; it outlives the connection
    status  the slice's state, and the command's on every worker
    logs    follows the command's output on --worker
    stop    TERM to the command: it saves and ends with status 75
    fetch   copies --folder of the bucket to here
    delete  deletes the slice; the bucket stays

Each flag may come from the environment instead: NIN_TPU_PROJECT for --project, and so on. --dry-run
prints every command, quoted for a shell, and runs none. Exit status: 0 done, 1 diverged or given
up, 2 a mistake, 75 stopped watching: say it again to go on.
"""

import argparse
import os
import signal
import sys
import threading
import time
from concurrent import futures

from experiments import cli
from launch import tpu_gcloud as cloud
from launch.tpu_machine import LOGS, ROOT, Machine, make_bundle
from launch.tpu_watch import Patience, Trouble, watch
from nin_jax.errors import UserError
from nin_jax.runs.interrupt import RESUME_ME

NEEDS = {
    'up': ('name', 'project', 'zone', 'type', 'version', 'bucket', 'command'),
    'create': ('name', 'project', 'zone', 'type', 'version'),
    'setup': ('name', 'project', 'zone', 'bucket'),
    'run': ('name', 'project', 'zone', 'command'),
    'status': ('name', 'project', 'zone'),
    'logs': ('name', 'project', 'zone'),
    'stop': ('name', 'project', 'zone'),
    'fetch': ('bucket', 'folder'),
    'delete': ('name', 'project', 'zone'),
}
EXAMPLES = {
    'name': 'nin',
    'project': 'my-project',
    'zone': 'us-west4-a',
    'type': 'v5litepod-8',
    'version': 'v2-alpha-tpuv5-lite',
    'bucket': 'my-bucket',
    'folder': 'runs/cifar10',
}


def main(argv: list[str]) -> int:
    try:
        args = parse(argv)
        machines = [Machine(s, args, None) for s in slices(args)]
        if args.verb in ('setup', 'up'):
            make_bundle(args)
        if args.verb == 'up':
            return up(machines)
        if args.verb == 'fetch':
            if not args.dry_run:
                (ROOT / args.folder).mkdir(parents=True, exist_ok=True)
            machines[0].call(cloud.fetch(args.bucket, args.folder), 120)
            return 0
        verb = {'run': 'start'}.get(args.verb, args.verb)
        for machine in machines[:1] if verb == 'logs' else machines:
            getattr(machine, verb)()
        return 0
    except UserError as e:
        return cli.print_error(str(e))
    except Trouble as e:
        return cli.print_error(str(e), status=1)
    except KeyboardInterrupt:
        return 130


def parse(argv: list[str]) -> argparse.Namespace:
    """Flags, then the environment; raises UserError, in one sentence, for what is missing."""
    words, command = argv, []
    if '--' in argv:
        at = argv.index('--')
        words, command = argv[:at], argv[at + 1 :]
    parser = argparse.ArgumentParser(
        prog='launch.tpu',
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = lambda message: sys.exit(cli.print_error(message))
    parser.add_argument('verb', choices=NEEDS)
    for name, example in EXAMPLES.items():
        default = os.environ.get(f'NIN_TPU_{name.upper()}', '')
        parser.add_argument(f'--{name}', default=default, help=f'such as {example}')
    parser.add_argument('--spot', action='store_true', help='cheaper, may be pre-empted')
    parser.add_argument('--count', type=int, help='slices NAME-0 to NAME-(COUNT - 1)')
    parser.add_argument('--worker', default='0', help='whose output logs follows')
    parser.add_argument('--data', nargs='*', default=[], help='datasets to prepare, as cifar10')
    parser.add_argument(
        '--delete-when-done', action='store_true', help='up: then delete the slices'
    )
    parser.add_argument('--poll', type=float, default=Patience.poll, help='seconds between looks')
    parser.add_argument('--dry-run', action='store_true', help='print the commands, run none')
    args = parser.parse_args(words)
    args.command = command
    for need in NEEDS[args.verb]:
        if not getattr(args, need):
            raise UserError(missing(args.verb, need))
    if args.count is not None and args.count < 1:
        raise UserError(f'--count={args.count}: give 1 or more')
    args.bucket = args.bucket.removeprefix('gs://').rstrip('/')
    return args


def missing(verb: str, need: str) -> str:
    if need == 'command':
        return (
            f'{verb} needs a command behind --, such as: -- python -m experiments.main '
            '--config=experiments/configs/cifar10.py --workdir=/mnt/nin/runs/cifar10 '
            '--distributed=auto'
        )
    flag = f'--{need}={EXAMPLES[need]}'
    return f'--{need} is missing: say, for instance, {flag}, or set NIN_TPU_{need.upper()}'


def slices(args: argparse.Namespace) -> list[cloud.Slice]:
    names = [args.name] if args.count is None else [f'{args.name}-{i}' for i in range(args.count)]
    return [
        cloud.Slice(name, args.project, args.zone, args.type, args.version, args.spot)
        for name in names
    ]


def up(machines: list[Machine]) -> int:
    """Watches all slices at once, a thread each; returns the worst status."""
    args = machines[0].args
    if args.dry_run:
        for machine in machines:
            for step in (machine.create, machine.state, machine.setup, machine.start):
                step()
            machine.processes()
            if args.delete_when_done:
                machine.delete()
        return 0
    asked = threading.Event()
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda *_: asked.set())
    with futures.ThreadPoolExecutor(len(machines)) as pool:
        statuses = list(pool.map(lambda machine: keep_up(machine, asked), machines))
    if asked.is_set():
        print('stopped watching; the slices go on, and cost: say up again, or stop and delete')
    return max(statuses)


def keep_up(machine: Machine, asked: threading.Event) -> int:
    name = machine.slice.name
    machine.log = ROOT / LOGS / f'{name}.log'

    def say(line: str) -> None:
        print(f'{time.strftime("%F %T")} {name}: {line}', flush=True)

    say(f'what the commands print goes to {machine.log.relative_to(ROOT)}')
    patience = Patience(poll=machine.args.poll)
    try:
        status = watch(machine, patience, say, time.monotonic, asked.wait)
        if status is None:
            return RESUME_ME
        if machine.args.delete_when_done:
            machine.delete()
            say('deleted')
        else:
            say(f'ended with status {status}; the slice is still there, and costs')
        return status
    except Trouble as e:
        say(f'{e}; the slice may still be there, and cost')
        return 1
    except UserError as e:
        return cli.print_error(str(e))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
