"""Runs a sweep: many short runs over a space of config keys, several in parallel.

    python -m launch.sweep --sweep=experiments/sweeps/digits.py --study=digits --workers=2
    python -m launch.sweep report --study=digits
    python -m launch.sweep --sweep=experiments/sweeps/digits.py --study=digits --dry-run

Each point is an ordinary run in WORKDIR/trial-NUMBER. Repeat the command to resume an interrupted
sweep: finished points are skipped, and the others resume from their checkpoints. Further flags of
the form --config.key=value apply to all trials.

Several machines can share a study. Run the same command with the same --study on each, with a
database that all machines reach, such as --storage=postgresql://USER@HOST/DATABASE. If they also
share --workdir, a trial of a lost machine resumes from its checkpoint; otherwise it restarts. Use
SQLite on one machine only, because its locks do not work on NFS. Do not put the password in the
command: use ~/.pgpass, PGPASSWORD, a --storage_file, or the whole URL in the environment variable
NIN_STORAGE.

Exit status: 0 every point has a result, 1 some points failed permanently, 2 an error in the
command, 75 stopped by a signal or a temporary failure: run the command again.
"""

import argparse
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence

from experiments import cli
from experiments.space import Sweep
from launch.sweep import flags, points
from nin_jax.errors import UserError

PROGRAM = (sys.executable, '-m', 'experiments.main')


def main(argv: Sequence[str], program: Sequence[str] = PROGRAM) -> int:
    """Returns the exit status; `program` is what a trial runs."""
    return cli.guarded(lambda words: sweep_or_report(words, program), list(argv)) or 0


def sweep_or_report(argv: list[str], program: Sequence[str]) -> int:
    if importlib.util.find_spec('optuna') is None:
        raise UserError("sweeps need Optuna: pip install -e '.[sweep]'")
    if argv[:1] == ['report']:
        from launch.sweep import report

        return report.main(argv[1:])
    args, overrides = flags.parse(argv, __doc__)
    sweep = points.load(args.sweep, overrides)
    points.check(sweep)
    if not args.dry_run:
        return run(sweep, args, program)
    for number, point in enumerate(points.points(sweep)):
        words = points.command(sweep, args.workdir / f'trial-{number}', point)
        print(shlex.join(words) if point else '# chosen by TPE during the sweep')
    return 0


def run(sweep: Sweep, args: argparse.Namespace, program: Sequence[str]) -> int:
    """Runs the sweep; returns the exit status."""
    from launch.sweep import attempts, driver, study

    args.workdir.mkdir(parents=True, exist_ok=True)
    retry = study.RetryPolicy(args.storage, args.patience, study.beat_every(args.grace))
    database = study.connect(args.storage, retry, args.grace)
    queue = retry(lambda: attempts.Attempts(study.begin(database, args.study, sweep), database))
    retry.steady = True
    ours = driver.Driver(sweep, args, queue, retry, program)
    print(f'{attempts.account(queue.by_point())}; {len(ours.workers)} workers', flush=True)
    status = ours.drive()
    if ours.mistake:
        raise UserError(ours.mistake)
    every = retry(queue.by_point)
    print(attempts.account(every))
    if status:
        print('stopped; run the same command again to resume')
        return status
    print(
        f'{attempts.best_sentence(every)}\npython -m launch.sweep report {shlex.join(args.where)}'
    )
    url = shlex.quote(study.driver_url(args.storage.shown))
    print(f'plots in the browser: pip install optuna-dashboard && optuna-dashboard {url}')
    return int(any(attempts.outcome(tries) == 'failed' for tries in every))


def hide_password(argv: Sequence[str]) -> None:
    """Re-executes this program if its command line, which `ps` shows, contains a password."""
    for i, word in enumerate(argv):
        name, _, url = word.partition('=')
        url = url or ' '.join(argv[i + 1 : i + 2])
        if name == '--storage' and (storage := flags.Storage(url)).secret:
            print(
                'note: do not put passwords in commands: use ~/.pgpass or NIN_STORAGE',
                file=sys.stderr,
            )
            rest = [*argv[:i], f'--storage={storage.shown}', *argv[i + 1 + ('=' not in word) :]]
            os.environ[flags.STORAGE] = url
            os.execv(sys.executable, [sys.executable, '-m', 'launch.sweep', *rest])


if __name__ == '__main__':
    hide_password(sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
