"""Trains, evaluates or describes the network of a config page.

    python -m experiments.main --config=experiments/configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.main --config=experiments/configs/cifar10.py:aug --workdir=runs/aug \\
        --config.seed=3 --config.optim.lr=0.05
    python -m experiments.main --config=experiments/configs/quickstart.py \\
        --workdir=runs/quickstart --mode=eval

Several processes train one run when each is told where the first listens:

    python -m experiments.main --config=... --workdir=... --distributed=localhost:12345,2,0 &
    python -m experiments.main --config=... --workdir=... --distributed=localhost:12345,2,1

Run the same command again to resume. Exit status: 0 done, 1 diverged, 2 a mistake in the command,
75 stopped on request and saved: run it again.
"""

import pathlib
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from experiments import cli
from nin_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file('config', None, 'A page of experiments/configs/.')
WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder; made if it does not exist.")
MODE = flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'eval', 'describe', 'dryrun'],
    'dryrun compiles, tells what the run would take, and stops.',
)
DISTRIBUTED = flags.DEFINE_string(
    'distributed',
    None,
    "Trains with other processes: 'auto' on a TPU pod, SLURM or Kubernetes, or "
    'HOST:PORT,COUNT,INDEX: where process 0 listens, how many they are, which this is.',
)
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to evaluate; the newest if not given.')


def main(argv: list[str]) -> int:
    if argv[1:]:
        raise UserError(f"unexpected argument '{argv[1]}': flags begin with --")
    if CONFIG.value is None:
        raise UserError(
            '--config is missing: name a page, such as --config=experiments/configs/quickstart.py'
        )
    if MODE.value in ('train', 'eval') and not WORKDIR.value:
        raise UserError(
            f'--workdir is missing: --mode={MODE.value} needs the folder of a run, '
            'such as --workdir=runs/quickstart'
        )
    if DISTRIBUTED.value is not None and MODE.value != 'train':
        raise UserError(f'--mode={MODE.value} takes one process: leave --distributed away')
    # JAX takes seconds to import; mistakes above are told at once
    from nin_jax import commands, distributed

    match MODE.value:
        case 'train':
            command = shlex.join(['python', '-m', 'experiments.main', *sys.argv[1:]])
            with distributed.joined(DISTRIBUTED.value):
                return commands.train(CONFIG.value, pathlib.Path(WORKDIR.value), command)
        case 'eval':
            return commands.evaluate(CONFIG.value, pathlib.Path(WORKDIR.value), STEP.value)
        case 'describe':
            return commands.describe(CONFIG.value)
        case 'dryrun':
            return commands.dry_run(CONFIG.value)


if __name__ == '__main__':
    cli.run(main)
