"""Trains, evaluates or describes the network of a config.

    python -m experiments.main --config=experiments/configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.main --config=experiments/configs/cifar10.py:aug --workdir=runs/aug \\
        --config.seed=3 --config.optim.lr=0.05
    python -m experiments.main --config=experiments/configs/quickstart.py \\
        --workdir=runs/quickstart --mode=eval

Several processes train one run if each is given the address of the first:

    python -m experiments.main --config=... --workdir=... --distributed=localhost:12345,2,0 &
    python -m experiments.main --config=... --workdir=... --distributed=localhost:12345,2,1

Run the same command again to resume. Exit status: 0 done, 1 diverged, 2 an error in the command,
75 stopped by a signal and saved: run the command again.
"""

import shlex
import sys

from absl import flags
from ml_collections import config_flags

from experiments import cli
from nin_jax.errors import UserError
from nin_jax.files import is_url

CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file of experiments/configs/, with its variant.'
)
WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    "The run's folder, made if it does not exist; or gs://BUCKET/PATH, s3://BUCKET/PATH.",
)
MODE = flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'eval', 'describe', 'dryrun'],
    'dryrun compiles, prints the memory that the run needs, and stops.',
)
DISTRIBUTED = flags.DEFINE_string(
    'distributed',
    None,
    "Trains with other processes: 'auto' on a TPU pod, SLURM or Kubernetes, or "
    'HOST:PORT,COUNT,INDEX: where process 0 listens, the number of processes, which one this is.',
)
STEP = cli.define_step()


def main(argv: list[str]) -> int:
    cli.no_arguments(argv)
    config = CONFIG.value
    if config is None:
        raise UserError(
            '--config is missing: name one, such as --config=experiments/configs/quickstart.py'
        )
    needs_run = MODE.value in ('train', 'eval')
    workdir = cli.required(WORKDIR, cli.A_RUN, or_url=True) if needs_run else ''
    if STEP.value is not None and MODE.value != 'eval':
        raise UserError(f'--step={STEP.value}: only --mode=eval takes a step, leave it out')
    if DISTRIBUTED.value is not None and MODE.value != 'train':
        raise UserError(f'--mode={MODE.value} takes one process: remove --distributed')
    if DISTRIBUTED.value is not None and is_url(workdir):
        raise UserError(
            f"--workdir='{workdir}' takes one process: mount the bucket as a folder of all of them"
        )
    from nin_jax import commands, distributed  # after the checks: JAX takes seconds to import

    match MODE.value:
        case 'train':
            command = shlex.join(['python', '-m', 'experiments.main', *sys.argv[1:]])
            with distributed.joined(DISTRIBUTED.value):
                return commands.train(config, workdir, command)
        case 'eval':
            return commands.evaluate(config, workdir, STEP.value)
        case 'describe':
            return commands.describe(config)
        case _:
            return commands.dry_run(config)


if __name__ == '__main__':
    cli.run(main)
