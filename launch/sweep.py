"""Runs a sweep: many short runs over a space of config keys, several at a time.

    python -m launch.sweep --sweep=experiments/sweeps/digits.py --study=digits --workers=2
    python -m launch.sweep report --study=digits
    python -m launch.sweep --sweep=experiments/sweeps/digits.py --study=digits --dry-run

Each trial is an ordinary run in WORKDIR/trial-<number>. Repeat the command to go on after whatever
stopped it: finished trials are left alone, others resume from their checkpoints. Further flags of
the form --config.key=value are set for all trials.

Several machines share a study by the same command with the same --study and a --storage that all
of them reach, such as postgresql://user@host/database (the password in ~/.pgpass or PGPASSWORD).
A --workdir they share lets a trial go on where a lost machine left it; with one of its own on each
machine such a trial starts anew. SQLite is for one machine: its locks do not hold on NFS.

Exit status: 0 every trial has its result, 1 some failed for good, 2 a mistake in the command, 75
stopped on request and saved: run it again.
"""

import argparse
import importlib.util
import os
import pathlib
import re
import shlex
import signal
import sys
import time

from experiments import cli
from launch import devices, points
from launch.processes import Family
from nin_jax.errors import UserError
from nin_jax.runs.interrupt import RESUME_ME

DEATHS = 10  # of workers, after which none is replaced


def main(argv: list[str]) -> int:
    try:
        if importlib.util.find_spec('optuna') is None:
            raise UserError("sweeps need Optuna: pip install -e '.[sweep]'")
        if argv[:1] == ['report']:
            from launch import sweep_report

            return sweep_report.main(argv[1:])
        args, overrides = parse(argv)
        sweep = points.load(args.sweep, overrides)
        points.check(sweep)
        if args.dry_run:
            return show(sweep, args)
        from launch import study

        with study.database_errors():
            return drive(sweep, args, argv)
    except UserError as e:
        return cli.complain(str(e))
    except BrokenPipeError:  # the reader of our output went away: head, less, ...
        sys.stdout = None
        return 141


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The command's flags, and the config keys set for all trials."""
    parser = argparse.ArgumentParser(prog='launch.sweep', allow_abbrev=False)
    parser.error = lambda message: sys.exit(cli.complain(message))
    parser.add_argument('--sweep', required=True, help='a page of experiments/sweeps/')
    add_study_flags(parser)
    parser.add_argument('--workers', type=int, help='processes; default: one an accelerator')
    parser.add_argument(
        '--devices', help="accelerators to use, such as 0,1; default: all, or 'cpu'"
    )
    parser.add_argument('--grace', type=int, default=60, help='seconds after which one is lost')
    parser.add_argument('--retries', type=int, default=3, help='times a lost trial is taken up')
    parser.add_argument('--dry-run', action='store_true', help='print the trials and stop')
    parser.add_argument('--index', type=int, default=0, help=argparse.SUPPRESS)
    args, others = parser.parse_known_args(argv)
    settle_study_flags(args)
    if args.grace < 2 or args.retries < 0 or (args.workers is not None and args.workers < 1):
        raise UserError('--grace must be 2 or more, --workers 1 or more, --retries 0 or more')
    overrides = {}
    for word in others:
        if not (match := re.fullmatch(r'--config\.([^=]+)=(.*)', word)):
            raise UserError(f"unexpected argument '{word}': config keys are --config.key=value")
        overrides[match[1]] = match[2]
    return args, overrides


def add_study_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--study', required=True, help='its name in the database')
    parser.add_argument('--workdir', help="folder of the trials' folders; runs/sweeps/STUDY")
    parser.add_argument('--storage', help="its database; default: a file in the study's folder")


def settle_study_flags(args: argparse.Namespace) -> None:
    args.workdir = pathlib.Path(args.workdir or f'runs/sweeps/{args.study}')
    args.storage = args.storage or f'sqlite:///{args.workdir}/study.db'


def check_file_is_there(storage: str) -> None:
    """Raises UserError for a SQLite file that a report would make, empty."""
    file = storage.removeprefix('sqlite:///')
    if file != storage and not pathlib.Path(file).is_file():
        raise UserError(f"no study in '{file}': name the --storage or the --workdir of the sweep")


def show(sweep, args) -> int:
    """Prints the command of every trial known beforehand."""
    later = '# chosen when its turn comes'
    for number, point in enumerate(points.points(sweep)):
        print(
            shlex.join(command(sweep, args.workdir / f'trial-{number}', point)) if point else later
        )
    return 0


def command(sweep, folder: pathlib.Path, point: dict, splits: dict = points.SPLITS) -> list[str]:
    """The run of a point, as one would type it."""
    return [
        'python',
        '-m',
        'experiments.main',
        f'--config={sweep.config}',
        f'--workdir={folder}',
        *points.flags(sweep, point, splits),
    ]


def drive(sweep, args: argparse.Namespace, argv: list[str]) -> int:
    """Keeps the workers going until every trial has its result; returns the exit status."""
    from launch import study, trials

    environments = devices.environments(args.workers, args.devices)
    args.workdir.mkdir(parents=True, exist_ok=True)
    shared = study.begin(args.study, args.storage, sweep, args.grace)
    print(f'{trials.account(shared)}; {len(environments)} workers', flush=True)
    with Family() as family:
        status = keep_going(family, environments, argv)
    print(trials.account(shared))
    if status == RESUME_ME:
        print('stopped; run the same command again to go on')
    elif status == 0:
        where = [w for w in argv if w.startswith(('--study', '--workdir', '--storage'))]
        print(f'{trials.best(shared)}\npython -m launch.sweep report {shlex.join(where)}')
        status = int(trials.failed(shared))
    return status


def keep_going(family: Family, environments: list[dict], argv: list[str]) -> int:
    """Starts the workers and replaces those that die; 0, 2 or 75, or 1 if too many died."""

    def start(index: int):
        cpus = devices.cores(index, len(environments))
        words = [sys.executable, '-m', 'launch.worker', *argv, f'--index={index}']
        return family.start(words, cpus=cpus, env=os.environ | environments[index])

    workers = dict(enumerate(map(start, range(len(environments)))))
    deaths = 0
    while workers:
        time.sleep(0.2)
        for index, process in list(workers.items()):
            status = process.poll()
            if status is None:
                continue
            del workers[index]
            if status == cli.MISTAKE:
                for other in workers.values():
                    other.terminate()
                    other.wait()
                return status
            if status not in (0, RESUME_ME) and not family.stop:
                deaths += 1
                how = f'signal {signal.Signals(-status).name}' if status < 0 else f'status {status}'
                again = deaths <= DEATHS
                print(f'[worker {index}] ended with {how}' + '; started again' * again, flush=True)
                if again and not family.stop:
                    pause(family, min(2.0**deaths, 30.0))  # a database may need time to come back
                    workers[index] = start(index)
    if family.stop:
        return RESUME_ME
    return 1 if deaths > DEATHS else 0


def pause(family: Family, seconds: float) -> None:
    """Sleeps, but for a request to stop."""
    end = time.monotonic() + seconds
    while not family.stop and time.monotonic() < end:
        time.sleep(0.2)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
