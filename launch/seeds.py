"""Trains one config with several seeds sequentially, each in a process of experiments.main.

    python -m launch.seeds --config=experiments/configs/cifar10.py --workdir=runs/cifar10 --seeds=5

The run of seed n is in WORKDIR/seed<n>. All other flags are passed to every run. Repeat the command
to resume; finished seeds are skipped. Exit status: 0 all done, 1 a seed diverged, 2 an error in the
command, 75 stopped by a signal and saved: run the command again.
"""

import os
import pathlib
import sys

from experiments import cli
from experiments.report.groups import count_of_seeds, mean_and_std
from launch.processes import ProcessGroup, exit_status
from nin_jax.files import read_json


def main(argv: list[str]) -> int:
    parser = cli.Parser('launch.seeds', __doc__)
    parser.add_argument('--config', required=True, help='a config of experiments/configs/')
    parser.add_argument(
        '--workdir', required=True, type=cli.folder, help='parent folder of the runs'
    )
    parser.add_argument('--seeds', type=int, default=5, help='number of seeds, from 0')
    args, others = parser.parse_known_args(argv)
    if any(word.lstrip('-').split('=')[0] == 'mode' for word in others):
        return cli.print_error('--mode: launch.seeds trains; leave it out, or use experiments.main')
    if args.seeds < 1 or any(word.lstrip('-').startswith('config.seed') for word in others):
        return cli.print_error(
            '--seeds=N trains seeds 0 to N - 1: N must be at least 1; leave out --config.seed'
        )
    folders = [args.workdir / f'seed{seed}' for seed in range(args.seeds)]
    worst = 0
    for seed, folder in enumerate(folders):
        print(f'seed {seed} of {args.seeds}: {folder}', flush=True)
        status = run(
            [f'--config={args.config}', f'--workdir={folder}', f'--config.seed={seed}', *others]
        )
        if status not in (0, 1):  # after a divergence (1) the other seeds still run
            return status
        worst = max(worst, status)
    print(format_summary(folders))
    return worst


def run(flags: list[str]) -> int:
    """Runs experiments.main and forwards stop signals to it; returns its exit status."""
    with ProcessGroup() as group:
        status = exit_status(group.start([sys.executable, '-m', 'experiments.main', *flags]))
    if group.stop and status in (0, 1):
        return os.EX_TEMPFAIL  # this seed finished, but the next must not start
    return status


def format_summary(folders: list[pathlib.Path]) -> str:
    """Returns mean and standard deviation of the final test error and of the training time."""
    paths = [folder / 'summary.json' for folder in folders]
    summaries = [read_json(path) for path in paths if path.exists()]  # a bug leaves none
    done = [s for s in summaries if s['status'] == 'done']
    if not done:
        return 'no seed finished'
    errors = [100 * s['final_error'] for s in done]
    seconds = [s['seconds']['train'] for s in done]
    failed = len(folders) - len(done)
    return (
        f'top-1 error {mean_and_std(errors)} % over {count_of_seeds(len(done))} '
        f'({", ".join(f"{e:.2f}" for e in errors)}); {mean_and_std(seconds)} s of training'
        + (f'; {failed} diverged or failed' if failed else '')
    )


if __name__ == '__main__':
    sys.exit(cli.guarded(main, sys.argv[1:]))
